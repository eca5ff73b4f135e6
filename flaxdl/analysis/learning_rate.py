"""Learning-rate range test: a short run in which the learning rate grows exponentially.

Smith, "Cyclical Learning Rates for Training Neural Networks", 2015, section 3.3.
"""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optax

from flaxdl.analysis.learning_rate_figure import draw_curve
from flaxdl.config import Config
from flaxdl.errors import UserError
from flaxdl.filesystem.outputs import writing
from flaxdl.filesystem.paths import local_path
from flaxdl.runs.initial_weights import initial_state
from flaxdl.runs.setup import set_up
from flaxdl.training.distributed.parallel import compile_train
from flaxdl.training.schedules import Schedule

LOWEST, HIGHEST = 1e-7, 10.0
STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Sweep(Schedule):
    """Learning rate schedule that grows exponentially from `LOWEST` to `HIGHEST`."""

    def build(self, learning_rate: float, *, total_steps: int) -> optax.Schedule:
        """Returns the schedule, which does not depend on `learning_rate`."""
        return optax.exponential_decay(LOWEST, max(total_steps - 1, 1), HIGHEST / LOWEST)


@dataclass(frozen=True)
class LearningRateCurve:
    """Losses and learning rates of a range test, up to the step where the loss explodes."""

    learning_rates: np.ndarray
    """Learning rate of each step, float[N]."""
    losses: np.ndarray
    """Training loss of each step before its update, float[N]."""

    @property
    def smoothed(self) -> np.ndarray:
        """Losses, clipped at twice the initial loss and smoothed with a Gaussian."""
        bounded = np.clip(self.losses, None, 2 * abs(self.losses[:5].mean()))
        steps = np.arange(len(bounded))
        weights = np.exp(-0.5 * ((steps[:, None] - steps) / 3) ** 2)  # sigma: 3 steps
        return weights @ bounded / weights.sum(1)

    @property
    def steepest(self) -> float:
        """Learning rate at which the smoothed loss falls fastest, on a logarithmic axis."""
        falling = self.smoothed[: int(np.argmin(self.smoothed)) + 1]
        if len(falling) < 2:
            return float(self.learning_rates[0])
        slopes = np.gradient(falling, np.log(self.learning_rates[: len(falling)]))
        return float(self.learning_rates[int(np.argmin(slopes))])

    @property
    def tenth_of_minimum(self) -> float:
        """A tenth of the learning rate at the minimum of the smoothed loss."""
        return float(self.learning_rates[int(np.argmin(self.smoothed))]) / 10

    def draw(self, workdir: str | Path) -> Path:
        """Plots the curve to `learning_rate.png` in a folder and returns the path.

        Raises:
            UserError: if the folder cannot be written.
        """
        workdir = local_path(workdir)
        path = workdir / "learning_rate.png"
        with writing(path):
            workdir.mkdir(parents=True, exist_ok=True)
            suggested = {"steepest": self.steepest, "minimum / 10": self.tenth_of_minimum}
            draw_curve(self.learning_rates, self.losses, self.smoothed, suggested, path)
        return path


def find_learning_rate(config: Config, *, steps: int = STEPS) -> LearningRateCurve:
    """Trains with exponentially growing learning rates and discards the trained state.

    The test ends early if the loss exceeds twice the initial loss or is not finite. Frozen
    parameters remain frozen, even with `freeze_epochs`.

    Args:
        config: configuration of the run; its learning rate and schedule are ignored.
        steps: number of learning rates to try.

    Raises:
        UserError: if config, data and weights are incompatible, or if loss or gradients are not
            finite before the first update.
    """
    optimizer = replace(config.optimizer, learning_rate=1.0, schedule=Sweep())
    setup = set_up(replace(config, optimizer=optimizer))
    functions = replace(setup.steps, total_steps=steps)
    state = initial_state(setup)
    train = compile_train(functions, setup.mesh, config.parallel, state)
    learning_rates, losses = [], []
    with closing(setup.training_batches()) as batches:
        while len(losses) < steps:
            state = train(state, next(batches))
            if int(state.updates) == len(losses):  # the step was skipped
                # In float16 the first steps are skipped until the loss scale is small enough.
                if state.loss_scale is None or state.has_diverged(config.max_bad_steps):
                    break
                continue
            learning_rates.append(float(state.learning_rate))
            losses.append(state.sums.means()["loss"])
            if np.mean(losses[-3:]) > 2 * np.mean(losses[:5]):
                break
            state = state.replace(sums=state.sums.zeros_like())
    if not losses:
        raise UserError("loss or gradients of the first batches are not finite, before any update")
    return LearningRateCurve(np.array(learning_rates), np.array(losses))

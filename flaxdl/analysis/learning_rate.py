"""Which learning rate a run can bear: a short sweep over all of them.

Smith, "Cyclical Learning Rates for Training Neural Networks", 2015, section 3.3.
"""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.analysis.learning_rate_figure import draw_curve
from flaxdl.config import Config
from flaxdl.errors import UserError
from flaxdl.filesystem.outputs import writing
from flaxdl.filesystem.paths import local_path
from flaxdl.runs.initial_weights import initial_state
from flaxdl.runs.setup import set_up
from flaxdl.training.distributed.parallel import compile_train
from flaxdl.training.optimizers import Schedule

LOWEST, HIGHEST = 1e-7, 10.0
STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Sweep(Schedule):
    """From `LOWEST` to `HIGHEST` by equal factors."""

    def factor(self, step: jax.Array, total_steps: int) -> jax.Array:
        """The learning rate itself, of a peak of one."""
        return LOWEST * (HIGHEST / LOWEST) ** (step / jnp.float32(max(total_steps - 1, 1)))


@dataclass(frozen=True)
class LearningRateCurve:
    """What a sweep saw, up to where the loss exploded."""

    learning_rates: np.ndarray
    """Of each step."""
    losses: np.ndarray
    """Of each step's batch, before its update."""

    @property
    def smoothed(self) -> np.ndarray:
        """The losses, each a mean with its neighbours; what exploded counts as twice the start."""
        bounded = np.clip(self.losses, None, 2 * abs(self.losses[:5].mean()))
        steps = np.arange(len(bounded))
        weights = np.exp(-0.5 * ((steps[:, None] - steps) / 3) ** 2)  # Gaussians of three steps
        return weights @ bounded / weights.sum(1)

    @property
    def steepest(self) -> float:
        """Where the smoothed loss falls fastest per factor of learning rate: a good peak."""
        falling = self.smoothed[: int(np.argmin(self.smoothed)) + 1]
        if len(falling) < 2:
            return float(self.learning_rates[0])
        slopes = np.gradient(falling, np.log(self.learning_rates[: len(falling)]))
        return float(self.learning_rates[int(np.argmin(slopes))])

    def draw(self, workdir: str | Path) -> Path:
        """Draws the curve as `learning_rate.png` in a folder, and returns its path.

        Raises:
            UserError: if the folder cannot be written.
        """
        workdir = local_path(workdir)
        path = workdir / "learning_rate.png"
        with writing(path):
            workdir.mkdir(parents=True, exist_ok=True)
            draw_curve(self.learning_rates, self.losses, self.smoothed, self.steepest, path)
        return path


def find_learning_rate(config: Config, *, steps: int = STEPS) -> LearningRateCurve:
    """Trains for some steps with growing learning rates, and forgets what it has trained.

    It ends early where the loss is twice what it was at the start, or is not finite. What is frozen
    at first, as `freeze_epochs` says, stays so: the curve is that of the rest.

    Args:
        config: the run; its optimizer's learning rate and schedule do not count.
        steps: how many learning rates are tried.

    Raises:
        UserError: if config, data and weights do not fit together.
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
                # In float16 that is how the scale of the loss is found.
                if state.loss_scale is None or state.has_diverged(config.max_bad_steps):
                    break
                continue
            learning_rates.append(float(state.learning_rate))
            losses.append(state.sums.means()["loss"])
            if np.mean(losses[-3:]) > 2 * np.mean(losses[:5]):
                break
            state = state.replace(sums=state.sums.emptied())
    if not losses:
        raise UserError("loss or gradients of the first batches are not finite, without training")
    return LearningRateCurve(np.array(learning_rates), np.array(losses))

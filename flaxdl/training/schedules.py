"""Learning-rate schedules with the numbers of PyTorch's, as values that build optax schedules."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxdl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Base class of learning-rate schedules; itself a constant learning rate after the warmup.

    A subclass defines `after_warmup`, or `build` if it has no linear warmup.
    """

    warmup_steps: int = 0
    """Number of steps of linear warmup to the peak learning rate; step s of n has s / n of it."""

    def __init_subclass__(cls):
        if "factor" in vars(cls):
            raise UserError(
                f"{cls.__name__}.factor is no longer called; define after_warmup or build instead"
            )

    def __post_init__(self):
        if self.warmup_steps < 0:
            raise UserError(f"warmup_steps must not be negative, got {self.warmup_steps}")

    def check(self, total_steps: int) -> None:
        """Checks that a run of `total_steps` steps is longer than the warmup.

        Raises:
            UserError: if it is not.
        """
        if self.warmup_steps >= total_steps:
            raise UserError(
                f"schedule.warmup_steps must be less than the {total_steps} steps of the run, got "
                f"{self.warmup_steps}; set --optimizer.schedule.warmup-steps"
            )

    def build(self, learning_rate: float, *, total_steps: int) -> optax.Schedule:
        """Returns the optax schedule: a function from the number of updates to the learning rate.

        Step s of the warmup, counted from 1, has `s / warmup_steps` of the peak.

        Args:
            learning_rate: the peak.
            total_steps: length of the run.
        """
        warmup = self._warmup(total_steps)
        schedule = self.after_warmup(learning_rate, warmup, total_steps)
        if warmup > 0:
            rise = optax.linear_schedule(learning_rate / warmup, learning_rate, warmup - 1)
            schedule = optax.join_schedules([rise, schedule], [warmup])
        # JAX divides int32 by integers in float32, even if float64 is enabled.
        return lambda step: schedule(jnp.asarray(step, float))

    def after_warmup(self, learning_rate: float, warmup: int, total_steps: int) -> optax.Schedule:
        """Returns the schedule after the warmup, whose step 0 is step `warmup` of the run."""
        return optax.constant_schedule(learning_rate)

    def _warmup(self, total_steps: int) -> int:
        return self.warmup_steps


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Cosine decay, as in `torch.optim.lr_scheduler.CosineAnnealingLR`, after a linear warmup.

    >>> schedule = flaxdl.training.Cosine(warmup_steps=4).build(0.1, total_steps=20)
    >>> [f"{schedule(step):.3f}" for step in (0, 3, 4, 12, 20)]
    ['0.025', '0.100', '0.100', '0.050', '0.000']

    Loshchilov and Hutter, SGDR, https://arxiv.org/abs/1608.03983.
    """

    decay_steps: int | None = None
    """Number of steps of the decay (PyTorch's T_max); by default the rest of the run."""
    final_factor: float = 0.0
    """Final learning rate, as a fraction of the peak."""

    def __post_init__(self):
        super().__post_init__()
        if self.decay_steps is not None and self.decay_steps < 1:
            raise UserError(f"decay_steps must be at least 1 or None, got {self.decay_steps}")

    def after_warmup(self, learning_rate: float, warmup: int, total_steps: int) -> optax.Schedule:
        """Returns the fall along the cosine."""
        decay_steps = self.decay_steps or max(total_steps - warmup, 1)
        return optax.cosine_decay_schedule(learning_rate, decay_steps, self.final_factor)


@dataclass(frozen=True, kw_only=True)
class LinearDecay(Schedule):
    """Linear warmup to the peak, then linear decay to zero, as in BERT fine-tuning."""

    warmup_fraction: float = 0.1
    """Fraction of the run used for linear warmup, if `warmup_steps` is 0."""

    def __post_init__(self):
        super().__post_init__()
        _check_warmup_fraction(self)

    def after_warmup(self, learning_rate: float, warmup: int, total_steps: int) -> optax.Schedule:
        """Returns the fall, which reaches zero one step after the last."""
        return optax.linear_schedule(learning_rate, 0.0, total_steps - warmup)

    def _warmup(self, total_steps: int) -> int:
        return self.warmup_steps or round(self.warmup_fraction * total_steps)


@dataclass(frozen=True, kw_only=True)
class StepDecay(Schedule):
    """Step decay at milestones, as in `torch.optim.lr_scheduler.MultiStepLR`."""

    milestones: tuple[float, ...] = (1 / 3, 2 / 3)
    """Points at which the learning rate drops, as fractions of the run."""
    decay: float = 0.1
    """Factor that the learning rate is multiplied by at each milestone."""

    def __post_init__(self):
        super().__post_init__()
        if not all(0 < milestone < 1 for milestone in self.milestones):
            raise UserError(f"milestones must be fractions of the run, got {self.milestones}")
        if self.decay < 0:
            raise UserError(f"decay must not be negative, got {self.decay}")

    def after_warmup(self, learning_rate: float, warmup: int, total_steps: int) -> optax.Schedule:
        """Returns the peak times `decay` to the power of the number of milestones passed."""
        scales: dict[int, float] = {}
        for milestone in self.milestones:  # in short runs, several may be at the same step
            step = round(milestone * total_steps) - warmup
            scales[step] = scales.get(step, 1.0) * self.decay
        return optax.piecewise_constant_schedule(learning_rate, scales)


@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """One rise and one fall along cosines, as in `torch.optim.lr_scheduler.OneCycleLR`.

    The numbers are those of `cycle_momentum=False`: as in PyTorch, the peak is at step
    `warmup_fraction * total_steps - 1` and the end at the last step, where
    `optax.cosine_onecycle_schedule` peaks one step later and does not reach its end. Smith and
    Topin, Super-Convergence, https://arxiv.org/abs/1708.07120.
    """

    warmup_fraction: float = 0.3
    """Fraction of the run until the peak (PyTorch's pct_start), if `warmup_steps` is 0."""
    initial_factor: float = 1 / 25
    """Initial learning rate, as a fraction of the peak (PyTorch's 1 / div_factor)."""
    final_factor: float = 1 / 25 / 1e4
    """Final learning rate, as a fraction of the peak (PyTorch's initial learning rate divided by
    final_div_factor)."""

    def __post_init__(self):
        super().__post_init__()
        _check_warmup_fraction(self)
        for name in ("initial_factor", "final_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    def build(self, learning_rate: float, *, total_steps: int) -> optax.Schedule:
        """Returns the optax schedule of a run of `total_steps` steps, with a peak."""
        peak = (self.warmup_steps or self.warmup_fraction * total_steps) - 1  # between two steps
        rising, falling = max(peak, 1), total_steps - 1 - peak

        def schedule(count: Any) -> jax.Array:
            step = jnp.asarray(count, float)
            rises = step < peak
            distance = jnp.where(rises, 1 - step / rising, (step - peak) / falling)
            end = learning_rate * jnp.where(rises, self.initial_factor, self.final_factor)
            cosine = jnp.cos(jnp.pi * jnp.minimum(distance, 1))
            return end + (learning_rate - end) / 2 * (1 + cosine)

        return schedule


def _check_warmup_fraction(schedule: LinearDecay | OneCycle) -> None:
    fraction, steps = schedule.warmup_fraction, schedule.warmup_steps
    if not 0 <= fraction < 1:
        raise UserError(f"warmup_fraction must be in [0, 1), got {fraction}")
    if steps and fraction not in (0, type(schedule).warmup_fraction):
        raise UserError(
            f"warmup_steps and warmup_fraction are mutually exclusive, got {steps} and {fraction}; "
            "set one of them to 0"
        )

"""Optimizers and learning-rate schedules as values, with PyTorch's arithmetic.

An update is `parameter ← parameter − learning_rate · direction`: the optimizer gives the direction,
the schedule the learning rate, counted in optimizer steps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from flaxdl.errors import UserError
from flaxdl.weights.names import pattern_mask


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Base class, and the constant schedule."""

    def factor(self, step: jax.Array, total_steps: int) -> jax.Array:
        """What the peak learning rate is multiplied with at a step (the first is 0)."""
        return jnp.ones(jnp.shape(step), float)

    def check(self, total_steps: int) -> None:
        """Checks that the schedule fits a run of so many steps.

        Raises:
            UserError: if the run would end before it has come to its peak.
        """


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine from the peak down, as `torch.optim.lr_scheduler.CosineAnnealingLR`.

    Loshchilov and Hutter, SGDR, https://arxiv.org/abs/1608.03983.
    """

    warmup_steps: int = 0
    """Steps over which the learning rate first rises linearly from zero to the peak."""
    decay_steps: int | None = None
    """Steps of the descent (PyTorch's T_max); by default the rest of the run."""
    final_factor: float = 0.0
    """Where the descent ends, as a share of the peak."""

    def __post_init__(self):
        if self.warmup_steps < 0:
            raise UserError(f"warmup_steps must not be negative, got {self.warmup_steps}")
        if self.decay_steps is not None and self.decay_steps < 1:
            raise UserError(f"decay_steps must be at least 1 or None, got {self.decay_steps}")

    def check(self, total_steps: int) -> None:
        """Checks that the run is longer than the warm-up.

        Raises:
            UserError: if it is not.
        """
        if self.warmup_steps >= total_steps:
            raise UserError(
                f"schedule.warmup_steps {self.warmup_steps} must be less than the {total_steps} "
                f"steps of the run; set --optimizer.schedule.warmup-steps"
            )

    def factor(self, step: jax.Array, total_steps: int) -> jax.Array:
        """Rises from `1 / warmup_steps` and falls along the cosine."""
        decay_steps = self.decay_steps
        if decay_steps is None:
            decay_steps = max(total_steps - self.warmup_steps, 1)
        progress = jnp.clip((step - self.warmup_steps) / decay_steps, 0.0, 1.0)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        decayed = self.final_factor + (1 - self.final_factor) * cosine
        return jnp.where(step < self.warmup_steps, (step + 1) / max(self.warmup_steps, 1), decayed)


@dataclass(frozen=True, kw_only=True)
class LinearDecay(Schedule):
    """Straight up to the peak and straight down to zero, as BERT is fine-tuned."""

    warmup_fraction: float = 0.1
    """Share of the run over which the learning rate rises."""

    def __post_init__(self):
        if not 0 <= self.warmup_fraction < 1:
            raise UserError(f"warmup_fraction must be in [0, 1), got {self.warmup_fraction}")

    def factor(self, step: jax.Array, total_steps: int) -> jax.Array:
        """Rises from `1 / warmup_steps`, and would be zero one step after the last."""
        warmup_steps = round(self.warmup_fraction * total_steps)
        rising = (step + 1) / max(warmup_steps, 1)
        falling = (total_steps - step) / (total_steps - warmup_steps)
        return jnp.clip(jnp.where(step < warmup_steps, rising, falling), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class StepDecay(Schedule):
    """The learning rate drops at milestones, as in `torch.optim.lr_scheduler.MultiStepLR`."""

    milestones: tuple[float, ...] = (1 / 3, 2 / 3)
    """Where it drops, as shares of the run."""
    decay: float = 0.1
    """What it is multiplied with each time."""

    def __post_init__(self):
        if not all(0 < milestone < 1 for milestone in self.milestones):
            raise UserError(f"milestones must be shares of the run, got {self.milestones}")

    def factor(self, step: jax.Array, total_steps: int) -> jax.Array:
        """`decay` to the power of the milestones that have been passed."""
        drops = [round(milestone * total_steps) for milestone in self.milestones]
        return jnp.float32(self.decay) ** sum(jnp.asarray(step >= drop, int) for drop in drops)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Base class: what every optimizer has."""

    learning_rate: float
    """The peak learning rate."""
    schedule: Schedule = Schedule()
    """How the learning rate moves over the run."""
    weight_decay: float = 0.0
    """Strength of the pull of the parameters towards zero."""
    no_decay: tuple[str, ...] = ()
    """Patterns over PyTorch's parameter names that weight decay leaves out, as in '*.bias'."""
    clip_norm: float | None = None
    """Largest global norm of the gradients; longer ones are shortened to it."""
    layer_decay: float = 1.0
    """What the learning rate is multiplied with from each layer to the one before it."""
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"
    """Format of the running mean of the gradient; 16 bits save 2 bytes a parameter. Adam's mean
    square stays as it is, since steps of a thousandth would be lost in 8 bits of fraction."""

    def __post_init__(self):
        for name in ("learning_rate", "weight_decay"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
            if not getattr(self, name) < math.inf:
                raise UserError(f"{name} must be finite, got {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay must be in (0, 1], got {self.layer_decay}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(f"clip_norm must be positive or None, got {self.clip_norm}")

    def learning_rate_at(self, step: jax.Array, total_steps: int) -> jax.Array:
        """The learning rate of an optimizer step (the first is 0)."""
        return self.learning_rate * self.schedule.factor(step, total_steps)

    def direction(self, params: Mapping[str, Any]) -> optax.GradientTransformation:
        """The transformation from clipped gradients to the direction of the update.

        Args:
            params: the parameters, or their shapes; patterns are matched against their names, and
                None stands for those that are frozen.

        Raises:
            UserError: if a pattern of `no_decay` matches no parameter.
        """
        raise NotImplementedError(f"{type(self).__name__}.direction")

    def clip(self, gradients: Any, norm: jax.Array) -> Any:
        """The gradients, shortened where their global norm exceeds `clip_norm`.

        As `torch.nn.utils.clip_grad_norm_`, which guards the division by 1e-6.
        """
        if self.clip_norm is None:
            return gradients
        factor = jnp.minimum(self.clip_norm / (norm + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients)

    @property
    def _momentum_dtype(self) -> Any:
        # None is the format of the parameter, so that float64 stays float64.
        return jnp.bfloat16 if self.momentum_dtype == "bfloat16" else None

    def _decay(self, params: Mapping[str, Any]) -> optax.GradientTransformation:
        excluded = pattern_mask(params, self.no_decay, field="optimizer.no_decay")
        if self.weight_decay == 0.0:
            return optax.identity()
        decayed = jax.tree.map(lambda matches: not matches, excluded)
        return optax.add_decayed_weights(self.weight_decay, mask=decayed)


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam; weight decay, if any, is added to the gradient, as in `torch.optim.Adam`.

    Kingma and Ba, https://arxiv.org/abs/1412.6980.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    epsilon: float = 1e-8
    """Added to the root of the mean square."""

    def direction(self, params: Mapping[str, Any]) -> optax.GradientTransformation:
        """L2 decay, then Adam."""
        return optax.chain(self._decay(params), self._adam())

    def _adam(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(
            *self.betas, eps=self.epsilon, eps_root=0.0, mu_dtype=self._momentum_dtype
        )


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, as `torch.optim.AdamW`.

    Loshchilov and Hutter, https://arxiv.org/abs/1711.05101.
    """

    weight_decay: float = 0.01

    def direction(self, params: Mapping[str, Any]) -> optax.GradientTransformation:
        """Adam, then decay."""
        return optax.chain(self._adam(), self._decay(params))


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Gradient descent with momentum, as `torch.optim.SGD` (without dampening)."""

    learning_rate: float = 0.1
    momentum: float = 0.9
    """Share of the last direction that is kept."""
    nesterov: bool = False
    """Look ahead along the momentum."""

    def direction(self, params: Mapping[str, Any]) -> optax.GradientTransformation:
        """L2 decay, then momentum."""
        if not self.momentum:
            return self._decay(params)
        trace = optax.trace(self.momentum, self.nesterov, self._momentum_dtype)
        return optax.chain(self._decay(params), trace)

"""Exponential moving average (EMA) of the parameters and of the model's statistics."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from flaxdl.errors import UserError


class Average(struct.PyTreeNode):
    """Moving averages, with the structure of the parameters and of the model state."""

    params: Any
    model_state: Any


@dataclass(frozen=True, kw_only=True)
class EMA:
    """Exponential moving average (EMA) of the parameters and of BatchNorm's statistics.

    After an update of the optimizer, `average = decay * average + (1 - decay) * value`; the first
    time, the average is a copy. It is what evaluation, prediction and export use, while training
    itself and its metrics do not depend on it. Equivalent to `torch.optim.swa_utils.AveragedModel`
    with `get_ema_avg_fn(decay)` and `use_buffers=True`, updated as in torchvision's training
    script. Integers in the model state are copied.

    Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
    """

    decay: float | None = None
    """Decay of the averages per update, such as 0.999; None disables averaging."""
    every: int = 1
    """Number of optimizer updates per update of the averages; the first one always counts."""
    warmup_steps: int = 0
    """Number of optimizer updates at the start during which the averages are plain copies."""

    def __post_init__(self):
        if self.decay is None:
            if (self.every, self.warmup_steps) != (1, 0):
                raise UserError(
                    "ema.every and ema.warmup_steps need ema.decay, and without it must be 1 and "
                    f"0, got {self.every!r} and {self.warmup_steps!r}"
                )
        elif not _is_number(self.decay, Real) or not 0 < self.decay < 1:
            raise UserError(f"ema.decay must be a number in (0, 1) or None, got {self.decay!r}")
        for name, least in (("every", 1), ("warmup_steps", 0)):
            value = getattr(self, name)
            if not _is_number(value, Integral) or value < least:
                raise UserError(f"ema.{name} must be an integer, at least {least}, got {value!r}")

    def check(self, total_steps: int) -> None:
        """Checks that a run of `total_steps` steps averages over more than one update.

        Raises:
            UserError: if all updates of the averages would be copies.
        """
        if self.decay is not None and self.warmup_steps + self.every >= total_steps:
            raise UserError(
                f"ema.warmup_steps + ema.every must be less than the {total_steps} steps of the "
                f"run, got {self.warmup_steps} + {self.every}"
            )

    def start(self, params: Any, model_state: Any) -> Average | None:
        """Returns the averages before the first update, as copies; None if they are disabled."""
        if self.decay is None:
            return None
        return jax.tree.map(jnp.copy, Average(params, model_state))

    def update(
        self, average: Average | None, params: Any, model_state: Any, updates: jax.Array
    ) -> Average | None:
        """Returns the averages after an update of the optimizer; None if they are disabled.

        Args:
            average: previous averages.
            params: updated parameters.
            model_state: updated model state.
            updates: number of optimizer updates before this one.
        """
        if self.decay is None or average is None:
            return None
        rate = 1 - float(self.decay)
        # The first update after the warmup is a copy too, since AveragedModel starts with it.
        is_copied = updates < self.warmup_steps + self.every

        def move(old: jax.Array, new: jax.Array) -> jax.Array:
            if not jnp.issubdtype(new.dtype, jnp.inexact):
                return new
            # In this form, the average of a value that does not change is exactly that value.
            return jnp.where(is_copied, new, old + rate * (new - old))

        return jax.lax.cond(
            updates % self.every == 0,
            lambda: jax.tree.map(move, average, Average(params, model_state)),
            lambda: average,
        )


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)

"""Optimizers with the arithmetic of PyTorch's, as values that build optax transformations."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from flaxdl.errors import UserError
from flaxdl.training.chains import chain, clip_by_norm, scale_by_layer
from flaxdl.training.muon import matrices, orthogonalize
from flaxdl.training.schedules import Schedule
from flaxdl.weights.names import pattern_mask


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Base class of optimizers: values from which `build` makes an optax transformation.

    To train with another transformation of optax, define a frozen dataclass with a `direction`;
    clipping, schedule, layer-wise learning rates and freezing then work as in every optimizer::

        @dataclass(frozen=True, kw_only=True)
        class Factored(Optimizer):
            def direction(self, params):
                return optax.chain(optax.scale_by_factored_rms(), self.decay(params))

    Or with a `build`, which replaces the whole chain and uses the fields that it needs::

        @dataclass(frozen=True, kw_only=True)
        class Adafactor(Optimizer):
            def build(self, params, *, total_steps, create=None):
                return optax.adafactor(self.learning_rates(total_steps))

    Transformations whose update needs the loss, such as line searches, and those that train other
    parameters than should be evaluated, such as `schedule_free`, are refused.
    """

    learning_rate: float
    """Learning rate at the peak of the schedule."""
    schedule: Schedule = Schedule()
    """Learning-rate schedule."""
    weight_decay: float = 0.0
    """Weight decay coefficient."""
    no_decay: tuple[str, ...] = ()
    """Patterns of PyTorch parameter names to exclude from weight decay, such as `*.bias`."""
    clip_norm: float | None = None
    """Maximum global norm of the gradients (gradient clipping); None disables clipping."""
    layer_decay: float = 1.0
    """Layer-wise learning-rate decay: factor from each layer to the one before it."""
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the first moment (momentum); bfloat16 saves 2 bytes per parameter. Adam's second
    moment keeps its dtype: bfloat16 cannot resolve its relative updates of 1e-3."""

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

    def build(
        self,
        params: Mapping[str, Any],
        *,
        total_steps: int,
        create: Callable[[], Any] | None = None,
    ) -> optax.GradientTransformation:
        """Returns the optax transformation from gradients to updates, as the trainer applies it.

        It clips, computes the direction (moments and weight decay), multiplies it by the factors of
        `layer_decay`, and scales it by the negative learning rate.

        >>> params = {"fc": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
        >>> gradients = jax.grad(lambda params: params["fc"]["kernel"].sum())(params)
        >>> optimizer = flaxdl.training.AdamW(learning_rate=0.1, clip_norm=1.0)
        >>> transformation = optimizer.build(params, total_steps=100)
        >>> state = transformation.init(params)
        >>> for step in range(3):
        ...     updates, state = transformation.update(gradients, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> int(state.schedule.count), round(float(params["fc"]["kernel"][0, 0]), 3)
        (3, 0.697)

        Args:
            params: the parameters or their shapes, with None for frozen ones, as from
                `flaxdl.training.freezing.split`; patterns are matched against their names.
            total_steps: length of the run, for the schedule.
            create: a function that initializes the model's variables, such as
                `partial(model.init, key, inputs)`, which `layer_decay` needs to order the layers;
                it is only traced for shapes.

        Raises:
            UserError: if a pattern of `no_decay` matches no parameter.
        """
        return chain(
            clip_by_norm(self.clip_norm),
            self.direction(params),
            scale_by_layer(create, self.layer_decay),
            optax.scale_by_learning_rate(self.learning_rates(total_steps)),
        )

    def learning_rates(self, total_steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of the number of updates so far."""
        return self.schedule.build(self.learning_rate, total_steps=total_steps)

    def direction(self, params: Mapping[str, Any]) -> optax.GradientTransformation:
        """Returns the transformation from clipped gradients to the direction of the update.

        An update is `parameter ← parameter − learning_rate · direction`.

        Args:
            params: the parameters or their shapes, with None for frozen ones.

        Raises:
            UserError: if a pattern of `no_decay` matches no parameter.
        """
        raise NotImplementedError(f"{type(self).__name__}.direction")

    def decay(self, params: Mapping[str, Any]) -> optax.GradientTransformation:
        """Returns the transformation that adds `weight_decay` times the parameters to the updates.

        Raises:
            UserError: if a pattern of `no_decay` matches no parameter.
        """
        excluded = pattern_mask(params, self.no_decay, field="optimizer.no_decay")
        if self.weight_decay == 0.0:
            return optax.identity()
        decayed = jax.tree.map(lambda matches: not matches, excluded)
        return optax.add_decayed_weights(self.weight_decay, mask=decayed)

    @property
    def _momentum_dtype(self) -> Any:
        # None means the dtype of the parameter, so float64 stays float64.
        return jnp.bfloat16 if self.momentum_dtype == "bfloat16" else None


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam, with L2 weight decay added to the gradient, as in `torch.optim.Adam`.

    Kingma and Ba, https://arxiv.org/abs/1412.6980.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moments."""
    epsilon: float = 1e-8
    """Constant added to the square root of the second moment."""

    def __post_init__(self):
        super().__post_init__()
        _check_betas(self.betas)

    def direction(self, params: Mapping[str, Any]) -> optax.GradientTransformation:
        """Returns L2 decay followed by Adam."""
        return optax.chain(self.decay(params), self._adam())

    def _adam(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(
            *self.betas, eps=self.epsilon, eps_root=0.0, mu_dtype=self._momentum_dtype
        )


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, as in `torch.optim.AdamW`.

    >>> optimizer = flaxdl.training.AdamW(
    ...     learning_rate=2e-3,
    ...     schedule=flaxdl.training.Cosine(warmup_steps=100),
    ...     no_decay=("*.bias",),
    ... )

    Loshchilov and Hutter, https://arxiv.org/abs/1711.05101.
    """

    weight_decay: float = 0.01

    def direction(self, params: Mapping[str, Any]) -> optax.GradientTransformation:
        """Returns Adam followed by decoupled weight decay."""
        return optax.chain(self._adam(), self.decay(params))


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Gradient descent with momentum, as in `torch.optim.SGD` (without dampening)."""

    learning_rate: float = 0.1
    momentum: float = 0.9
    """Momentum factor."""
    nesterov: bool = False
    """Nesterov momentum instead of classical momentum."""

    def direction(self, params: Mapping[str, Any]) -> optax.GradientTransformation:
        """Returns L2 decay followed by momentum."""
        if not self.momentum:
            return self.decay(params)
        trace = optax.trace(self.momentum, self.nesterov, self._momentum_dtype)
        return optax.chain(self.decay(params), trace)


@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Lion, the sign of an interpolated momentum, with decoupled weight decay.

    Its updates are larger than Adam's, so it needs a learning rate 3 to 10 times smaller and a
    weight decay as many times larger. Chen et al., https://arxiv.org/abs/2302.06675.
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    """Weight of the momentum in the update, and decay rate of the momentum."""

    def __post_init__(self):
        super().__post_init__()
        _check_betas(self.betas)

    def direction(self, params: Mapping[str, Any]) -> optax.GradientTransformation:
        """Returns Lion followed by decoupled weight decay."""
        lion = optax.scale_by_lion(*self.betas, mu_dtype=self._momentum_dtype)
        return optax.chain(lion, self.decay(params))


@dataclass(frozen=True, kw_only=True)
class Muon(AdamW):
    """Muon for the matrices of hidden layers, AdamW for all other parameters.

    Muon updates matrices by orthogonalized Nesterov momentum. The kernel of a convolution counts as
    the matrix of its output features and all other axes, and several matrices in one array, such as
    `in_proj_weight` or the gates of an LSTM, as one. AdamW updates biases, normalization parameters
    and embeddings, and the parameters that `adamw` names.

    Muon's updates have the root mean square of AdamW's, so both use the same learning rate and
    weight decay: `adjust_lr_fn="match_rms_adamw"` of `torch.optim.Muon`, which computes in bfloat16
    where this class uses the dtype of the parameters. Jordan et al.,
    https://kellerjordan.github.io/posts/muon/.
    """

    weight_decay: float = 0.1
    momentum: float = 0.95
    """Momentum factor of Muon's updates."""
    adamw: tuple[str, ...] = ()
    """Patterns of PyTorch parameter names that AdamW updates in addition to biases, normalization
    parameters and embeddings: at least the output layer, such as 'fc.*'."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum must be in [0, 1), got {self.momentum}")

    def direction(self, params: Mapping[str, Any]) -> optax.GradientTransformation:
        """Returns Muon and Adam, each for its parameters, followed by decoupled weight decay.

        Raises:
            UserError: if `adamw` is empty, or a pattern matches no parameter.
        """
        if not self.adamw:
            raise UserError(
                "optimizer.adamw must name the output layer, such as ('fc.*',), which Muon should "
                "not update, got ()"
            )
        is_matrix = matrices(params, self.adamw)
        is_other = jax.tree.map(lambda is_matrix: not is_matrix, is_matrix)
        trace = optax.trace(self.momentum, nesterov=True, accumulator_dtype=self._momentum_dtype)
        return optax.chain(
            optax.masked(optax.chain(trace, orthogonalize()), is_matrix),
            optax.masked(self._adam(), is_other),
            self.decay(params),
        )


def _check_betas(betas: tuple[float, float]) -> None:
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"betas must be two numbers in [0, 1), got {betas}")

"""The initial state, the training step and the evaluation step of a run, as pure functions.

Under `jit` over a mesh the batch is split over the devices and every sum over it is global, so
gradients, BatchNorm statistics and metrics are those of the whole batch on any number of devices.
Under `pmap` each device has its own part of the batch, and the sums are taken by name of the axis.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.ops.reductions import global_norm
from flaxdl.training.distributed.placement import Placement, gathered
from flaxdl.training.freezing import inference_where_frozen, merge, split
from flaxdl.training.layer_decay import learning_rate_factors
from flaxdl.training.metrics import MetricSums
from flaxdl.training.optimizers import Optimizer
from flaxdl.training.precision import (
    LossScale,
    Precision,
    matmul_precision,
    to_compute_dtype,
)
from flaxdl.training.state import TrainState
from flaxdl.training.tasks import Task, check_metrics, weighted

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The pure functions of a run; the fields are what does not change from step to step.

    `jax.jit(steps.train, donate_argnums=0)` is all it takes to train with one. Randomness is a
    function of the seed and the step, so that no key has to be kept.
    """

    model: nn.Module
    task: Task
    optimizer: Optimizer
    total_steps: int
    """Length of the run, which the learning-rate schedule is stretched over."""
    precision: Precision = "float32"
    seed: int = 0
    freeze: tuple[str, ...] = ()
    """Patterns over PyTorch's parameter names: what is not trained."""
    thaw_step: int | None = None
    """From this step on everything is trained; None freezes for the whole run."""
    accumulate_steps: int = 1
    """Parts that a batch is split into, one computed after the other; each saves memory."""
    mesh: jax.sharding.Mesh | None = None
    """Under `jit`, the devices over which the arrays are laid."""
    axis: str | None = None
    """Under `pmap`, the name of the axis of devices."""
    normalize: Callable[[jax.Array], jax.Array] = lambda inputs: inputs
    """Applied to the inputs on the device, so that images can travel as bytes."""

    @property
    def thawed(self) -> "Steps":
        """These functions from `thaw_step` on."""
        return replace(self, freeze=(), thaw_step=None)

    def is_thawed_at(self, step: int) -> bool:
        """Whether this step (the first is 0) trains what was frozen before."""
        return self.thaw_step is not None and step >= self.thaw_step

    def behind(self, step: int) -> "Steps":
        """The functions that made the state after so many steps, and know its structure."""
        return self.thawed if self.is_thawed_at(step - 1) else self

    def thaw(self, state: TrainState) -> TrainState:
        """The state at `thaw_step` as the steps to come need it.

        The optimizer begins anew: running means that are zero for a part of the parameters, beside
        a count of steps that is not, would make the first updates of that part too long.
        """
        fresh = self.optimizer.direction(state.params).init(state.params)
        return state.replace(optimizer_state=fresh)

    def initial_state(self, examples: Mapping[str, jax.ShapeDtypeStruct]) -> TrainState:
        """The state before the first step.

        Args:
            examples: shapes and dtypes of a batch as the data pipeline gives it, of any size.

        Raises:
            UserError: if the model refuses the shapes, a pattern of the optimizer, of `freeze` or
                of the model's `tensor_axes` matches no parameter, nothing is left to train, or
                the task's metrics lack a loss or have a name that is taken.
        """
        batch = {  # as JAX takes it: 64-bit numbers of a user's own data become 32-bit ones
            name: jnp.zeros(array.shape, jax.dtypes.canonicalize_dtype(array.dtype))
            for name, array in examples.items()
        }
        inputs, keywords = self._model_arguments(batch)
        variables = dict(self._initialize(batch))
        params = variables.pop("params")
        if self.mesh is not None:
            Placement.of(self.model, self.mesh).check(params)
        trainable, _ = split(params, self.freeze)
        outputs = self.model.apply({"params": params, **variables}, inputs, **keywords)
        metrics = self.task.metrics(outputs, batch)
        check_metrics(self.task, metrics)
        return TrainState(
            step=jnp.int32(0),
            skipped=jnp.int32(0),
            updates=jnp.int32(0),
            bad_steps=jnp.int32(0),
            params=params,
            model_state=variables,
            optimizer_state=self.optimizer.direction(trainable).init(trainable),
            loss_scale=LossScale.create() if self.precision == "float16" else None,
            sums=MetricSums.zeros(metrics),
            gradient_norm=jnp.float32(0),
            learning_rate=jnp.float32(0),
        )

    def train(self, state: TrainState, batch: Batch) -> TrainState:
        """One optimizer step; where loss, gradients or statistics are not finite, none is taken."""
        trainable, frozen = split(state.params, self.freeze)
        gradients, divisor, sums, model_state = self._gradients(state, trainable, frozen, batch)
        norm = global_norm(gradients, self.mesh) / divisor
        finite = jnp.isfinite(norm) & jnp.isfinite(sums.values["loss"])
        for statistics in jax.tree.leaves(model_state):  # those of huge values overflow first
            finite &= jnp.all(jnp.isfinite(statistics))

        def move() -> TrainState:
            # A product, since a quotient would be written down before it is used twice.
            of_mean = jax.tree.map(lambda g: g * (1 / divisor.astype(g.dtype)), gradients)
            direction, optimizer_state = self.optimizer.direction(trainable).update(
                self.optimizer.clip(of_mean, norm), state.optimizer_state, trainable
            )
            learning_rate = self.optimizer.learning_rate_at(state.updates, self.total_steps)
            if self.optimizer.layer_decay < 1:
                create = partial(self._initialize, batch)
                factors, _ = split(
                    learning_rate_factors(create, self.optimizer.layer_decay), self.freeze
                )
                direction = jax.tree.map(lambda d, factor: d * factor, direction, factors)
            trained = jax.tree.map(
                lambda p, d: p - (learning_rate.astype(d.dtype) * d).astype(p.dtype),
                trainable,
                direction,
            )
            return state.replace(
                updates=state.updates + 1,
                bad_steps=jnp.int32(0),
                params=merge(trained, frozen),
                model_state=model_state,
                optimizer_state=optimizer_state,
                sums=state.sums + sums,
                gradient_norm=norm.astype(jnp.float32),
                learning_rate=learning_rate.astype(jnp.float32),
            )

        def stay() -> TrainState:
            return state.replace(bad_steps=state.bad_steps + 1)

        # A branch, and no choice value by value, which needs the old values after the new ones.
        new = jax.lax.cond(finite, move, stay)
        return new.replace(
            step=state.step + 1,
            loss_scale=state.loss_scale and state.loss_scale.update(finite),
        )

    def _gradients(
        self, state: TrainState, trainable: Any, frozen: Any, batch: Batch
    ) -> tuple[Any, jax.Array, MetricSums, Any]:
        """Gradients, what they are to be divided by, metrics, and the new model state.

        The quotient is the gradient of the mean loss of the whole batch; it is left to be taken on
        the way, since a pass over all parameters costs as much as their update. The mean is a sum
        over the examples by the sum of their weights, so that parts of a batch, on other devices or
        one after the other, can be added up whatever weights they have.
        """
        scale = jnp.float32(1) if state.loss_scale is None else state.loss_scale.scale

        def scaled_sum(trainable: Any, model_state: Any, part: Batch, key: jax.Array) -> Any:
            params = merge(trainable, frozen)
            with inference_where_frozen(trainable):
                outputs, model_state = self._apply(params, model_state, part, key)
            losses, weights = self.task.losses(outputs, part)
            sums = MetricSums.of(self.task.metrics(outputs, part))
            # By their number, so that float16 gradients are of the size of those of a mean.
            return jnp.mean(weighted(losses, weights)) * scale, (
                jnp.mean(weights),
                sums,
                model_state,
            )

        def gradients_of(model_state: Any, part: Batch, key: jax.Array) -> tuple[Any, Any]:
            with matmul_precision(self.precision):
                gradients, (weight, sums, model_state) = jax.grad(scaled_sum, has_aux=True)(
                    trainable, model_state, part, key
                )
            return model_state, (gradients, weight, sums)

        key = self._key(state.step + 1)
        if self.axis is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(self.axis))
        if self.accumulate_steps == 1:
            model_state, added = gradients_of(state.model_state, batch, key)
        else:
            model_state, added = self._added_up(gradients_of, state.model_state, batch, key)
        if self.axis is not None:
            added = jax.lax.psum(added, self.axis)
            model_state = jax.lax.pmean(model_state, self.axis)
        gradients, weight, sums = added
        return gradients, weight * scale, sums, model_state

    def _added_up(
        self, gradients_of: Callable[..., Any], model_state: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any]:
        """What `gradients_of` gives for each part of a batch, added up, and the last model state.

        A part takes every n-th example, so that each device has its share of every part.
        """
        count = self.accumulate_steps
        parts = {
            name: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)
            for name, x in batch.items()
        }
        shapes = jax.eval_shape(gradients_of, model_state, {n: x[0] for n, x in parts.items()}, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[1])

        def add(carry: Any, numbered_part: Any) -> tuple[Any, None]:
            model_state, added = carry
            number, part = numbered_part
            model_state, more = gradients_of(model_state, part, jax.random.fold_in(key, number))
            return (model_state, jax.tree.map(jnp.add, added, more)), None

        carry, _ = jax.lax.scan(add, (model_state, zeros), (jnp.arange(count), parts))
        return carry

    def evaluate(self, state: TrainState, sums: MetricSums, batch: Batch) -> MetricSums:
        """Adds the metrics of one batch, in inference mode, to `sums`."""
        outputs = self.predict(state, batch)
        return sums + MetricSums.of(self.task.metrics(outputs, batch))

    def predict(self, state: TrainState, batch: Batch) -> Any:
        """The model's outputs in inference mode."""
        with matmul_precision(self.precision):
            return self._apply(state.params, state.model_state, batch, key=None)[0]

    def _initialize(self, batch: Batch) -> Mapping[str, Any]:
        inputs, keywords = self._model_arguments(batch)
        return self.model.init(self._key(0), inputs, **keywords)

    def _apply(
        self, params: Any, model_state: Any, batch: Batch, key: jax.Array | None
    ) -> tuple[Any, Any]:
        """Outputs and new model state; in training mode where a key for dropout is given."""
        inputs, keywords = to_compute_dtype(self._model_arguments(batch), self.precision)
        params = to_compute_dtype(params, self.precision)
        if self.mesh is not None:
            params = gathered(params, Placement.of(self.model, self.mesh))
        variables = {"params": params, **model_state}
        if key is None:
            return self.model.apply(variables, inputs, train=False, **keywords), model_state
        return self.model.apply(
            variables,
            inputs,
            train=True,
            mutable=list(model_state),
            rngs={"dropout": key},
            **keywords,
        )

    def _model_arguments(self, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        return self.task.model_arguments({**batch, "inputs": self.normalize(batch["inputs"])})

    def _key(self, number: int | jax.Array) -> jax.Array:
        """Key 0 makes the parameters, key s + 1 the dropout masks of step s."""
        return jax.random.fold_in(jax.random.key(self.seed), number)

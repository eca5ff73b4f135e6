"""The initial state, training step and evaluation step of a run, as pure functions.

Under `jit` over a mesh, the batch is sharded and every sum over it is global, so gradients,
BatchNorm statistics and metrics are those of the whole batch on any number of devices. Under
`pmap`, each device has its own part of the batch, and sums are taken over the named axis.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxdl.ops.reductions import global_norm
from flaxdl.training.chains import check_transformation, moments_of, restarted, with_count
from flaxdl.training.distributed.placement import Placement, gather_params
from flaxdl.training.ema import EMA
from flaxdl.training.freezing import inference_where_frozen, merge, split
from flaxdl.training.metrics import EvaluationSums, MetricSums
from flaxdl.training.optimizers import Optimizer
from flaxdl.training.precision import (
    LossScale,
    Precision,
    matmul_precision,
    to_compute_dtype,
)
from flaxdl.training.state import TrainState
from flaxdl.training.tasks.losses import mixed, weighted
from flaxdl.training.tasks.task import Metrics, Task, check_evaluation_names, check_metrics

Batch = Mapping[str, jax.Array]
_AUGMENTATION = 2**32 - 1  # folded into the key of the seed; larger than the number of any step


class Keys(NamedTuple):
    """Random keys of a step, or of one of its devices or micro-batches."""

    dropout: jax.Array
    augmentation: jax.Array

    def fold_in(self, number: jax.Array) -> "Keys":
        """Returns the keys of the device or micro-batch with this number."""
        return Keys(*(jax.random.fold_in(key, number) for key in self))


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The pure functions of a run; its fields are constant from step to step.

    `jax.jit(steps.train, donate_argnums=0)` compiles the training step. Randomness is a function of
    the seed and the step, so no random key has to be stored.
    """

    model: nn.Module
    task: Task
    optimizer: Optimizer
    total_steps: int
    """Length of the run, for the learning-rate schedule."""
    precision: Precision = "float32"
    seed: int = 0
    freeze: tuple[str, ...] = ()
    """Patterns of PyTorch parameter names to freeze."""
    unfreeze_step: int | None = None
    """Step from which on all parameters are trained; None for never."""
    accumulate_steps: int = 1
    """Number of micro-batches per step (gradient accumulation)."""
    ema: EMA = EMA()
    """Moving averages of parameters and statistics, used for evaluation and prediction."""
    mesh: jax.sharding.Mesh | None = None
    """Device mesh that arrays are sharded across under `jit`."""
    axis: str | None = None
    """Under `pmap`, the name of the device axis."""
    normalize: Callable[[jax.Array], jax.Array] = lambda inputs: inputs
    """Applied to the inputs on the device, so that images are transferred as bytes."""
    augment: Callable[[Mapping[str, jax.Array], jax.Array], Mapping[str, jax.Array]] = (
        lambda batch, key: batch
    )
    """Applied to training batches with normalized inputs, given a random key."""

    @property
    def unfrozen(self) -> "Steps":
        """The functions from `unfreeze_step` on, without frozen parameters."""
        return replace(self, freeze=(), unfreeze_step=None)

    def is_unfrozen_at(self, step: int) -> bool:
        """Returns whether a step (the first is 0) trains parameters that were frozen before."""
        return self.unfreeze_step is not None and step >= self.unfreeze_step

    def for_state_at(self, step: int) -> "Steps":
        """Returns the functions that match the structure of the state after `step` steps."""
        return self.unfrozen if self.is_unfrozen_at(step - 1) else self

    def unfreeze(self, state: TrainState) -> TrainState:
        """Returns the state at `unfreeze_step` with an optimizer state for all parameters.

        The optimizer state is reset, except for the schedule. If only the newly trained parameters
        had zero moments, Adam would not correct their bias at the current step count, and their
        first updates would be too large.
        """
        fresh = moments_of(self._transformation(state.params).init(state.params))
        return state.replace(optimizer_state=restarted(fresh, state.optimizer_state))

    def initial_state(self, examples: Mapping[str, jax.ShapeDtypeStruct]) -> TrainState:
        """Returns the state before the first step.

        Args:
            examples: shapes and dtypes of a batch from the data pipeline, of any batch size.

        Raises:
            UserError: if the model rejects the shapes, a pattern of the optimizer, of `freeze` or
                of the model's `tensor_axes` matches no parameter, all parameters are frozen, the
                optimizer's transformation cannot be used, or the task's metrics lack a loss or
                have a reserved or repeated name.
        """
        batch = {  # with the dtypes that JAX will use: 32-bit for 64-bit numbers in custom data
            name: jnp.zeros(array.shape, jax.dtypes.canonicalize_dtype(array.dtype))
            for name, array in examples.items()
        }
        inputs, keywords = self.task.model_arguments(self._normalized(batch))
        variables = dict(self._initialize(batch))
        params = variables.pop("params")
        if self.mesh is not None:
            Placement.for_model(self.model, self.mesh).check(params)
        trainable, _ = split(params, self.freeze)
        transformation = self._transformation(trainable, partial(self._initialize, batch))
        kind = type(self.optimizer)
        if not kind.__module__.startswith("flaxdl."):  # tracing the update takes up to a second
            check_transformation(kind.__name__, transformation, trainable)
        outputs = self.model.apply({"params": params, **variables}, inputs, **keywords)
        metrics = self.task.metrics(outputs, batch)
        check_metrics(self.task, metrics)
        finished = self.task.finish(dict.fromkeys(metrics, 1.0))
        check_metrics(self.task, finished)
        check_evaluation_names(self.task, finished)
        return TrainState(
            step=jnp.int32(0),
            skipped=jnp.int32(0),
            updates=jnp.int32(0),
            bad_steps=jnp.int32(0),
            params=params,
            model_state=variables,
            optimizer_state=moments_of(transformation.init(trainable)),
            average=self.ema.start(params, variables),
            loss_scale=LossScale.create() if self.precision == "float16" else None,
            sums=MetricSums.zeros(metrics),
            gradient_norm=jnp.float32(0),
            learning_rate=jnp.float32(0),
        )

    def train(self, state: TrainState, batch: Batch) -> TrainState:
        """Takes a step; skips the update if loss, gradients or statistics are not finite."""
        trainable, frozen = split(state.params, self.freeze)
        gradients, divisor, sums, model_state = self._gradients(state, trainable, frozen, batch)
        norm = global_norm(gradients, self.mesh) / divisor
        finite = jnp.isfinite(norm) & jnp.isfinite(sums.values["loss"])
        for statistics in jax.tree.leaves(model_state):  # with huge values, these overflow first
            finite &= jnp.all(jnp.isfinite(statistics))

        def apply_update() -> TrainState:
            # A product: XLA would store a quotient in memory, because it is used twice.
            mean_gradients = jax.tree.map(lambda g: g * (1 / divisor.astype(g.dtype)), gradients)
            create = partial(self._initialize, batch)
            transformation = self._transformation(trainable, create)
            optimizer_state = with_count(
                transformation, trainable, state.optimizer_state, state.updates
            )
            updates, optimizer_state = transformation.update(
                mean_gradients, optimizer_state, trainable, gradient_norm=norm
            )
            learning_rate = self.optimizer.learning_rates(self.total_steps)(state.updates)
            new = state.replace(
                updates=state.updates + 1,
                bad_steps=jnp.int32(0),
                params=merge(optax.apply_updates(trainable, updates), frozen),
                model_state=model_state,
                optimizer_state=moments_of(optimizer_state),
                sums=state.sums + sums,
                gradient_norm=norm.astype(jnp.float32),
                learning_rate=jnp.asarray(learning_rate, jnp.float32),
            )
            average = self.ema.update(state.average, new.params, model_state, state.updates)
            return new.replace(average=average)

        def skip_update() -> TrainState:
            return state.replace(bad_steps=state.bad_steps + 1)

        # A branch, because an element-wise `where` would keep the old values alive in memory.
        new = jax.lax.cond(finite, apply_update, skip_update)
        return new.replace(
            step=state.step + 1,
            loss_scale=state.loss_scale and state.loss_scale.update(finite),
        )

    def _transformation(
        self, trainable: Any, create: Callable[[], Any] | None = None
    ) -> optax.GradientTransformationExtraArgs:
        transformation = self.optimizer.build(
            trainable, total_steps=self.total_steps, create=create
        )
        return optax.with_extra_args_support(transformation)

    def _gradients(
        self, state: TrainState, trainable: Any, frozen: Any, batch: Batch
    ) -> tuple[Any, jax.Array, MetricSums, Any]:
        """Returns gradients and their divisor, metrics, and the new model state.

        The quotient is the gradient of the mean loss over the whole batch. The caller fuses the
        division into the update, because a separate pass over all parameters costs as much as their
        update. Sums of losses and of weights are kept apart so that the parts of a batch (devices
        or micro-batches) can be added up whatever their weights.
        """
        scale = jnp.float32(1) if state.loss_scale is None else state.loss_scale.scale

        def scaled_loss(trainable: Any, model_state: Any, batch: Batch, keys: Keys) -> Any:
            params = merge(trainable, frozen)
            with inference_where_frozen(trainable):
                outputs, batch, model_state = self.forward(params, model_state, batch, keys)
            losses, weights = mixed(self.task.losses, outputs, batch)
            sums = MetricSums.of(self._training_metrics(outputs, batch))
            # The mean, not the sum, so that float16 gradients are not larger than usual.
            return jnp.mean(weighted(losses, weights)) * scale, (
                jnp.mean(weights),
                sums,
                model_state,
            )

        def gradient_fn(model_state: Any, batch: Batch, keys: Keys) -> tuple[Any, Any]:
            with matmul_precision(self.precision):
                gradients, (weight, sums, model_state) = jax.grad(scaled_loss, has_aux=True)(
                    trainable, model_state, batch, keys
                )
            return model_state, (gradients, weight, sums)

        keys = self.keys(state.step)
        if self.axis is not None:
            keys = keys.fold_in(jax.lax.axis_index(self.axis))
        if self.accumulate_steps == 1:
            model_state, totals = gradient_fn(state.model_state, batch, keys)
        else:
            model_state, totals = self._accumulate(gradient_fn, state.model_state, batch, keys)
        if self.axis is not None:
            totals = jax.lax.psum(totals, self.axis)
            model_state = jax.lax.pmean(model_state, self.axis)
        gradients, weight, sums = totals
        return gradients, weight * scale, sums, model_state

    def _accumulate(
        self, gradient_fn: Callable[..., Any], model_state: Any, batch: Batch, keys: Keys
    ) -> tuple[Any, Any]:
        """Returns the last model state, and the sum over micro-batches of `gradient_fn`.

        A micro-batch is every n-th example, so that each one is spread over all devices.
        """
        count = self.accumulate_steps
        micro_batches = {
            name: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)
            for name, x in batch.items()
        }
        first = {name: x[0] for name, x in micro_batches.items()}
        shapes = jax.eval_shape(gradient_fn, model_state, first, keys)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[1])

        def add(carry: Any, numbered_batch: Any) -> tuple[Any, None]:
            model_state, totals = carry
            number, micro_batch = numbered_batch
            model_state, more = gradient_fn(model_state, micro_batch, keys.fold_in(number))
            return (model_state, jax.tree.map(jnp.add, totals, more)), None

        carry, _ = jax.lax.scan(add, (model_state, zeros), (jnp.arange(count), micro_batches))
        return carry

    def keys(self, step: jax.Array) -> Keys:
        """Returns the random keys of a training step."""
        augmentation = jax.random.fold_in(self._key(_AUGMENTATION), step)
        return Keys(dropout=self._key(step + 1), augmentation=augmentation)

    def forward(
        self, params: Any, model_state: Any, batch: Batch, keys: Keys
    ) -> tuple[Any, Batch, Any]:
        """Returns the model's outputs in training mode, the augmented batch, and the model state.

        The returned batch is that for the task; its `inputs` are the original ones, before
        normalization and augmentation.
        """
        augmented = self.augment(self._normalized(batch), keys.augmentation)
        outputs, model_state = self._apply(params, model_state, augmented, keys.dropout)
        return outputs, {**augmented, "inputs": batch["inputs"]}, model_state

    def evaluate(
        self, state: TrainState, sums: EvaluationSums, batch: Batch
    ) -> tuple[EvaluationSums, dict[str, jax.Array]]:
        """Evaluates one batch in inference mode.

        Returns:
            `sums` plus those of the batch; and the task's rows of the batch, [B, ...], with their
            `weight`, or nothing if the task has none.
        """
        outputs = self.predict(state, batch)
        rows = self.task.evaluation_rows(outputs, batch)
        more = EvaluationSums(
            metrics=MetricSums.of(self.task.metrics(outputs, batch)),
            totals=self.task.evaluation_totals(outputs, batch),
        )
        return sums + more, {**rows, "weight": batch["weight"]} if rows else {}

    def evaluation_totals(self, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        """Returns the task's totals of one batch in inference mode."""
        return self.task.evaluation_totals(self.predict(state, batch), batch)

    def tuning_rows(self, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        """Returns the task's tuning rows of one batch in inference mode, with their `weight`."""
        rows = self.task.tuning_rows(self.predict(state, batch), batch)
        return {**rows, "weight": batch["weight"]}

    def predict(self, state: TrainState, batch: Batch) -> Any:
        """Returns the model's outputs in inference mode, with EMA those of the averages."""
        state = state.averaged
        with matmul_precision(self.precision):
            batch = self._normalized(batch)
            return self._apply(state.params, state.model_state, batch, key=None)[0]

    def _training_metrics(self, outputs: Any, batch: Batch) -> Metrics:
        """Returns the metrics of a batch in which examples may be mixed.

        The loss is that of both classes; other metrics compare with the class of the larger part.
        """
        metrics = self.task.metrics(outputs, batch)
        if "mix" not in batch:
            return metrics
        loss = mixed(lambda *arguments: self.task.metrics(*arguments)["loss"], outputs, batch)
        return {**metrics, "loss": loss}

    def _initialize(self, batch: Batch) -> Mapping[str, Any]:
        inputs, keywords = self.task.model_arguments(self._normalized(batch))
        return self.model.init(self._key(0), inputs, **keywords)

    def _apply(
        self, params: Any, model_state: Any, batch: Batch, key: jax.Array | None
    ) -> tuple[Any, Any]:
        """Returns outputs and new model state for normalized inputs.

        The model is in training mode if given a key for dropout.
        """
        inputs, keywords = to_compute_dtype(self.task.model_arguments(batch), self.precision)
        params = to_compute_dtype(params, self.precision)
        if self.mesh is not None:
            params = gather_params(params, Placement.for_model(self.model, self.mesh))
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

    def _normalized(self, batch: Batch) -> Batch:
        return {**batch, "inputs": self.normalize(batch["inputs"])}

    def _key(self, number: int | jax.Array) -> jax.Array:
        """Returns a random key: 0 for the initial parameters, s + 1 for dropout in step s."""
        return jax.random.fold_in(jax.random.key(self.seed), number)

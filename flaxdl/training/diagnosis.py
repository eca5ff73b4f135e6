"""Diagnosis of a diverged run: location of the first NaN or infinity."""

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.ops.reductions import global_norm
from flaxdl.training.distributed.parallel import gather_examples
from flaxdl.training.distributed.placement import put_batch
from flaxdl.training.freezing import inference_where_frozen, merge, split
from flaxdl.training.precision import matmul_precision
from flaxdl.training.protocols import TrainingRun, TrainingSession
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps
from flaxdl.training.tasks import MultiLabelClassification, Regression
from flaxdl.training.tasks.losses import mixed, weighted


def describe_divergence(setup: TrainingRun, session: TrainingSession, state: TrainState) -> str:
    """Describes the divergence: its location, the last losses, and common remedies.

    Args:
        setup: setup of the run.
        session: session of the run, with its metrics and checkpoints.
        state: training state after `max_bad_steps` consecutive skipped steps.
    """
    step, bad_steps = int(state.step), int(state.bad_steps)
    where = ""
    if jax.process_count() == 1:
        with closing(setup.fed_batches(step - 1 + int(state.skipped))) as batches:
            batch = gather_examples(setup.data_on_devices, put_batch(next(batches), setup.mesh))
        before = state.replace(step=state.step - 1)  # a skipped step changes no other inputs
        where = first_not_finite(setup.steps.for_state_at(step), before, batch)
        where = f"First non-finite value at step {step}: {where}. "
    losses = [line["loss"] for line in session.metrics.of_split("train")][-10:]
    shown = ", ".join("not finite" if loss is None else f"{loss:.4g}" for loss in losses)
    saved = max(session.checkpoints.steps(), default=None)
    checkpoint = (
        "There is no checkpoint yet"
        if saved is None
        else f"The newest good checkpoint is that of step {saved}"
    )
    return (
        f"loss, gradients or statistics were not finite for {bad_steps} consecutive steps, from "
        f"step {step - bad_steps + 1} to {step}. {where}Last training losses: {shown}. "
        f"{checkpoint}; a smaller --optimizer.learning-rate, or --optimizer.clip-norm, often "
        "helps"
    )


def first_not_finite(steps: Steps, state: TrainState, batch: Mapping[str, jax.Array]) -> str:
    """Recomputes a step and describes the location of its first NaN or infinity.

    The search order is: batch, parameters, statistics, outputs of the layers in the order of their
    calls, loss, updated statistics, and gradients of the parameters.

    Args:
        steps: pure step functions of the run.
        state: training state before the step.
        batch: batch of the step.
    """
    fields = dict(batch)
    if isinstance(steps.task, Regression | MultiLabelClassification) and "label" in fields:
        fields["label"] = jnp.where(jnp.isnan(batch["label"]), 0, batch["label"])  # NaN: missing
    for what, tree in (
        ("the field of the batch", fields),
        ("the parameter", state.params),
        ("the statistic", state.model_state),
    ):
        found = _first_bad(tree)
        if found is not None:
            return f"{what} {found}"
    layers: list[str] = []
    bad_layers: set[int] = set()

    def watch(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        outputs = call(*args, **kwargs)
        if context.method_name == "__call__":
            path = ".".join(context.module.path) or "the whole model"
            layers.append(f"{path} ({type(context.module).__name__})")
            # A host callback, because the layer may be called inside a scan.
            number = len(layers) - 1
            jax.debug.callback(lambda ok: ok or bad_layers.add(number), _is_finite(outputs))
        return outputs

    trainable, frozen = split(state.params, steps.freeze)
    scale = jnp.float32(1) if state.loss_scale is None else state.loss_scale.scale

    def scaled_loss(trainable: Any) -> tuple[jax.Array, Any]:
        with inference_where_frozen(trainable), matmul_precision(steps.precision):
            params = merge(trainable, frozen)
            outputs, augmented, statistics = steps.forward(
                params, state.model_state, batch, steps.keys(state.step)
            )
            losses, weights = mixed(steps.task.losses, outputs, augmented)
            loss = jnp.sum(weighted(losses, weights)) / jnp.sum(weights)
            return loss * scale, statistics

    with nn.intercept_methods(watch):
        loss, statistics = jax.jit(scaled_loss)(trainable)
    jax.effects_barrier()
    if bad_layers:
        return f"the output of the layer {layers[min(bad_layers)]}"
    if not jnp.isfinite(loss):
        return "the loss" if state.loss_scale is None else f"the loss, scaled by {scale:.0f}"
    found = _first_bad(statistics)
    if found is not None:
        return f"the updated statistic {found}"
    gradients = jax.jit(jax.grad(scaled_loss, has_aux=True))(trainable)[0]
    found = _first_bad(gradients)
    if found is not None:
        return f"the gradient of {found}"
    if jnp.isfinite(global_norm(gradients, steps.mesh)):
        return "none when the step is recomputed"
    largest = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(gradients))
    return f"the norm of the gradients, the largest of which is {largest:.1e}"


def _first_bad(tree: Any) -> str | None:
    """Returns the path, joined by dots, of the first leaf with a NaN or infinity."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not _is_finite(leaf):
            return ".".join(str(getattr(key, "key", key)) for key in path)
    return None


def _is_finite(tree: Any) -> jax.Array:
    leaves = (leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact))
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))

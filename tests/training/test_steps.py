"""The step itself: devices, precision, skipped updates, compilation."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_steps import (
    NormalizedMlp,
    assert_trees_close,
    make_steps,
    quadrant_batch,
    train_on,
)

from flaxdl.layers import Dropout, Linear
from flaxdl.models import SimpleCNN
from flaxdl.ops.reductions import sum_of_squares
from flaxdl.training import SGD, AdamW, Classification
from flaxdl.training.distributed.mesh import make_mesh, replicated
from flaxdl.training.distributed.placement import Placement, create_on, put_batch
from flaxdl.training.metrics import EvaluationSums
from flaxdl.training.precision import LossScale

pytestmark = pytest.mark.eight_devices


@pytest.mark.parametrize("model", [NormalizedMlp(), SimpleCNN(num_classes=4)])
def test_eight_devices_equal_one(model):
    with jax.enable_x64(True):
        steps = make_steps(model=model)
        batches = [quadrant_batch(seed=seed) for seed in range(5)]
        for batch in batches:
            batch["inputs"] = batch["inputs"].astype(np.float64)
        ends = []
        for devices in (jax.devices()[:1], jax.devices()):
            mesh = make_mesh(devices=devices)
            state = create_on(Placement(mesh), partial(steps.initial_state, batches[0]))
            widen = lambda x: x.astype(np.float64) if x.dtype == np.float32 else x  # noqa: E731
            wide = jax.device_put(
                jax.tree.map(widen, (state.params, state.optimizer_state)), replicated(mesh)
            )
            state = state.replace(params=wide[0], optimizer_state=wide[1])
            ends.append(jax.device_get(train_on(mesh, steps, batches, state)))
        one, eight = ends
        assert_trees_close(eight.params, one.params, rtol=0, atol=1e-9)
        assert_trees_close(eight.model_state, one.model_state, rtol=1e-5, atol=1e-6)
        assert_trees_close(eight.sums, one.sums, rtol=1e-5)


def test_initial_parameters_do_not_depend_on_the_devices():
    steps, batch = make_steps(), quadrant_batch()
    create = partial(steps.initial_state, batch)
    meshes = [make_mesh(devices=devices) for devices in (jax.devices()[:1], jax.devices())]
    states = [jax.device_get(create_on(Placement(mesh), create)) for mesh in meshes]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize("where", ["batch", "gradient"])
def test_a_bad_batch_leaves_no_trace(where):
    steps, mesh = make_steps(), make_mesh()
    good, bad = quadrant_batch(seed=1), quadrant_batch(seed=2)
    # 1e30 overflows in the loss's gradient, NaN already in the activations.
    bad["inputs"] = bad["inputs"] * (np.float32(np.nan) if where == "batch" else 1e38)
    before = jax.device_get(train_on(mesh, steps, [good]))
    after = jax.device_get(train_on(mesh, steps, [good, bad]))
    for name in ("params", "model_state", "optimizer_state", "updates", "sums"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    assert (after.step, after.bad_steps) == (2, 1)
    recovered = train_on(mesh, steps, [good, bad, good])
    assert (recovered.step, recovered.updates, recovered.bad_steps) == (3, 2, 0)


def test_a_loss_without_weight_does_not_count_even_as_nan():
    steps, mesh = make_steps(model=NormalizedMlp(dropout=0.0)), make_mesh()
    batch = quadrant_batch()
    batch["weight"][3] = 0
    expected = jax.device_get(train_on(mesh, steps, [batch]))
    batch["label"][3] = 99  # out of range, which makes the loss NaN
    state = jax.device_get(train_on(mesh, steps, [batch]))
    assert (state.updates, state.bad_steps) == (1, 0)
    assert_trees_close(state.params, expected.params, rtol=0, atol=0)
    outputs = steps.predict(state, batch)
    assert np.isnan(steps.task.losses(outputs, batch)[0][3])
    assert np.isfinite(steps.task.loss(outputs, batch))


def test_dropout_masks_differ_from_step_to_step_and_repeat_with_the_seed():
    steps, mesh, batch = make_steps(optimizer=SGD(learning_rate=0.0)), make_mesh(), quadrant_batch()
    state = create_on(Placement(mesh), partial(steps.initial_state, batch))
    losses = []
    for _ in range(2):
        state = state.replace(sums=state.sums.zeros_like())
        state = jax.jit(steps.train)(state, put_batch(batch, mesh))
        losses.append(float(state.sums.values["loss"]))
    again = create_on(Placement(mesh), partial(steps.initial_state, batch))
    again = jax.jit(steps.train)(again, put_batch(batch, mesh))
    assert losses[0] != losses[1]
    assert losses[0] == float(again.sums.values["loss"])


class DroppedLinear(nn.Module):
    """Dropout of the inputs, then a linear layer."""

    @nn.compact
    def __call__(self, x, train=False):
        return Linear(4, name="fc")(Dropout(0.5, name="drop")(x, train))


def test_accumulated_parts_have_dropout_masks_of_their_own():
    steps = make_steps(
        model=DroppedLinear(),
        optimizer=SGD(learning_rate=1.0, momentum=0.0),
        accumulate_steps=2,
    )
    batch = {
        "inputs": np.ones((2, 400), np.float32),  # one example in each part
        "label": np.array([0, 1], np.int32),
        "weight": np.ones(2, np.float32),
    }
    mesh = make_mesh(devices=jax.devices()[:1])
    state = create_on(Placement(mesh), partial(steps.initial_state, batch))
    before = jax.device_get(state.params["fc"]["kernel"])
    after = jax.device_get(train_on(mesh, steps, [batch], state).params["fc"]["kernel"])
    # Features dropped in both parts have no gradient: a quarter, or half if the masks were equal.
    assert 0.2 < np.mean((after == before).all(axis=1)) < 0.3


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16", "float16"])
def test_masters_stay_float32_and_every_precision_learns(precision):
    steps = make_steps(model=NormalizedMlp(dropout=0.0), precision=precision, total_steps=60)
    mesh = make_mesh()
    batches = [quadrant_batch(64)] * 60
    state = train_on(mesh, steps, batches)
    dtypes = {x.dtype for x in jax.tree.leaves((state.params, state.model_state))}
    assert dtypes == {np.dtype(np.float32)}
    logits = steps.predict(state, batches[0])
    assert logits.dtype == {"bfloat16": jnp.bfloat16, "float16": jnp.float16}.get(
        precision, jnp.float32
    )
    accuracy = np.mean(np.argmax(np.asarray(logits, np.float32), -1) == batches[0]["label"])
    assert accuracy == 1.0


def test_loss_scaling_changes_no_update():
    batches = [quadrant_batch(seed=seed) for seed in range(3)]
    mesh = make_mesh()
    plain = train_on(mesh, make_steps(), batches)
    steps = make_steps()
    state = create_on(Placement(mesh), partial(steps.initial_state, batches[0]))
    scale = jax.device_put(LossScale.create(), replicated(mesh))
    scaled = train_on(mesh, steps, batches, state.replace(loss_scale=scale))
    # A power of two scales exactly, and so does its inverse.
    assert_trees_close(scaled.params, plain.params, rtol=1e-6, atol=1e-7)


def test_the_loss_scale_halves_on_overflow_and_doubles_after_its_interval():
    scale = LossScale.create()
    halved = scale.update(jnp.array(False))
    assert (halved.scale, halved.finite_steps) == (2.0**15, 0)
    about_to_grow = halved.replace(finite_steps=jnp.int32(LossScale.GROWTH_INTERVAL - 1))
    grown = about_to_grow.update(jnp.array(True))
    assert (grown.scale, grown.finite_steps) == (2.0**16, 0)
    assert about_to_grow.replace(finite_steps=jnp.int32(5)).update(jnp.array(True)).scale == 2.0**15


def test_evaluation_counts_only_weighted_examples():
    steps, mesh = make_steps(), make_mesh()
    batch = quadrant_batch(16)
    state = create_on(Placement(mesh), partial(steps.initial_state, batch))
    padded = {name: value.copy() for name, value in batch.items()}
    padded["weight"][11:] = 0
    padded["inputs"][11:] = np.nan
    placed = put_batch(padded, mesh)
    found, rows = jax.jit(steps.evaluate)(state, EvaluationSums(state.sums, {}), placed)
    sums = found.metrics
    assert rows == {}
    logits = np.asarray(steps.predict(state, batch), np.float64)[:11]
    labels = batch["label"][:11]
    by_hand = np.log(np.exp(logits).sum(-1)) - logits[np.arange(11), labels]
    means = sums.means()
    assert sums.weights["loss"] == 11
    np.testing.assert_allclose(means["loss"], by_hand.mean(), rtol=1e-5)
    np.testing.assert_allclose(means["accuracy"], (logits.argmax(-1) == labels).mean(), rtol=1e-6)


def test_label_smoothing_by_hand():
    task = Classification(label_smoothing=0.3)
    logits = np.array([[2.0, -1.0, 0.5]])
    batch = {"label": np.array([1]), "weight": np.ones(1)}
    log_probabilities = logits - np.log(np.exp(logits).sum())
    expected = -(
        0.1 * log_probabilities[0, 0]
        + 0.8 * log_probabilities[0, 1]
        + 0.1 * log_probabilities[0, 2]
    )
    np.testing.assert_allclose(task.loss(jnp.asarray(logits), batch), expected, rtol=1e-6)


def test_a_model_of_other_size_than_the_classes_is_refused():
    outputs = jax.ShapeDtypeStruct((8, 12), jnp.float32)
    with pytest.raises(ValueError, match=r"10 classes.*12 outputs; set --model.num-classes 10"):
        Classification().check(outputs, 10)
    with pytest.raises(ValueError, match=r"the model's outputs must have shape \[B, K\]"):
        Classification().check(jax.ShapeDtypeStruct((8, 7, 10), jnp.float32), 10)


@pytest.mark.parametrize("shape", [(7,), (513, 3), (1024, 512), (3, 5, 64, 512), (1031, 613)])
def test_sums_of_squares_are_numpys(shape):
    x = np.random.default_rng(0).normal(1, 2, shape)
    expected = np.sum(np.square(x))
    found = jax.jit(sum_of_squares)(x.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(sum_of_squares)(x), expected, rtol=1e-13)


class Plain(nn.Module):
    """A linear classifier."""

    @nn.compact
    def __call__(self, inputs, train=False):
        return Linear(4, name="fc")(inputs.reshape(len(inputs), -1))


class Wide(nn.Module):
    """Nothing but a million weights."""

    @nn.compact
    def __call__(self, inputs, train=False):
        return Linear(4, name="out")(Linear(1024, name="wide")(inputs.reshape(len(inputs), -1)))


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("optimizer", [SGD(), SGD(nesterov=True), SGD(momentum=0), AdamW()])
def test_parameters_and_means_are_written_in_place(optimizer):
    batch = {"inputs": np.zeros((4, 32, 32, 1), np.float32), "label": np.zeros(4, np.int32)}
    batch["weight"] = np.ones(4, np.float32)
    steps = make_steps(model=Wide(), optimizer=optimizer)
    state = jax.eval_shape(steps.initial_state, batch)
    step = jax.jit(steps.train, donate_argnums=0).lower(state, batch).compile()
    memory = step.memory_analysis()
    assert memory.alias_size_in_bytes > 0.99 * memory.output_size_in_bytes
    assert not re.search(r"f32\[1024,1024\]\S* copy\(", step.as_text())


def test_in_float64_what_has_no_weight_changes_nothing():
    with jax.enable_x64(True):
        whole = quadrant_batch(8)
        whole["inputs"] = whole["inputs"].astype(np.float64)
        whole["weight"] = np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float64)
        part = {name: array[:6] for name, array in whole.items()}
        steps = make_steps(model=Plain(), optimizer=SGD(momentum=0))
        state = steps.initial_state(part)
        state = state.replace(params=jax.tree.map(lambda p: p.astype(np.float64), state.params))
        ends = [jax.jit(steps.train)(state, batch) for batch in (whole, part)]
        assert_trees_close(ends[0].params, ends[1].params, rtol=1e-12)


def test_masters_may_be_of_16_bits():
    steps, batch = make_steps(model=Plain(), optimizer=SGD()), quadrant_batch()
    state = steps.initial_state(batch)
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), state.params)
    narrow = state.replace(
        params=narrow, optimizer_state=steps.optimizer.direction(narrow).init(narrow)
    )
    after = jax.jit(steps.train)(narrow, batch)
    assert {x.dtype.name for x in jax.tree.leaves(after.params)} == {"bfloat16"}
    assert not jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), after.params, narrow.params))

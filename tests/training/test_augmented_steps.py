"""Augmentation in the training step: losses, keys, devices, micro-batches and padding."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_steps import assert_trees_close, make_steps, quadrant_batch, train_on

from flaxdl.data import Images
from flaxdl.layers import BatchNorm, DropPath, Linear
from flaxdl.training import EMA, SGD, Classification
from flaxdl.training.distributed.mesh import make_mesh, replicated
from flaxdl.training.distributed.parallel import compile_train
from flaxdl.training.distributed.placement import Placement, create_on
from flaxdl.training.metrics import EvaluationSums
from flaxdl.training.tasks.losses import mixed

pytestmark = pytest.mark.eight_devices

KIT = Images(random_erasing=0.5, mixup_alpha=0.8, cutmix_alpha=1.0)


def mixed_batch(count=12, classes=5):
    rng = np.random.default_rng(0)
    return {
        "label": jnp.asarray(rng.integers(0, classes, count), jnp.int32),
        "label_2": jnp.asarray(rng.integers(0, classes, count), jnp.int32),
        "mix": jnp.asarray(rng.uniform(0.5, 1, count)),
        "weight": jnp.asarray([*np.ones(count - 2), 0.5, 0.0]),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_mixed_probabilities(smoothing):
    torch = pytest.importorskip("torch")
    with jax.enable_x64(True):
        batch = mixed_batch()
        logits = np.random.default_rng(1).normal(size=(12, 5)) * 3
        task = Classification(label_smoothing=smoothing)

        def loss(logits):
            losses, weights = mixed(task.losses, logits, batch)
            return jnp.sum(losses * weights) / jnp.sum(weights)

        value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    one_hot = np.eye(5)
    mix = np.asarray(batch["mix"])[:, None]
    targets = mix * one_hot[batch["label"]] + (1 - mix) * one_hot[batch["label_2"]]
    theirs = torch.tensor(logits, requires_grad=True)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")
    weight = torch.tensor(np.asarray(batch["weight"], np.float64))
    expected = (criterion(theirs, torch.tensor(targets)) * weight).sum() / weight.sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-12)


def test_weights_may_depend_on_the_label():
    class_weights = jnp.array([1.0, 2.0, 0.0, 0.5, 3.0])

    def losses(outputs, batch):
        return outputs[jnp.arange(12), batch["label"]], class_weights[batch["label"]]

    batch, outputs = mixed_batch(), jnp.asarray(np.random.default_rng(2).normal(size=(12, 5)))
    values, weights = mixed(losses, outputs, batch)
    one_hot, mix = np.eye(5), np.asarray(batch["mix"])[:, None]
    targets = mix * one_hot[batch["label"]] + (1 - mix) * one_hot[batch["label_2"]]
    np.testing.assert_allclose(weights, targets @ class_weights, rtol=1e-6)
    expected = (targets * outputs * class_weights).sum()  # as in PyTorch, before its divisor
    np.testing.assert_allclose(jnp.sum(values * weights), expected, rtol=1e-5)


def as_float64(batch):
    return {**batch, "inputs": batch["inputs"].astype(np.float64)}


def states_after(steps, batches, devices):
    mesh = make_mesh(devices=devices)
    state = create_on(Placement(mesh), partial(steps.initial_state, batches[0]))
    widen = lambda x: x.astype(np.float64) if x.dtype == np.float32 else x  # noqa: E731
    names = ("params", "optimizer_state", "average")
    wide = {name: jax.tree.map(widen, getattr(state, name)) for name in names}
    state = state.replace(**jax.device_put(wide, replicated(mesh)))
    return jax.device_get(train_on(mesh, steps, batches, state))


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_eight_devices_equal_one(accumulate_steps):
    with jax.enable_x64(True):
        steps = make_steps(
            model=SmallResidual(),
            augment=KIT.augment_batch,
            ema=EMA(decay=0.5),
            task=Classification(label_smoothing=0.1),
            accumulate_steps=accumulate_steps,
        )
        batches = [as_float64(quadrant_batch(seed=seed)) for seed in range(3)]
        for batch in batches:
            batch["weight"][5] = 0
        one = states_after(steps, batches, jax.devices()[:1])
        eight = states_after(steps, batches, jax.devices())
        assert_trees_close(eight.params, one.params, rtol=0, atol=1e-9)
        assert_trees_close(eight.average.params, one.average.params, rtol=0, atol=1e-9)
        assert_trees_close(eight.sums, one.sums, rtol=1e-5)


def test_each_step_has_its_own_draws_which_are_functions_of_the_seed():
    steps = make_steps(seed=3, augment=KIT.augment_batch)
    found = [steps.keys(jnp.int32(step)).augmentation for step in range(50)]
    others = [steps._key(number) for number in range(51)]
    words = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in found + others}
    assert len(words) == 101
    again = replace(steps, seed=3).keys(jnp.int32(7)).augmentation
    assert jnp.array_equal(jax.random.key_data(again), jax.random.key_data(found[7]))


class SmallResidual(nn.Module):
    """BatchNorm and drop path."""

    @nn.compact
    def __call__(self, images, train=False):
        x = Linear(16, name="fc1")(images.reshape(len(images), -1))
        branch = BatchNorm(name="bn1")(Linear(16, name="fc2")(nn.relu(x)), train)
        x = x + DropPath(0.25, name="drop_path")(branch, train)
        return Linear(4, name="fc3")(x)


class OneLayer(nn.Module):
    """A linear layer named `fc`."""

    @nn.compact
    def __call__(self, x, train=False):
        return Linear(4, name="fc")(x)


class Recorded:
    """Augmentation that keeps the fields and shapes of what it was given."""

    def __init__(self):
        self.shapes = []

    def __call__(self, batch, key):
        self.shapes.append(batch["inputs"].shape)
        return {**batch, "label_2": batch["label"], "mix": jnp.ones_like(batch["weight"])}


def test_a_mixed_example_is_not_seen_by_evaluation_and_its_fields_not_by_the_model():
    augment = Recorded()
    steps = make_steps(augment=augment, accumulate_steps=2)
    mesh, batch = make_mesh(), quadrant_batch()
    state = train_on(mesh, steps, [batch])
    assert set(augment.shapes) == {(8, *batch["inputs"].shape[1:])}
    count = len(augment.shapes)
    steps.evaluate(state, EvaluationSums(state.sums.zeros_like(), {}), batch)
    assert len(augment.shapes) == count


def test_accuracy_compares_with_the_larger_part_and_the_loss_counts_both():
    def augment(batch, key):
        other = (batch["label"] + 1) % 4
        return {**batch, "label_2": other, "mix": jnp.full(16, 0.75, jnp.float32)}

    batch = {
        "inputs": np.eye(4, dtype=np.float32)[np.arange(16) % 4],
        "label": np.arange(16, dtype=np.int32) % 4,
        "weight": np.ones(16, np.float32),
    }
    steps = make_steps(model=OneLayer(), augment=augment, optimizer=SGD(learning_rate=0.0))
    mesh = make_mesh()
    state = create_on(Placement(mesh), partial(steps.initial_state, batch))
    kernel = 5 * jnp.eye(4)
    params = {"fc": {**state.params["fc"], "kernel": kernel, "bias": jnp.zeros(4)}}
    state = jax.device_get(train_on(mesh, steps, [batch], state.replace(params=params)))
    means = state.sums.means()
    log_sum = np.log(np.exp(5) + 3)
    assert means["accuracy"] == 1
    np.testing.assert_allclose(means["loss"], 0.75 * (log_sum - 5) + 0.25 * log_sum, rtol=1e-6)


def test_under_pmap_mixing_stays_within_a_device():
    """Each device has one class; wherever its images are mixed, it is with that class."""

    def augment(batch, key):
        new = KIT.augment_batch(batch, key)
        wrong = jnp.sum(new["label"] != new["label_2"])
        return {**new, "weight": new["weight"] + wrong}

    batch = quadrant_batch(16)
    batch["label"] = np.repeat(np.arange(8), 2).astype(np.int32) % 4
    steps = make_steps(augment=augment)
    mesh = make_mesh()
    state = create_on(Placement(mesh), partial(steps.initial_state, batch))
    for parallel, is_within in (("pmap", True), ("jit", False)):
        train = compile_train(steps, mesh, parallel, state)
        fresh = create_on(Placement(mesh), partial(steps.initial_state, batch))
        sums = jax.device_get(train(fresh, batch)).sums
        assert (float(sums.weights["accuracy"]) == 16) == is_within

"""Values that are not finite: what they leave behind, which is nothing, and where they began."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_runs import bright_quadrants

from flaxdl.layers import BatchNorm, Dropout, Linear
from flaxdl.models import SimpleRNN
from flaxdl.training import AdamW, Classification, Regression, Steps
from flaxdl.training.diagnosis import first_not_finite
from flaxdl.training.distributed.mesh import make_mesh, replicated
from flaxdl.training.distributed.placement import Placement, create_on, put_batch


@jax.custom_vjp
def steep(x):
    """The identity, with a gradient that is not finite where a value is above 100."""
    return x


steep.defvjp(lambda x: (x, x), lambda x, dy: (jnp.where(jnp.abs(x).max() > 100, jnp.inf, 1) * dy,))


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = steep(Linear(16, name="fc1")(x.reshape(len(x), -1)))
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        return Linear(4, name="fc2")(Dropout(0.5, name="drop")(x, train))


STEPS = Steps(
    model=Network(),
    task=Classification(),
    optimizer=AdamW(learning_rate=1e-2, clip_norm=1.0),
    total_steps=10,
)
MESH = make_mesh()
TRAIN = jax.jit(STEPS.train, out_shardings=replicated(MESH))


def batch(seed, factor=1.0):
    images, labels = bright_quadrants(16, seed)
    inputs = (images / 255).astype(np.float32) * np.float32(factor)
    return put_batch({"inputs": inputs, "label": labels, "weight": np.ones(16, np.float32)}, MESH)


def initial(steps=STEPS):
    return create_on(Placement(MESH), partial(steps.initial_state, batch(0)))


def test_the_step_is_recomputed_with_normalized_and_augmented_inputs():
    steps = replace(STEPS, normalize=lambda inputs: inputs.repeat(2, axis=-1))
    state = create_on(Placement(MESH), partial(steps.initial_state, batch(0)))
    assert first_not_finite(steps, state, batch(1)) == "none when the step is recomputed"

    def augment(batch, key):
        noise = jax.random.normal(key, batch["inputs"].shape)
        half = jnp.full_like(batch["weight"], 0.5)
        return {**batch, "inputs": noise / 0, "label_2": batch["label"], "mix": half}

    noisy = replace(steps, augment=augment)
    assert first_not_finite(noisy, state, batch(1)) == "the output of the layer fc1 (Linear)"
    after = jax.jit(noisy.train)(state, batch(1))
    assert int(after.bad_steps) == 1


WORDS = {
    "batch": "the field of the batch inputs",
    "gradient": "the gradient of fc1.bias",
    "statistics": "the updated statistic batch_stats.bn1.var",
}
FACTORS = {
    "batch": np.nan,
    "gradient": 1e4,  # which `steep` makes infinite
    "statistics": 1e25,  # the square of which is infinite
}


@pytest.mark.parametrize("where", FACTORS)
def test_a_bad_batch_is_as_if_it_had_never_been_seen(where):
    with_it = without = with_parameter(initial(), "fc1", "bias", 1.0)
    for number in range(6):
        factor = FACTORS[where] if number == 2 else 1.0
        with_it = jax.block_until_ready(TRAIN(with_it, batch(number, factor)))
        if number == 2:
            assert with_it.bad_steps == 1
            assert first_not_finite(STEPS, without, batch(number, factor)) == WORDS[where]
            without = without.replace(step=without.step + 1)
        else:
            without = jax.block_until_ready(TRAIN(without, batch(number)))
    jax.tree.map(np.testing.assert_array_equal, with_it, without)
    assert (with_it.step, with_it.updates) == (6, 5)


def with_parameter(state, layer, name, value):
    params = dict(state.params)
    params[layer] = {**params[layer], name: jnp.full_like(params[layer][name], jnp.array(value))}
    return state.replace(params=params)


@pytest.mark.parametrize(
    ("change", "factor", "where"),
    [
        (("fc2", "kernel", np.inf), 1, "the parameter fc2.kernel"),
        (("fc2", "bias", [-3e38, -3e38, 3e38, 3e38]), 1, "the loss"),
        (("fc2", "kernel", 3e38), 1, "the output of the layer fc2 (Linear)"),
        (("fc1", "kernel", 3e38), 9, "the output of the layer fc1 (Linear)"),
        (("fc2", "kernel", [1e25, -1e25, 1e25, -1e25]), 1, "the norm of the gradients, the large"),
    ],
)
def test_the_first_place_is_named(change, factor, where):
    found = first_not_finite(STEPS, with_parameter(initial(), *change), batch(1, factor))
    assert found.startswith(where)


def test_a_layer_behind_a_scan_is_named():
    model = SimpleRNN(hidden_size=4, num_classes=4, cell="lstm")
    steps = Steps(model=model, task=Classification(), optimizer=AdamW(), total_steps=1)
    series = dict(batch(1)) | {"inputs": batch(1)["inputs"][..., 0]}
    state = create_on(Placement(MESH), partial(steps.initial_state, series))
    assert first_not_finite(steps, state, series) == "none when the step is recomputed"
    state = with_parameter(state, "fc", "kernel", 3e38)
    state = with_parameter(state, "fc", "bias", 3e38)
    assert first_not_finite(steps, state, series) == "the output of the layer fc (Linear)"


def test_the_search_for_a_loss_scale_is_no_divergence():
    steps = Steps(
        model=Network(),
        task=Classification(),
        optimizer=AdamW(),
        total_steps=1,
        precision="float16",
    )
    state = initial(steps).replace(bad_steps=jnp.int32(12))
    assert not state.has_diverged(10)
    assert state.replace(loss_scale=state.loss_scale.replace(scale=jnp.float32(1))).has_diverged(10)
    assert state.replace(loss_scale=None).has_diverged(10)
    assert not state.replace(loss_scale=None).has_diverged(13)


def test_a_missing_label_is_no_cause():
    steps = replace(STEPS, task=Regression(mean=(0.0,) * 4, std=(1.0,) * 4))
    labels = np.zeros((16, 4), np.float32)
    labels[0, 0] = np.nan
    fields = {**batch(1), "label": labels}
    state = create_on(Placement(MESH), partial(steps.initial_state, fields))
    assert first_not_finite(steps, state, fields) == "none when the step is recomputed"
    exploding = with_parameter(state, "fc2", "kernel", 3e38)
    assert first_not_finite(steps, exploding, fields) == "the output of the layer fc2 (Linear)"
    labels[1, 0] = np.inf
    assert first_not_finite(steps, state, fields) == "the field of the batch label"

"""BatchNorm and LayerNorm against PyTorch's, and BatchNorm's statistics on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.image_parity import assert_live_parity
from helpers.parity import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from flaxdl.layers import BatchNorm, LayerNorm

# Eight devices hold one example each; the examples differ in mean and deviation.
RANDOM = np.random.default_rng(0).standard_normal((8, 5, 3, 4))
BATCH = (RANDOM * np.arange(1, 9).reshape(8, 1, 1, 1) + RANDOM[:1]).astype(np.float32)


def normalize(batch_norm, variables, inputs):
    return batch_norm.apply(variables, inputs, train=True, mutable=["batch_stats"])


def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 4), min_size=0, max_size=3),
    st.booleans(),
    st.sampled_from([0.1, 0.4]),
    st.sampled_from([1e-5, 1e-3]),
)
def test_batch_norm_equals_pytorch(spatial, train, momentum, epsilon):
    torch = pytest.importorskip("torch")
    kind = getattr(torch.nn, f"BatchNorm{max(len(spatial), 1)}d")
    theirs = kind(3, momentum=momentum, eps=epsilon)
    theirs.num_batches_tracked = None  # a counter that only momentum=None would read
    for index, tensor in enumerate(theirs.state_dict().values()):
        tensor.copy_(torch.tensor(np.random.default_rng(index).uniform(0.5, 2, 3)))
    inputs = 2 + np.random.default_rng(0).standard_normal((4, 3, *spatial))
    assert_live_parity(BatchNorm(momentum, epsilon), theirs, inputs, train=train)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(2, 9), st.integers(1, 5), st.sampled_from([1e-12, 1e-5, 1e-2]))
def test_layer_norm_equals_pytorch(features, count, epsilon):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.LayerNorm(features, eps=epsilon)
    for index, parameter in enumerate(theirs.parameters()):
        parameter.data.copy_(torch.tensor(np.random.default_rng(index).uniform(0.5, 2, features)))
    inputs = 2 + np.random.default_rng(0).standard_normal((count, features))
    assert_live_parity(LayerNorm(epsilon), theirs, inputs)


def test_batch_norm_by_hand():
    inputs = jnp.array([[1.0], [2.0], [6.0]])
    variables = BatchNorm().init(jax.random.key(0), inputs)
    outputs, updates = normalize(BatchNorm(), variables, inputs)
    # Mean 3; squares 4 + 1 + 9 = 14: biased variance 14 / 3, unbiased 7.
    np.testing.assert_allclose(outputs, (inputs - 3) / np.sqrt(14 / 3 + 1e-5), rtol=1e-6)
    statistics = updates["batch_stats"]
    np.testing.assert_allclose(statistics["mean"], [0.9 * 0 + 0.1 * 3], rtol=1e-6)
    np.testing.assert_allclose(statistics["var"], [0.9 * 1 + 0.1 * 7], rtol=1e-6)
    evaluated = BatchNorm().apply({**variables, **updates}, inputs)
    np.testing.assert_allclose(evaluated, (inputs - 0.3) / np.sqrt(1.6 + 1e-5), rtol=1e-6)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_batch_norm_stays_in_the_dtype_it_is_given(dtype, train):
    with jax.enable_x64(True):
        inputs = jnp.asarray(BATCH, dtype)
        variables = BatchNorm().init(jax.random.key(0), inputs)
        variables["params"] = jax.tree.map(lambda leaf: leaf.astype(dtype), variables["params"])
        outputs, updates = BatchNorm().apply(variables, inputs, train, mutable=["batch_stats"])
    assert outputs.dtype == dtype
    # What is stored keeps the precision it had, whatever is computed in.
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {np.dtype("float32")}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_layer_norm_stays_in_the_dtype_it_is_given(dtype):
    with jax.enable_x64(True):
        inputs = jnp.asarray(BATCH, dtype)
        variables = LayerNorm().init(jax.random.key(0), inputs)
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
        assert LayerNorm().apply(cast, inputs).dtype == dtype


def test_variance_survives_a_large_mean():
    # The mean of squares minus the squared mean would be off by a third here.
    inputs = 1000 + np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    variables = BatchNorm(momentum=1.0).init(jax.random.key(0), inputs)
    _, updates = normalize(BatchNorm(momentum=1.0), variables, inputs)
    assert_close(updates["batch_stats"]["var"], inputs.astype(np.float64).var(0, ddof=1), 1e-4)


@pytest.mark.parametrize("way", ["jit", "shard_map", "pmap"])
def test_statistics_are_those_of_the_global_batch(way):
    batch_norm = BatchNorm()
    variables = batch_norm.init(jax.random.key(0), BATCH)
    expected, expected_updates = normalize(batch_norm, variables, BATCH)

    spread, whole = PartitionSpec("data"), PartitionSpec()
    if way == "jit":
        inputs = jax.device_put(BATCH, NamedSharding(mesh(), spread))
        outputs, updates = jax.jit(lambda v, x: normalize(batch_norm, v, x))(variables, inputs)
        assert outputs.sharding.spec == spread
    elif way == "shard_map":
        step = jax.shard_map(
            lambda v, x: normalize(batch_norm, v, x),
            mesh=mesh(),
            in_specs=(whole, spread),
            out_specs=(spread, whole),
        )
        outputs, updates = jax.jit(step)(variables, BATCH)
    else:
        step = jax.pmap(lambda v, x: normalize(batch_norm, v, x), "data", in_axes=(None, 0))
        outputs, updates = step(variables, BATCH[:, None])
        outputs = outputs.reshape(BATCH.shape)
        updates = jax.tree.map(lambda leaf: leaf[0], updates)  # every device has the same

    assert_close(outputs, expected, 1e-6)
    jax.tree.map(lambda ours, theirs: assert_close(ours, theirs, 1e-6), updates, expected_updates)


@pytest.mark.parametrize("way", ["jit", "shard_map"])
def test_masked_statistics_are_those_of_the_real_steps(way):
    batch_norm = BatchNorm()
    variables = batch_norm.init(jax.random.key(0), BATCH)
    mask = (np.arange(5) < np.array([5, 3, 1, 0, 2, 4, 5, 1])[:, None])[:, :, None, None]
    real = BATCH[mask[..., 0, 0]]  # [21, 3, 4]
    expected, expected_updates = normalize(batch_norm, variables, real)

    def step(variables, inputs, mask):
        return batch_norm.apply(variables, inputs, True, mask=mask, mutable=["batch_stats"])

    spread, whole = PartitionSpec("data"), PartitionSpec()
    if way == "shard_map":
        step = jax.shard_map(
            step, mesh=mesh(), in_specs=(whole, spread, spread), out_specs=(spread, whole)
        )
    masks = np.broadcast_to(mask, (*BATCH.shape[:3], 1))
    outputs, updates = jax.jit(step)(variables, BATCH, masks)
    assert_close(outputs[mask[..., 0, 0]], expected, 1e-6)
    jax.tree.map(lambda ours, theirs: assert_close(ours, theirs, 1e-6), updates, expected_updates)


@pytest.mark.parametrize("layer", [BatchNorm(), LayerNorm()])
def test_refuses_another_number_of_channels(layer):
    variables = layer.init(jax.random.key(0), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"inputs of (Batch|Layer)Norm .*C=4\], got \[2, 3\]"):
        layer.apply(variables, jnp.ones((2, 3)))


def test_refuses_to_train_on_a_single_value():
    variables = BatchNorm().init(jax.random.key(0), jnp.ones((1, 4)))
    with pytest.raises(ValueError, match=r"more than one value per channel in training.*\[1, 4\]"):
        normalize(BatchNorm(), variables, jnp.ones((1, 4)))

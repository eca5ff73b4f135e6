"""Layers with gradients of their own under `jax.shard_map`: those of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.parity import assert_close
from jax.sharding import Mesh, PartitionSpec

from flaxdl.layers import (
    LSTM,
    AddPositions,
    Conv,
    Embedding,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    PackedMultiHeadAttention,
)

pytestmark = pytest.mark.eight_devices

STEPS = np.random.default_rng(0).standard_normal((8, 6, 4), np.float32)
WIDE_STEPS = np.random.default_rng(0).standard_normal((8, 6, 128), np.float32)
IMAGES = np.random.default_rng(0).standard_normal((8, 5, 5, 3), np.float32)
WIDE_IMAGES = np.random.default_rng(0).standard_normal((8, 6, 7, 64), np.float32)
TOKENS = np.random.default_rng(0).integers(0, 5, (8, 6))
LAYERS = {
    "linear": (Linear(3), STEPS),
    "wide linear": (Linear(3), WIDE_STEPS),
    "convolution": (Conv(2, 3), IMAGES),
    "convolution of tiles": (Conv(64, 3, padding=1), WIDE_IMAGES),
    "layer norm": (LayerNorm(), STEPS),
    "positions": (AddPositions("learned", max_length=7), STEPS),
    "small embedding": (Embedding(5, 3), TOKENS),
    "embedding": (Embedding(20, 3), TOKENS),
    "attention": (MultiHeadAttention(4, 2), STEPS),
    "packed attention": (PackedMultiHeadAttention(4, 2), STEPS),
    "lstm": (LSTM(3), STEPS),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_the_whole_batch(name):
    layer, inputs = LAYERS[name]
    given = [inputs] * (3 if "attention" in name else 1)
    variables = layer.init(jax.random.key(0), *given)

    def loss(params, inputs):
        outputs = layer.apply({"params": params}, *[inputs] * len(given))
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        return jnp.sin(outputs).sum()

    def share(params, inputs):
        return jax.lax.psum(loss(params, inputs), "data")

    mesh = Mesh(np.array(jax.devices()), "data")
    whole, spread = PartitionSpec(), PartitionSpec("data")
    shared = jax.shard_map(share, mesh=mesh, in_specs=(whole, spread), out_specs=whole)
    expected = jax.jit(jax.grad(loss))(variables["params"], inputs)
    found = jax.jit(jax.grad(shared))(variables["params"], inputs)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda ours, theirs: assert_close(ours, theirs, 1e-5, largest), found, expected)

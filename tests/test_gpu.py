"""What only runs on a GPU: `JAX_PLATFORMS=cuda,cpu pytest tests/test_gpu.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.layers import MultiHeadAttention
from flaxdl.models import Bert, LeNet5, ResNet18, SimpleCNN, SimpleRNN, TransformerClassifier
from flaxdl.ops.masks import causal_mask, padding_mask

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU")

IMAGES = np.random.default_rng(0).standard_normal((4, 32, 32, 3), np.float32)
STEPS = np.random.default_rng(1).standard_normal((4, 11, 8), np.float32)
TOKENS = np.random.default_rng(2).integers(1, 50, (4, 16))

WORDS = {"vocab_size": 50, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
MODELS = {
    "simple_cnn": (SimpleCNN(), IMAGES),
    "lenet": (LeNet5(), IMAGES[..., :1]),
    "resnet18": (ResNet18(num_classes=10), IMAGES),
    **{
        cell: (SimpleRNN(hidden_size=16, num_classes=10, cell=cell), STEPS)
        for cell in ("rnn", "lstm", "gru")
    },
    "encoder": (TransformerClassifier(num_classes=10, **WORDS), TOKENS),
    "bert": (Bert(feed_forward_size=64, max_length=16, **WORDS), TOKENS),
}


def value_and_gradients(model, variables, inputs, place):
    """The sum of squares of what a model puts out in training, and its gradients."""

    def loss(params):
        outputs, _ = model.apply(
            {**variables, "params": params},
            inputs,
            train=True,
            mutable=[name for name in variables if name != "params"],
            rngs={"dropout": jax.random.key(0)},
        )
        return sum(jnp.square(x).mean() for x in jax.tree.leaves(outputs))

    with jax.default_device(place), jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(jax.value_and_grad(loss))(variables["params"]))


@pytest.mark.parametrize("name", MODELS)
def test_gpu_computes_what_the_cpu_does(name):
    model, inputs = MODELS[name]
    cpu, gpu = jax.devices("cpu")[0], jax.devices("gpu")[0]
    with jax.default_device(cpu):
        variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), inputs))
    expected, of_expected = value_and_gradients(model, variables, inputs, cpu)
    found, of_found = value_and_gradients(model, variables, inputs, gpu)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(of_expected))
    for a, b in zip(jax.tree.leaves(of_found), jax.tree.leaves(of_expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * largest)


@pytest.mark.parametrize("hides", ["nothing", "the future", "padding", "everything"])
def test_cudnn_attention_is_the_plain_one(hides):
    masks = {
        "nothing": None,
        "the future": causal_mask(64),
        "padding": padding_mask(jnp.array([64, 3, 40]), 64),
        "everything": padding_mask(jnp.array([64, 0, 40]), 64),
    }
    layer = MultiHeadAttention(hidden_size=64, num_heads=4)
    x = jax.random.normal(jax.random.key(0), (3, 64, 64))
    variables = jax.jit(layer.init)(jax.random.key(1), x, x, x)
    variables, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (variables, x))

    def outcome(x, wide, **keywords):
        given = jax.tree.map(lambda a: a.astype(wide), variables)
        x = x.astype(wide)
        results = layer.apply(given, x, x, x, masks[hides], **keywords)
        return results[0] if keywords else results

    def gradient(x, wide, **keywords):
        return jax.grad(lambda x: jnp.square(outcome(x, wide, **keywords)).astype("float32").sum())(
            x
        )

    text = jax.jit(outcome, static_argnums=1).lower(x, jnp.bfloat16).as_text()
    assert "fmha" in text
    for function in (outcome, gradient):
        expected = jax.jit(lambda x, f=function: f(x, jnp.float32, mutable=["intermediates"]))(x)
        found = jax.jit(lambda x, f=function: f(x, jnp.bfloat16))(x)
        scale = float(jnp.abs(expected).max())
        difference = jnp.abs(found.astype(jnp.float32) - expected.astype(jnp.float32)).max()
        assert float(difference) < 3e-2 * scale


def test_weights_of_attention_are_shown_to_who_asks():
    layer = MultiHeadAttention(hidden_size=64, num_heads=4)
    x = jax.random.normal(jax.random.key(0), (3, 64, 64), jnp.bfloat16)
    variables = layer.init(jax.random.key(1), x, x, x)
    _, extra = layer.apply(variables, x, x, x, mutable=["intermediates"])
    assert extra["intermediates"]["attention_weights"][0].shape == (3, 4, 64, 64)

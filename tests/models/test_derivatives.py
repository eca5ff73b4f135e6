"""Second derivatives of every kind of model, and forward mode within `flaxdl.ops.reference()`.

The loss is looked at along two directions through its parameters, where its Hessian has four
numbers that finite differences of its gradient give as well.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxdl
from flaxdl.models import (
    VGG11,
    AlexNet,
    BertForSequenceClassification,
    LeNet5,
    ResNet,
    Seq2SeqTransformer,
    SimpleCNN,
    SimpleRNN,
    TextRNN,
    TransformerClassifier,
    TransformerLM,
)

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 11, (2, 5)).astype(np.int32)
SERIES = RNG.standard_normal((2, 5, 3))
SMALL = {"hidden_size": 8, "num_heads": 2, "num_layers": 1, "feed_forward_size": 12}


def images(size, channels):
    return RNG.standard_normal((2, size, size, channels))


# Model, inputs, keywords of its call.
MODELS = {
    "cnn": (SimpleCNN(num_classes=3, dropout=0.0), images(8, 1), {}),
    "lenet": (LeNet5(num_classes=3), images(32, 1), {}),
    "resnet": (ResNet(num_classes=3, depths=(1, 0, 0, 0), small_images=True), images(8, 3), {}),
    "rnn": (SimpleRNN(num_classes=3, hidden_size=6, cell="rnn"), SERIES, {}),
    "lstm": (SimpleRNN(num_classes=3, hidden_size=6, cell="lstm"), SERIES, {}),
    "gru": (SimpleRNN(num_classes=3, hidden_size=6, cell="gru"), SERIES, {}),
    "text rnn": (
        TextRNN(vocab_size=11, num_classes=3, embedding_size=6, hidden_size=6, dropout=0.0),
        TOKENS,
        {"lengths": np.array([5, 3], np.int32)},
    ),
    "encoder": (
        TransformerClassifier(vocab_size=11, num_classes=3, max_length=5, dropout=0.0, **SMALL),
        TOKENS,
        {"lengths": np.array([5, 3], np.int32)},
    ),
    "decoder": (TransformerLM(vocab_size=11, max_length=5, dropout=0.0, **SMALL), TOKENS, {}),
    "encoder-decoder": (
        Seq2SeqTransformer(vocab_size=11, max_length=5, dropout=0.0, **SMALL),
        TOKENS,
        {"targets": TOKENS[:, ::-1]},
    ),
    "bert": (
        BertForSequenceClassification(
            num_classes=3,
            vocab_size=11,
            hidden_size=8,
            num_layers=1,
            num_heads=2,
            feed_forward_size=12,
            max_length=5,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        TOKENS,
        {},
    ),
    "alexnet": (AlexNet(num_classes=3, dropout=0.0), images(63, 3), {}),
    "vgg": (VGG11(num_classes=3, dropout=0.0), images(32, 3), {}),
}
LARGE = ("alexnet", "vgg")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.whole if name in LARGE else ()) for name in MODELS
    ],
)
def loss(request):
    """A loss in training mode, as a function of how far to go along two directions."""
    model, inputs, keywords = MODELS[request.param]
    with jax.enable_x64(True):
        variables = dict(model.init(jax.random.key(0), jnp.asarray(inputs), **keywords))
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
        params = wide.pop("params")
        leaves, tree = jax.tree.flatten(params)
        rng = np.random.default_rng(1)
        directions = [[rng.standard_normal(leaf.shape) for leaf in leaves] for _ in range(2)]
        norms = [np.sqrt(sum(np.sum(x * x) for x in direction)) for direction in directions]

        def loss(along):
            moved = [
                leaf + sum(a * d[i] / n for a, d, n in zip(along, directions, norms, strict=True))
                for i, leaf in enumerate(leaves)
            ]
            outputs, _ = model.apply(
                {"params": jax.tree.unflatten(tree, moved), **wide},
                jnp.asarray(inputs),
                train=True,
                mutable=list(wide),
                rngs={"dropout": jax.random.key(0)},
                **keywords,
            )
            return jnp.sum(jnp.sin(jnp.asarray(outputs) + 1.0))

        yield loss


def differences(function, step=1e-6):
    """The derivative of a function of two numbers by central differences, one row each."""
    rows = []
    for number in range(2):
        move = np.zeros(2)
        move[number] = step
        rows.append((function(jnp.asarray(move)) - function(jnp.asarray(-move))) / (2 * step))
    return np.stack(rows, axis=-1)


def close_to(expected):
    scale = max(1e-3, float(np.abs(expected).max()))
    return pytest.approx(np.asarray(expected), abs=1e-5 * scale)


def test_hessian_and_products_with_it(loss):
    gradient = jax.jit(jax.grad(loss))
    expected = differences(gradient)
    here = jnp.zeros(2)
    assert np.asarray(jax.jit(jax.hessian(loss))(here)) == close_to(expected)
    vector = jnp.asarray([0.3, -1.2])
    product = jax.jit(jax.grad(lambda along: jax.grad(loss)(along) @ vector))(here)
    assert np.asarray(product) == close_to(expected @ vector)


def test_forward_mode_works_by_definitions_alone(loss):
    here, vector = jnp.zeros(2), jnp.asarray([0.3, -1.2])
    expected = differences(jax.jit(loss))
    with pytest.raises(TypeError, match=r"can't apply forward-mode .*custom_vjp function"):
        jax.jvp(loss, (here,), (vector,))
    with flaxdl.ops.reference():
        value, tangent = jax.jit(lambda x, v: jax.jvp(loss, (x,), (v,)))(here, vector)
        jacobian = jax.jit(jax.jacfwd(loss))(here)
    assert float(value) == pytest.approx(float(loss(here)), rel=1e-9)
    assert np.asarray(jacobian) == close_to(expected)
    assert float(tangent) == close_to(expected @ np.asarray(vector))

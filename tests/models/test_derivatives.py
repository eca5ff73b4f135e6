"""Second derivatives of every kind of model, and forward mode in `flaxdl.ops.reference()`.

The loss is restricted to two directions in parameter space, so its Hessian has four entries, which
are compared with finite differences of the gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.sampling import sampled

import flaxdl
from flaxdl.models import (
    VGG11,
    AlexNet,
    BertForSequenceClassification,
    CNN1d,
    LeNet5,
    LinearForecaster,
    ResNet,
    RNNForecaster,
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
    "cnn1d": (
        CNN1d(num_classes=3, filters=(4, 5, 4)),
        SERIES,
        {"lengths": np.array([5, 3], np.int32)},
    ),
    "linear forecaster": (LinearForecaster(horizon=3), SERIES, {}),
    "forecaster": (RNNForecaster(horizon=3, hidden_size=6), SERIES, {}),
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
SAMPLED = ("cnn", "lstm", "linear forecaster", "encoder", "bert")


@pytest.fixture(scope="module", params=sampled(MODELS, SAMPLED.__contains__))
def evaluate(request):
    """Compiles a transformation of the loss in training mode, such as `jax.grad`.

    The loss is a function of the distances along two random directions. They move the parameters of
    at most a million numbers: the large matrices of AlexNet and VGG are linear maps as any other.
    """
    model, inputs, keywords = MODELS[request.param]
    with jax.enable_x64(True):
        variables = dict(model.init(jax.random.key(0), jnp.asarray(inputs), **keywords))
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
        leaves, tree = jax.tree.flatten(wide.pop("params"))
        rng = np.random.default_rng(1)
        directions = [
            {n: rng.standard_normal(x.shape) for n, x in enumerate(leaves) if x.size <= 2**20}
            for _ in range(2)
        ]
        norms = [np.sqrt(sum(np.sum(x * x) for x in way.values())) for way in directions]
        directions = [
            {n: x / norm for n, x in way.items()}
            for way, norm in zip(directions, norms, strict=True)
        ]

        def loss(along, leaves, directions):
            moved = list(leaves)
            for distance, way in zip(along, directions, strict=True):
                for n, x in way.items():
                    moved[n] += distance * x
            outputs, _ = model.apply(
                {"params": jax.tree.unflatten(tree, moved), **wide},
                jnp.asarray(inputs),
                train=True,
                mutable=list(wide),
                rngs={"dropout": jax.random.key(0)},
                **keywords,
            )
            return jnp.sum(jnp.sin(jnp.asarray(outputs) + 1.0))

        def evaluate(transform):
            # Parameters are arguments, since a program with millions of constants compiles slowly.
            function = jax.jit(
                lambda along, *given: transform(lambda along: loss(along, *given))(along)
            )
            return lambda along: function(along, leaves, directions)

        yield evaluate


def differences(function, step=1e-6):
    """Derivatives of a function of two numbers by central differences, one row per number."""
    rows = []
    for number in range(2):
        move = np.zeros(2)
        move[number] = step
        rows.append((function(jnp.asarray(move)) - function(jnp.asarray(-move))) / (2 * step))
    return np.stack(rows, axis=-1)


def close_to(expected):
    scale = max(1e-3, float(np.abs(expected).max()))
    return pytest.approx(np.asarray(expected), abs=1e-5 * scale)


def test_hessian_and_products_with_it(evaluate):
    expected = differences(evaluate(jax.grad))
    here = jnp.zeros(2)
    assert np.asarray(evaluate(jax.hessian)(here)) == close_to(expected)
    vector = jnp.asarray([0.3, -1.2])
    product = evaluate(lambda loss: jax.grad(lambda along: jax.grad(loss)(along) @ vector))
    assert np.asarray(product(here)) == close_to(expected @ vector)


def test_forward_mode_works_by_definitions_alone(evaluate):
    here, vector = jnp.zeros(2), jnp.asarray([0.3, -1.2])

    def jvp(loss):
        return lambda along: jax.jvp(loss, (along,), (vector,))

    value = evaluate(lambda loss: loss)
    expected = differences(value)
    with pytest.raises(TypeError, match=r"can't apply forward-mode .*custom_vjp function"):
        evaluate(jvp)(here)
    with flaxdl.ops.reference():
        plain, tangent = evaluate(jvp)(here)
        jacobian = evaluate(jax.jacfwd)(here)
    assert float(plain) == pytest.approx(float(value(here)), rel=1e-9)
    assert np.asarray(jacobian) == close_to(expected)
    assert float(tangent) == close_to(expected @ np.asarray(vector))

"""Interpretability methods, against numbers computed by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.analysis import interpretability
from flaxdl.analysis.figures import extent
from flaxdl.analysis.layers import inspect
from flaxdl.layers import Conv, Embedding, Linear, adaptive_avg_pool, sinusoidal_positions
from flaxdl.models import Bert, ResNet, SimpleCNN, SimpleRNN, TextRNN, TransformerClassifier
from flaxdl.models.images import flatten_channels_first

SMALL = {"hidden_size": 16, "num_heads": 4, "num_layers": 2, "feed_forward_size": 24}


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (2, 32, 32, 3))


@pytest.fixture(scope="module")
def cnn(images):
    model = SimpleCNN(num_classes=5)
    return model, model.init(jax.random.key(0), images)


def test_filters_are_the_weights_of_the_first_convolution(cnn, images):
    kernel = cnn[1]["params"]["features.0"]["kernel"]
    np.testing.assert_array_equal(interpretability.filters(*cnn, images), kernel)


def test_feature_maps_are_what_the_layers_put_out(cnn, images):
    model, variables = cnn
    maps = interpretability.feature_maps(model, variables, images)
    assert {name: x.shape for name, x in maps.items()} == {
        "features.0": (2, 32, 32, 32),
        "features.3": (2, 16, 16, 64),
        "features.6": (2, 8, 8, 128),
    }
    layer = {"params": variables["params"]["features.0"]}
    expected = Conv(32, 3, padding=1).apply(layer, images)
    np.testing.assert_allclose(maps["features.0"], expected, atol=1e-6)


def test_receptive_fields_of_a_simple_network_by_hand(cnn, images):
    # The middles are 16 of 32, 8 of 16, 4 of 8. Backwards from there, as first and last index:
    # features.0 sees 15 to 17; features.3 sees 7 to 9 of its input, which are 14 to 19 before the
    # pooling, and 13 to 20 of the image; features.6 sees 3 to 5, so 6 to 11, so 5 to 12, so 10 to
    # 25, so 9 to 26.
    fields = interpretability.receptive_fields(*cnn, images[:1])
    assert {name: extent(np.asarray(field)) for name, field in fields.items()} == {
        "features.0": (15, 15, 3, 3),
        "features.3": (13, 13, 8, 8),
        "features.6": (9, 9, 18, 18),
    }


def test_receptive_fields_are_as_large_as_shapes_alone_say():
    model = ResNet(num_classes=3, depths=(1, 1, 1, 1), small_images=True)
    image = jax.random.normal(jax.random.key(2), (1, 64, 64, 3))
    variables = jax.jit(model.init)(jax.random.key(0), image)
    known = {row.name: row.receptive_field for row in inspect(model, image)}
    fields = interpretability.receptive_fields(model, variables, image)
    assert list(fields)[:3] == ["conv1", "bn1", "layer1.0"]  # in the order of calls
    for name, layer in (("conv1", "conv1"), ("layer1.0", "layer1.0.conv2")):
        assert extent(np.asarray(fields[name]))[2:] == known[layer]
    # 3 + 2 + 2; then 7 + 2 with stride 2, and 2 times 2 more; the next ones in the same way.
    assert extent(np.asarray(fields["layer2.0"]))[2:] == (13, 13)
    assert extent(np.asarray(fields["layer3.0"]))[2:] == (25, 25)


def test_attention_is_the_softmax_of_the_products():
    model = TransformerClassifier(vocab_size=20, num_classes=3, max_length=8, **SMALL)
    tokens = jnp.array([[4, 7, 2, 9, 0, 0]])
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    lengths = jnp.array([4])
    maps = interpretability.attention(model, variables, tokens, lengths=lengths)
    names = ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]
    assert list(maps) == names
    for weights in maps.values():
        assert weights.shape == (1, 4, 6, 6)
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
        assert not weights[..., 4:].any()  # padding is not looked at

    layer = variables["params"]["encoder"]["layers.0"]["self_attn"]
    encoder = variables["params"]["encoder"]
    x = encoder["embedding"]["embedding"][tokens] + sinusoidal_positions(6, 16)
    query, key, _ = np.split(x @ layer["in_proj_weight"].T + layer["in_proj_bias"], 3, axis=-1)
    query, key = (y.reshape(6, 4, 4).transpose(1, 0, 2) for y in (query[0], key[0]))
    scores = query @ key.transpose(0, 2, 1) / 2  # the root of 4 features of a head
    exponentials = np.exp(scores[:, :, :4])
    expected = exponentials / exponentials.sum(-1, keepdims=True)
    np.testing.assert_allclose(maps[names[0]][0, :, :, :4], expected, atol=1e-5)


def test_berts_attention_has_the_names_of_its_layers_in_their_order():
    model = Bert(vocab_size=20, max_length=8, **(SMALL | {"num_layers": 11}))
    tokens = jnp.array([[4, 7, 2]])
    maps = interpretability.attention(model, model.init(jax.random.key(0), tokens), tokens)
    assert list(maps) == [f"encoder.layer.{number}" for number in range(11)]


class Sum(nn.Module):
    """Logits that are weighted sums of all there is in the input."""

    @nn.compact
    def __call__(self, inputs, train=False):
        if inputs.ndim == 2:
            inputs = Embedding(9, 4, name="embedding")(inputs)
        return Linear(3, name="fc")(inputs.reshape(len(inputs), -1))


def test_saliency_of_a_linear_model_is_its_weights():
    images = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))
    variables = Sum().init(jax.random.key(1), images)
    kernel = np.abs(variables["params"]["fc"]["kernel"]).reshape(4, 5, 3, 3)
    found = interpretability.saliency(Sum(), variables, images, jnp.array([2, 0]))
    np.testing.assert_allclose(found[0], kernel[..., 2].max(-1), rtol=1e-6)
    np.testing.assert_allclose(found[1], kernel[..., 0].max(-1), rtol=1e-6)
    label = int(Sum().apply(variables, images)[0].argmax())
    found = interpretability.saliency(Sum(), variables, images[:1])
    np.testing.assert_allclose(found[0], kernel[..., label].max(-1), rtol=1e-6)


def test_saliency_of_tokens_is_that_of_their_vectors():
    tokens = jnp.array([[1, 8, 3]])
    variables = Sum().init(jax.random.key(1), tokens)
    kernel = variables["params"]["fc"]["kernel"].reshape(3, 4, 3)
    found = interpretability.saliency(Sum(), variables, tokens, jnp.array([1]))
    np.testing.assert_allclose(found[0], np.linalg.norm(kernel[..., 1], axis=1), rtol=1e-6)


def test_grad_cam_is_what_a_hand_written_one_is(cnn, images):
    model, variables = cnn
    label = jnp.array([3, 1])
    maps = interpretability.feature_maps(model, variables, images)["features.6"]

    def rest(maps):
        x = flatten_channels_first(adaptive_avg_pool(nn.relu(maps), 4))
        first, last = (variables["params"][f"classifier.{i}"] for i in (1, 4))
        return nn.relu(x @ first["kernel"] + first["bias"]) @ last["kernel"] + last["bias"]

    logits, vjp = jax.vjp(rest, maps)
    np.testing.assert_allclose(logits, model.apply(variables, images), atol=1e-5)
    (gradient,) = vjp(jax.nn.one_hot(label, 5))
    expected = np.zeros((2, 8, 8))
    for example in range(2):
        for channel in range(128):
            weight = gradient[example, :, :, channel].mean()
            expected[example] += weight * maps[example, :, :, channel]
    found = interpretability.grad_cam(model, variables, images, label)
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-6)
    assert found.max() > 0


def test_hidden_states_are_those_of_the_recurrence():
    model = SimpleRNN(hidden_size=6, num_classes=2)
    inputs = np.random.default_rng(0).normal(size=(1, 5, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), inputs)
    states = interpretability.hidden_states(model, variables, inputs)
    assert list(states) == ["rnn"]
    p = {name: np.asarray(x) for name, x in variables["params"]["rnn"].items()}
    h = np.zeros(6)
    for t in range(5):
        h = np.tanh(
            p["weight_ih_l0"] @ inputs[0, t] + p["bias_ih_l0"] + p["weight_hh_l0"] @ h
            + p["bias_hh_l0"]
        )  # fmt: skip
        np.testing.assert_allclose(states["rnn"][0, t], h, atol=1e-6)


def test_what_a_model_does_not_have_is_an_error(cnn, images):
    model = TextRNN(vocab_size=9, embedding_size=4, hidden_size=4, num_classes=2)
    tokens = jnp.ones((1, 3), jnp.int32)
    texts = model, model.init(jax.random.key(0), tokens), tokens
    assert interpretability.hidden_states(*texts)["rnn"].shape == (1, 3, 8)
    for function, message in (
        (interpretability.filters, "TextRNN has none"),
        (interpretability.feature_maps, "TextRNN has none"),
        (interpretability.grad_cam, "TextRNN has none"),
        (interpretability.attention, "need an attention layer; TextRNN has none"),
    ):
        with pytest.raises(ValueError, match=message):
            function(*texts)
    with pytest.raises(ValueError, match="need a recurrent layer; SimpleCNN has none"):
        interpretability.hidden_states(*cnn, images)
    with pytest.raises(ValueError, match=r"a single image \[1, H, W, C\]; SimpleCNN got \[2,"):
        interpretability.receptive_fields(*cnn, images)
    with pytest.raises(ValueError, match="need a classifier"):
        interpretability.saliency(Pixels(), Pixels().init(jax.random.key(0), images), images)


class Pixels(nn.Module):
    """A model that answers for each pixel."""

    @nn.compact
    def __call__(self, images, train=False):
        return Conv(2, 3, name="only")(images)

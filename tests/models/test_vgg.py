"""The VGG networks against torchvision's stored values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers.image_parity import (
    count_parameters,
    reference_images,
    reference_logits,
    variable_shapes,
)
from helpers.learning import assert_every_parameter_learns
from helpers.parity import assert_close, names_and_shapes
from helpers.sampling import sampled

from flaxdl.models import VGG11, VGG13, VGG16, VGG19

# name → model, parameters
MODELS = {
    "vgg11": (VGG11(), 132_863_336),
    "vgg13": (VGG13(), 133_047_848),
    "vgg16": (VGG16(), 138_357_544),
    "vgg19": (VGG19(), 143_667_240),
    "vgg11_bn": (VGG11(batch_norm=True), 132_868_840),
    "vgg13_bn": (VGG13(batch_norm=True), 133_053_736),
    "vgg16_bn": (VGG16(batch_norm=True), 138_365_992),
    "vgg19_bn": (VGG19(batch_norm=True), 143_678_248),
}
IMAGES = reference_images("image", (2, 3, 224, 224))


@pytest.mark.parametrize("name", MODELS)
def test_has_the_names_of_torchvision(name):
    model, parameters = MODELS[name]
    shapes = variable_shapes(model, (1, 224, 224, 3))
    assert names_and_shapes(shapes) == reference.STATE_DICTS[name]
    assert count_parameters(model, (1, 224, 224, 3)) == parameters


@pytest.mark.parametrize("name", sampled(MODELS, ("vgg11", "vgg11_bn").__contains__))
def test_reaches_the_stored_values(name):
    with jax.enable_x64(True):
        logits = reference_logits(MODELS[name][0], name, IMAGES, "float64")
    assert_close(logits, reference.golden(f"{name}/logits"), 1e-7)


@pytest.mark.whole
def test_reaches_the_stored_values_by_convolutions_of_xla():
    with jax.enable_x64(True):
        model = MODELS["vgg11"][0]
        logits = reference_logits(model, "vgg11", IMAGES, "float64", as_products=False)
    assert_close(logits, reference.golden("vgg11/logits"), 1e-7)


@pytest.mark.parametrize("name", sampled(["vgg11", "vgg19_bn"], "vgg11".__eq__))
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_reaches_the_stored_values_in_lower_precision(name, dtype, tolerance):
    logits = reference_logits(MODELS[name][0], name, IMAGES, dtype)
    assert_close(logits, reference.golden(f"{name}/logits"), tolerance)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_parameter_learns(batch_norm):
    model = VGG11(5, depths=(1, 1, 1, 1, 1), batch_norm=batch_norm)
    assert_every_parameter_learns(model, jnp.asarray(IMAGES[:, :35, :32]))


def test_starts_as_torchvision_does():
    images = jnp.zeros((1, 32, 32, 3))
    params = VGG11(depths=(1, 1, 1, 1, 1)).init(jax.random.key(0), images)["params"]
    # The fan out of the second convolution is 3 * 3 * 128.
    deviation = np.std(params["features.3"]["kernel"])
    assert deviation == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)
    assert np.std(params["classifier.3"]["kernel"]) == pytest.approx(0.01, rel=0.02)
    assert not any(np.any(layer["bias"]) for layer in params.values())


def test_takes_any_number_of_channels_and_classes():
    shapes = variable_shapes(VGG11(3), (1, 32, 45, 1))
    assert shapes["params"]["features.0"]["kernel"].shape == (3, 3, 1, 64)
    assert shapes["params"]["classifier.6"]["kernel"].shape == (4096, 3)


def test_refuses_small_images():
    with pytest.raises(ValueError, match="images must be at least 32 x 32, got 224 x 31"):
        variable_shapes(VGG11(), (1, 224, 31, 3))

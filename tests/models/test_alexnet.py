"""AlexNet against torchvision's stored values."""

import jax
import jax.numpy as jnp
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

from flaxdl.models import AlexNet

IMAGES = reference_images("image", (2, 3, 224, 224))


def test_has_the_names_of_torchvision():
    shapes = variable_shapes(AlexNet(), (1, 224, 224, 3))
    assert names_and_shapes(shapes) == reference.STATE_DICTS["alexnet"]
    assert count_parameters(AlexNet(), (1, 224, 224, 3)) == 61_100_840


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-7), ("float32", 1e-5), ("bfloat16", 3e-2)]
)
def test_reaches_the_stored_values(dtype, tolerance):
    with jax.enable_x64(True):
        logits = reference_logits(AlexNet(), "alexnet", IMAGES, dtype)
    assert_close(logits, reference.golden("alexnet/logits"), tolerance)


def test_every_parameter_learns():
    assert_every_parameter_learns(AlexNet(5), jnp.asarray(IMAGES[:, :70, :63]))


@pytest.mark.parametrize("channels", [1, 4])
def test_takes_any_number_of_channels_and_classes(channels):
    shapes = variable_shapes(AlexNet(3), (1, 63, 80, channels))
    assert shapes["params"]["features.0"]["kernel"].shape == (11, 11, channels, 64)
    assert shapes["params"]["classifier.6"]["kernel"].shape == (4096, 3)


def test_refuses_small_images():
    with pytest.raises(ValueError, match="images must be at least 63 x 63, got 62 x 224"):
        variable_shapes(AlexNet(), (1, 62, 224, 3))

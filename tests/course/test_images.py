"""Experiments on images and the assumptions of CNNs."""

import jax
import numpy as np
import pytest

from flaxdl.course import pixel_order
from flaxdl.layers import Conv

# pixel_order


def orders(cnn=0.9, mlp=0.8, cnn_permuted=0.7, mlp_permuted=0.8):
    as_is, permuted = {"CNN": cnn, "MLP": mlp}, {"CNN": cnn_permuted, "MLP": mlp_permuted}
    both = {"as is": as_is, "permuted": permuted}
    return {order: {name: [a] * 5 for name, a in of.items()} for order, of in both.items()}


@pytest.mark.parametrize(
    ("digits", "spectrograms", "outcome"),
    [
        ({}, {}, "holds"),
        ({"mlp": 0.84}, {"mlp": 0.86}, "holds in part"),  # no longer better by five points
        ({"cnn_permuted": 0.86}, {}, "holds in part"),  # not hurt
        ({"cnn": 0.8}, {"mlp_permuted": 0.74}, "does not hold here"),  # the MLP is hurt too
    ],
)
def test_verdict_on_the_order_of_pixels(digits, spectrograms, outcome):
    accuracy = {"digits": orders(**digits), "spectrograms": orders(**spectrograms)}
    assert pixel_order.verdict({"accuracy": accuracy}).outcome == outcome


def test_all_images_are_permuted_in_the_same_way_and_no_pixel_is_lost():
    images = np.arange(2 * 12).reshape(2, 4, 3, 1)
    permuted = pixel_order.permute(images)
    np.testing.assert_array_equal(permuted[1] - permuted[0], 12)
    assert sorted(permuted[0].flat) == list(range(12))
    assert (permuted != images).any()


def test_a_linear_layer_on_patches_is_a_convolution():
    image_key, kernel_key = jax.random.split(jax.random.key(0))
    images = jax.random.normal(image_key, (2, 5, 4, 3))
    kernel = jax.random.normal(kernel_key, (3, 3, 3, 2))
    conv = Conv(2, 3, padding=1, use_bias=False)
    expected = conv.apply({"params": {"kernel": kernel}}, images)
    found = pixel_order.patches(images) @ kernel.reshape(-1, 2)
    np.testing.assert_allclose(found, expected, atol=1e-5)

"""Experiments on deep networks and their skip connections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.course import deep_plain_networks, layers_152

# deep_plain_networks


def plain_results(accuracies, fractions):
    """Results of five seeds: accuracy of the deepest networks, gradient of the first block."""
    plain = deep_plain_networks
    arms = (*plain.ARMS, *plain.RESCALED)
    accuracy = {arm: {"8": [1.0] * 5, "56": [accuracies.get(arm, 1.0)] * 5} for arm in arms}
    norms = {arm: {"56": [[fractions.get(arm, 1.0), 1.0]] * 5} for arm in plain.ARMS}
    return {"accuracy": accuracy, "norms": norms}


TORCH, HE, HE_BN = deep_plain_networks.PLAIN
GONE = {TORCH: 1e-20}


@pytest.mark.parametrize(
    ("accuracies", "fractions", "outcome"),
    [
        ({TORCH: 0.89}, GONE, "holds"),
        ({TORCH: 0.89}, {TORCH: 2e-3}, "does not hold here"),  # hard, but not vanished
        ({TORCH: 0.91}, GONE, "does not hold here"),  # not hard
        ({TORCH: 0.1, HE: 0.5}, GONE, "holds in part"),  # hard for another reason
        ({TORCH: 0.1, HE_BN: 0.5}, GONE | {HE_BN: 1e-4}, "holds"),
        ({TORCH: 0.1, deep_plain_networks.RESCALED[0]: 0.2}, GONE, "holds in part"),
        ({TORCH: 0.1, deep_plain_networks.CONTROL: 0.5}, GONE, "does not hold here"),
    ],
)
def test_verdict_on_deep_plain_networks(accuracies, fractions, outcome):
    results = plain_results(accuracies, fractions)
    assert deep_plain_networks.verdict(results).outcome == outcome


def test_mirrored_layers_are_linear_and_keep_lengths():
    shape = (16, 16)
    first, second = (
        deep_plain_networks.mirrored(key, shape, jnp.float32)
        for key in jax.random.split(jax.random.key(0))
    )
    half = jax.random.normal(jax.random.key(1), (5, 8))
    x = jax.nn.relu(jnp.concatenate([half, -half], axis=1))
    y = jax.nn.relu(jax.nn.relu(x @ first) @ second)
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=1), jnp.linalg.norm(half, axis=1), 1e-5)
    linear = half @ first[:8, :8] @ second[:8, :8]
    np.testing.assert_allclose(y[:, :8] - y[:, 8:], linear, atol=1e-5)


def test_rescaled_gradients_have_norm_1_even_if_they_vanished():
    size = jnp.array([1e-30, 1.0, 1e20])[:, None, None]
    gradients = {"blocks": {"kernel": jnp.ones((3, 4, 4)) * size}, "fc": {"bias": jnp.zeros(4)}}
    rescaled = deep_plain_networks.rescale(gradients)
    norms = jnp.linalg.norm(rescaled["blocks"]["kernel"], axis=(1, 2))
    np.testing.assert_allclose(norms, 1, rtol=1e-6)
    assert not rescaled["fc"]["bias"].any()


# layers_152


def test_the_deep_network_has_152_layers_with_weights():
    network = layers_152.Network(True, 152)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((2, 64)))["params"]
    blocks = sum(
        kernel["kernel"].shape[0] for name, kernel in shapes["blocks"].items() if "fc" in name
    )
    assert blocks + sum("kernel" in layer for layer in shapes.values()) == 152


@pytest.mark.parametrize(
    ("residual", "plain", "shallow_plain", "outcome"),
    [
        (0.9, 0.69, 1.0, "holds"),
        (0.89, 0.5, 1.0, "holds in part"),
        (1.0, 0.81, 1.0, "does not hold here"),  # the plain network is trained too
        (1.0, 0.1, 0.7, "does not hold here"),  # plain blocks fail even without depth
    ],
)
def test_verdict_on_152_layers(residual, plain, shallow_plain, outcome):
    accuracy = {
        "152": {"residual": [residual] * 5, "plain": [plain] * 5},
        "8": {"residual": [1.0] * 5, "plain": [shallow_plain] * 5},
    }
    assert layers_152.verdict({"accuracy": accuracy}).outcome == outcome

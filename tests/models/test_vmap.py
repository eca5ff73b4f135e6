"""Transformations of whole models: an ensemble by `vmap` over weights, gradients by example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.models import LeNet5

MEMBERS = 10
MODEL = LeNet5(num_classes=3)
IMAGES = np.random.default_rng(0).standard_normal((4, 32, 32, 1))
LABELS = np.array([0, 2, 1, 0])


def loss(params, images, labels):
    log_probabilities = jax.nn.log_softmax(MODEL.apply({"params": params}, images))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))


def draw_params(key):
    return MODEL.init(key, jnp.asarray(IMAGES))["params"]


def of_example(params, image, label):
    return jax.grad(loss)(params, image[None], label[None])


def assert_same(found, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), found, expected
    )


@pytest.fixture(scope="module")
def params():
    """Weights of ten networks, drawn under `vmap`, in float64."""
    with jax.enable_x64(True):
        drawn = jax.jit(jax.vmap(draw_params))(jax.random.split(jax.random.key(0), MEMBERS))
        yield jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), drawn)


def test_an_ensemble_is_its_members(params):
    keys = jax.random.split(jax.random.key(0), MEMBERS)
    step = jax.jit(jax.value_and_grad(loss))
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss), (0, None, None)))(
        params, IMAGES, LABELS
    )
    for number in (0, MEMBERS - 1):
        member = jax.tree.map(lambda x, n=number: x[n], params)
        alone = jax.jit(draw_params)(keys[number])
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), member, alone)
        value, gradient = step(member, IMAGES, LABELS)
        assert float(values[number]) == pytest.approx(float(value), rel=1e-12)
        assert_same(jax.tree.map(lambda x, n=number: x[n], gradients), gradient)


def test_gradients_of_examples_average_to_that_of_the_batch(params):
    member = jax.tree.map(lambda x: x[0], params)
    each = jax.jit(jax.vmap(of_example, (None, 0, 0)))(member, IMAGES, LABELS)
    whole = jax.jit(jax.grad(loss))(member, IMAGES, LABELS)
    assert_same(jax.tree.map(lambda x: x.mean(0), each), whole)


def test_programs_are_at_most_twice_as_large_as_of_one_network(params):
    """Compilation takes about as long as a program is large."""
    member = jax.tree.map(lambda x: x[0], params)

    def size(function, *arguments):
        return len(jax.jit(function).lower(*arguments).as_text().splitlines())

    one = size(jax.value_and_grad(loss), member, IMAGES, LABELS)
    ensemble = jax.vmap(jax.value_and_grad(loss), (0, None, None))
    assert size(ensemble, params, IMAGES, LABELS) <= 2 * one
    assert size(jax.vmap(of_example, (None, 0, 0)), member, IMAGES, LABELS) <= 2 * one

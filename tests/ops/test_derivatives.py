"""Derivatives of ops: forward mode by their definitions, second derivatives in both modes."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.layers import avg_pool, max_pool
from flaxdl.ops import cells, reference
from flaxdl.ops.convolution import convolve
from flaxdl.ops.recurrence import recur

BORDER = {"strides": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
HALF = BORDER | {"strides": (2, 2), "padding": (0, 0)}
ALONG_TIME = {"strides": (1,), "padding": (2,), "dilation": (2,), "groups": 2}
CONVOLUTIONS = {
    "copies": ((2, 6, 7, 1), (3, 3, 1, 16), BORDER),
    "product": ((2, 2, 3, 9), (3, 3, 9, 4), BORDER),
    "side by side": ((2, 9, 11, 4), (3, 3, 4, 3), BORDER),
    "one position": ((2, 5, 6, 9), (1, 1, 9, 4), HALF),
    "tiles": ((1, 6, 6, 64), (3, 3, 64, 64), BORDER),
    "groups": ((2, 7, 4), (3, 2, 6), ALONG_TIME),
}
IS_REAL = np.arange(4)[:, None, None] < np.array([4, 2])[:, None]  # [T, B, 1]
CELLS = {  # and the number of gates
    "tanh": (cells.tanh_cell, 1),
    "relu": (cells.relu_cell, 1),
    "lstm": (cells.lstm_cell, 4),
    "gru": (cells.gru_cell, 3),
}


def run(cell, x, weights, biases, state):
    return recur(x, weights, biases, state, IS_REAL, cell=cell, reverse=True)


def cases():
    for name, (images, kernel, settings) in CONVOLUTIONS.items():
        yield name, partial(convolve, **settings), (images, kernel)
    for pool in (max_pool, avg_pool):
        for channels in (3, 17):  # few and many are pooled in different ways
            compute = partial(pool, window=3, stride=2, padding=1)
            yield f"{pool.__name__} {channels}", compute, ((2, 7, 8, channels),)
    for name, (cell, gates) in CELLS.items():
        width, state = 5 * gates, (2, 5)
        shapes = (4, 2, 3), ((width, 3), (width, 5)), ((width,), (width,))
        yield name, partial(run, cell), (*shapes, (state, state) if name == "lstm" else state)


CASES = {name: case for name, *case in cases()}


def slope(function, at, along, step=1e-6):
    before = function(*jax.tree.map(lambda x, d: x - step * d, at, along))
    after = function(*jax.tree.map(lambda x, d: x + step * d, at, along))
    return jax.tree.map(lambda a, b: (b - a) / (2 * step), before, after)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_finite_differences(name):
    compute, shapes = CASES[name]
    rng = np.random.default_rng(0)
    is_shape = lambda tree: isinstance(tree, tuple) and isinstance(tree[0], int)  # noqa: E731
    at, along = (jax.tree.map(rng.standard_normal, shapes, is_leaf=is_shape) for _ in range(2))

    def loss(*arrays):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(compute(*arrays)))

    def assert_near(found, expected):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)

    with jax.enable_x64(True):
        gradient = jax.grad(loss, tuple(range(len(at))))
        first = slope(jax.jit(loss), at, along)
        second = slope(jax.jit(gradient), at, along)
        for mode in (reference, contextlib.nullcontext):
            with mode():
                product = jax.jit(lambda: jax.jvp(gradient, at, along)[1])()
            assert_near(product, second)
        with reference():
            assert_near(jax.jit(lambda: jax.jvp(loss, at, along)[1])(), first)

"""The bits behind dropout: fair, unrelated to each other, and the same on any mesh."""

import jax
import numpy as np
import pytest

from flaxdl.ops.random_bits import random_bits

SHAPE = (512, 1024)
# The deviation of a mean of so many fair bits; five of them are met by chance once in two million.
DEVIATION = 0.5 / np.sqrt(np.prod(SHAPE))


def bits_of(seed, shape=SHAPE):
    return np.asarray(random_bits(jax.random.key(seed), shape))


def unpacked(words):
    """bool[..., 32], the bits of each word."""
    return (words[..., None] >> np.arange(32, dtype=np.uint32)) & 1 == 1


def test_every_bit_is_fair():
    assert np.abs(unpacked(bits_of(0)).mean((0, 1)) - 0.5).max() < 5 * DEVIATION


@pytest.mark.parametrize(
    ("title", "other"),
    [
        ("the next place", lambda words: np.roll(words, 1)),
        ("the next row", lambda words: np.roll(words, 1, axis=0)),
        ("the next key", lambda _: bits_of(1)),
        ("a later key", lambda _: bits_of(1000)),
    ],
)
def test_bits_tell_nothing_about(title, other):
    words = bits_of(0)
    agree = ~(unpacked(words)[..., :, None] ^ unpacked(other(words))[..., None, ::8])
    assert np.abs(agree.mean((0, 1)) - 0.5).max() < 5 * DEVIATION, title


def test_words_are_spread_evenly():
    counts = np.bincount((bits_of(0) >> 22).ravel(), minlength=1024)
    expected = np.prod(SHAPE) / 1024
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # 1023 degrees of freedom: the deviation is sqrt(2 * 1023) = 45.
    assert abs(chi_square - 1023) < 5 * 45


def test_the_same_on_any_mesh():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    split = jax.jit(lambda key: random_bits(key, SHAPE), out_shardings=sharding)
    np.testing.assert_array_equal(split(jax.random.key(0)), bits_of(0))

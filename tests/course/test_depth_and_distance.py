"""Experiments on depth, distance, and the place of norms: rules on both sides, and their data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.course import small_change

# small_change


def test_a_plain_block_can_start_as_the_identity():
    keys = jax.random.split(jax.random.key(0))
    block = small_change.random_block(keys[0], small_change.HIDDEN, 1.0, 1.0)
    block = {**block, "w2": jnp.zeros_like(block["w2"])}
    x = jax.random.normal(keys[1], (7, small_change.WIDTH))
    np.testing.assert_allclose(
        small_change.apply(small_change.returning_input(block), x), x, rtol=1e-6
    )
    assert not small_change.apply(block, x).any()


def errors(small, large, rotated=1.0):
    """Results of five seeds with these ratios of plain to residual errors, by size."""
    ratios = dict.fromkeys(map(str, small_change.SIZES), 1.0) | {"0.1": small, "1.0": large}
    control = dict.fromkeys(ratios, rotated)
    return {
        "error": {
            target: {
                arm: {
                    size: [0.01 * (ratio if arm == "plain" else 1)] * 5 for size, ratio in r.items()
                }
                for arm in small_change.ARMS
            }
            for target, r in zip(small_change.TARGETS, (ratios, control), strict=True)
        }
    }


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        (errors(2.1, 2.1), "holds"),
        (errors(2.1, 1.9), "holds in part"),
        (errors(1.9, 2.1), "does not hold here"),
        (errors(2.1, 2.1, rotated=2.1), "does not hold here"),  # the control is easier, too
    ],
)
def test_verdict_on_small_changes(results, outcome):
    assert small_change.verdict(results).outcome == outcome


def test_the_skip_connection_helps_before_training_unless_the_target_is_rotated():
    train = jax.jit(small_change.train, static_argnums=0)
    residual, plain, identity = range(3)

    def error(target, arm):
        return float(train(0, 3, 0.0, 0.1, target, arm))

    assert error(0, residual) < 0.5 * error(0, plain)
    assert error(0, identity) < 0.5 * error(0, plain)
    assert error(1, residual) > error(1, plain)  # a rotated x is further from x than from 0

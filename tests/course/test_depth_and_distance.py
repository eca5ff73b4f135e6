"""Experiments on depth, distance, and the place of norms: rules on both sides, and their data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.course import lookup_distance, norm_position, small_change

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


# lookup_distance

make_lookups = jax.jit(lookup_distance.make_sequences)


def test_the_key_of_the_query_occurs_once_at_its_distance():
    lengths = jnp.array([1, 7, 200, 200, 200])
    distances = jnp.array([1, 3, 1, 77, 200])
    inputs, labels = make_lookups(jax.random.key(0), lengths, distances)
    keys, values, ends = map(np.asarray, inputs)
    for row, (length, distance) in enumerate(zip(lengths, distances, strict=True)):
        assert ends[row] == length + 1
        query = keys[row, length]
        assert values[row, length] == lookup_distance.VALUES
        (found,) = np.flatnonzero(keys[row, :length] == query)
        assert (length - found, values[row, found]) == (distance, labels[row])


def test_attention_to_the_last_tokens_does_not_see_others():
    model = lookup_distance.Lookup(lookup_distance.MultiHeadAttention)
    lengths = jnp.full(1, 60)
    (keys, values, ends), _ = make_lookups(jax.random.key(0), lengths, lengths)
    variables = jax.jit(model.init)(jax.random.key(1), keys, values, ends, jnp.array(50))
    apply = jax.jit(model.apply)

    def changes(distance, window):
        other = values.at[0, 60 - distance].set((values[0, 60 - distance] + 1) % 4)
        logits = [apply(variables, keys, v, ends, jnp.array(window)) for v in (values, other)]
        return bool(jnp.any(logits[0] != logits[1]))

    assert [changes(d, 50) for d in (1, 50, 51, 60)] == [True, True, False, False]
    assert changes(60, 200)


def lookups(rnn, lstm, attention, window, near=1.0):
    """Results of five seeds with these accuracies at the largest distance, and 1 at others."""

    def curve(far, near=1.0):
        values = [1.0] * len(lookup_distance.DISTANCES)
        values[lookup_distance.NEAR], values[lookup_distance.FAR] = near, far
        return [values] * 5

    curves = (curve(rnn), curve(lstm), curve(attention), curve(window, near))
    return {"accuracy": dict(zip(lookup_distance.ARMS, curves, strict=True))}


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        (lookups(0.69, 0.69, 0.9, 0.69), "holds"),
        (lookups(0.3, 0.71, 0.9, 0.3), "holds in part"),
        (lookups(0.3, 0.3, 0.89, 0.3), "does not hold here"),
        (lookups(0.3, 0.3, 1.0, 0.81), "does not hold here"),  # no difference without sight
        (lookups(0.3, 0.3, 1.0, 0.3, near=0.79), "does not hold here"),  # the window sees 20
    ],
)
def test_verdict_on_lookups(results, outcome):
    assert lookup_distance.verdict(results).outcome == outcome


# norm_position


def test_the_learning_rate_rises_for_a_third_of_the_steps_and_falls_to_zero():
    steps = jnp.arange(300)
    plain, warm = (
        np.asarray(norm_position.schedule(jnp.array(0.1), jnp.array(warmup), 300)(steps))
        for warmup in (0, 1)
    )
    assert plain.argmax() == 0
    assert warm.argmax() in (99, 100)
    np.testing.assert_allclose([plain[0], warm[99], warm[0]], [0.1, 0.1, 0.001], rtol=1e-5)
    np.testing.assert_allclose([plain[-1], warm[-1]], [0.1 / 300, 0.1 / 200], rtol=1e-4)
    assert (np.diff(warm[:100]) > 0).all()
    assert (np.diff(warm[100:]) < 0).all()


def test_only_post_norm_normalizes_the_output_of_a_layer():
    x = jax.random.normal(jax.random.key(0), (2, norm_position.TOKENS, norm_position.SIZE))

    @jax.jit
    def deviations(x):
        layers = (norm_position.Layer(norm_first) for norm_first in (False, True))
        outputs = [layer.init_with_output(jax.random.key(1), x, None)[0][0] for layer in layers]
        return [y.std(-1) for y in outputs]

    post, pre = deviations(x)
    np.testing.assert_allclose(post, 1, atol=1e-3)
    assert jnp.abs(pre - 1).max() > 0.1


def warmups(post_best, post_large, pre_best=0.0, pre_large=0.0):
    """Results of five seeds with these gains by warmup, at the best and at the large rate."""
    gains = {"post-norm": (post_best, post_large), "pre-norm": (pre_best, pre_large)}
    accuracy = {
        norm: {
            "no warmup": {"0.01": [0.5] * 5, norm_position.LARGE: [0.5] * 5},
            "warmup": {"0.01": [0.5 + best] * 5, norm_position.LARGE: [0.5 + large] * 5},
        }
        for norm, (best, large) in gains.items()
    }
    best_rates = {norm: dict.fromkeys(norm_position.WARMUPS, "0.01") for norm in gains}
    return {"accuracy": accuracy, "best_rates": best_rates}


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        (warmups(0.03, 0.0), "holds"),
        (warmups(0.01, 0.3), "holds in part"),
        (warmups(0.01, 0.2), "does not hold here"),
        (warmups(0.03, 0.0, pre_best=0.03), "does not hold here"),  # pre-norm needs it, too
        (warmups(0.01, 0.3, pre_large=0.3), "does not hold here"),
    ],
)
def test_verdict_on_the_position_of_norms(results, outcome):
    assert norm_position.verdict(results).outcome == outcome

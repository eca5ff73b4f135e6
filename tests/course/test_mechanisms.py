"""Experiments without training: rules on both sides, and the controls of the measurements."""

import copy
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxdl.ops
from flaxdl.course import (
    attention_scale,
    dependent_steps,
    head_count,
    masking,
    norm_axes,
    receptive_field,
    zero_branch,
)
from flaxdl.layers import ResidualBlock, causal_mask


@functools.cache
def measured_text(experiment):
    return json.dumps(experiment.measure(range(experiment.SEEDS), quick=True))


def measured(experiment):
    return json.loads(measured_text(experiment))


# norm_axes


def test_norms_agree_with_their_own_axes_only():
    results = measured(norm_axes)
    assert norm_axes.verdict(results).outcome == "exact"
    swapped = copy.deepcopy(results)
    for layer, other in (("BatchNorm", "LayerNorm"), ("LayerNorm", "BatchNorm")):
        swapped["differences"][layer] = results["differences"][other]
    assert norm_axes.verdict(swapped).outcome == "does not hold here"


@pytest.mark.parametrize(
    ("layer", "axes", "difference"),
    [("BatchNorm", "BatchNorm", 1e-11), ("LayerNorm", "BatchNorm", 0.09)],
)
def test_norms_are_not_exact_if_values_differ(layer, axes, difference):
    results = measured(norm_axes)
    results["differences"][layer][axes][2] = difference
    assert norm_axes.verdict(results).outcome == "does not hold here"


def test_norms_are_not_exact_if_an_output_depends_on_another_input():
    results = measured(norm_axes)
    results["inputs_of_one_output"]["LayerNorm"].append([0, 0, 0])
    assert norm_axes.verdict(results).outcome == "does not hold here"


# masking


def test_the_attention_of_the_course_is_the_layer_where_each_query_has_a_key():
    x = jax.random.normal(jax.random.key(1), (2, masking.LENGTH, masking.WIDTH))
    params = masking.LAYER.init(jax.random.key(0), x, x, x)["params"]
    mask = causal_mask(masking.LENGTH)[0, 0]
    expected = masking.by_layer(params, x, mask)
    np.testing.assert_allclose(masking.by_course(params, x, mask), expected, atol=1e-6)


def masked(**changed):
    ones = np.ones((masking.LENGTH, masking.LENGTH))
    empty = {"outputs": masking.PADDING, "gradients": ["W_v"]}
    return {
        "derivatives": {"causal": np.tril(ones), "no mask": ones} | changed,
        "not_numbers": {"course": empty, "flaxdl": {"outputs": 0, "gradients": []}},
    }


def test_verdict_on_masks():
    assert masking.verdict(masked()).outcome == "holds in part"
    everything = masked()
    everything["not_numbers"]["course"] = {"outputs": 0, "gradients": []}
    assert masking.verdict(everything).outcome == "exact"
    leak = np.tril(np.ones((masking.LENGTH, masking.LENGTH)))
    leak[2, 3] = 1e-30
    assert masking.verdict(masked(causal=leak)).outcome == "does not hold here"
    triangle = masked()["derivatives"]["causal"]
    assert masking.verdict(masked(**{"no mask": triangle})).outcome == "does not hold here"


# head_count


def test_heads_divide_the_width():
    results = measured(head_count)
    assert head_count.verdict(results).outcome == "exact"
    assert "num_heads must divide the 48 features, got 5" in results["heads"]["5"]["error"]
    more = copy.deepcopy(results)
    more["heads"]["4"]["parameters"] += 1
    assert head_count.verdict(more).outcome == "does not hold here"
    accepted = copy.deepcopy(results)
    accepted["heads"]["5"] = results["heads"]["4"]
    assert head_count.verdict(accepted).outcome == "does not hold here"


# attention_scale


def test_equal_and_certain_weights_have_known_entropy_and_gradient():
    equal, certain = jnp.full((1, 4), 0.25), jnp.eye(4)[:1]
    assert attention_scale.entropy(equal) == pytest.approx(1.0)
    assert attention_scale.gradient(equal) == pytest.approx(3**0.5 / 4)
    assert attention_scale.entropy(certain) == 0
    assert attention_scale.gradient(certain) == 0
    weights = jax.nn.softmax(jnp.array([[1.0, 4.0, 3.5], [0.0, 0.0, 0.5], [9.0, 2.0, 1.0]]))
    assert attention_scale.gap(weights) == pytest.approx(0.5, rel=1e-5)


def test_with_one_feature_the_division_changes_nothing():
    divided, plain, _ = (attention_scale.attention_weights(a, 1, 0) for a in attention_scale.ARMS)
    np.testing.assert_array_equal(divided, plain)


def scaled(entropy, gradient, **plain):
    """Results whose undivided arm has these medians, by width; the divided one has 0.9 and 0.2."""
    found = {"entropy": {}, "gradient": {}}
    for arm in attention_scale.ARMS:
        for width in map(str, attention_scale.WIDTHS):
            values = plain.get(f"at_{width}", (0.9, 0.2))
            if width == attention_scale.WIDEST:
                values = (entropy, gradient)
            values = values if arm == "not divided" else (0.9, 0.2)
            for name, value in zip(("entropy", "gradient"), values, strict=True):
                found[name].setdefault(arm, {})[width] = [value] * 5
    return found


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        (scaled(0.5, 0.01, at_64=(0.5, 0.01)), "holds"),
        (scaled(0.5, 0.01, at_64=(0.5, 0.03)), "holds in part"),
        (scaled(0.5, 0.01), "holds in part"),
        (scaled(0.65, 0.01), "does not hold here"),
        (scaled(0.5, 0.03), "does not hold here"),
        (scaled(0.5, 0.01, at_1=(0.5, 0.01)), "does not hold here"),  # the control
    ],
)
def test_verdict_on_the_division(results, outcome):
    assert attention_scale.verdict(results).outcome == outcome


# zero_branch


def test_the_block_is_that_of_the_course():
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, zero_branch.CHANNELS))
    block = ResidualBlock(zero_branch.CHANNELS)
    variables = block.init(jax.random.key(0), x)
    expected, _ = block.apply(variables, x, train=True, mutable=["batch_stats"])
    outputs, _ = zero_branch.Block().apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(outputs, expected)


def test_without_a_skip_only_a_branch_that_is_not_zero_passes_gradients():
    assert zero_branch.gradient_by_depth("no skip", 0)[0] == 0
    assert zero_branch.gradient_by_depth("no skip", 0, branch_scale=1.0)[0] > 0


@pytest.mark.parametrize(
    ("skip", "without", "outcome"),
    [
        (0.5 + 1e-6, 0.0, "holds"),
        (0.499, 0.0, "does not hold here"),
        (0.9, 1e-9, "does not hold here"),
    ],
)
def test_verdict_on_zero_branches(skip, without, outcome):
    left = dict.fromkeys(zero_branch.ARMS, 1.0) | {"skip": skip, "no skip": without}
    norms = {arm: [[fraction, 1.0, 1.0]] * 5 for arm, fraction in left.items()}
    assert zero_branch.verdict({"norms": norms}).outcome == outcome


# receptive_field


@pytest.mark.parametrize(
    ("layers", "size"),
    [
        (("conv",), 3),
        (("conv", "conv"), 5),
        (("conv", "pool"), 4),
        (("conv", "pool", "conv"), 8),
        (("conv", "pool", "conv", "pool", "conv"), 18),
        (("linear",), receptive_field.SIZE),
    ],
)
def test_theory_of_receptive_fields(layers, size):
    assert receptive_field.theory(layers) == size


def test_a_unit_sees_nothing_outside_its_field_and_a_linear_one_sees_everything():
    field = receptive_field.gradient_map(("conv", "conv"), 0)
    inside = np.zeros_like(field, bool)
    inside[22:27, 22:27] = True
    np.testing.assert_array_equal(field > 0, inside)
    assert receptive_field.gradient_map(("linear",), 0).min() > 0


def test_an_even_spread_has_known_values():
    spread = receptive_field.spread_evenly(("conv", "conv"))  # squared: 1 2 3 2 1 along a side
    assert spread.shape == (5, 5)
    np.testing.assert_allclose(spread[0], np.sqrt([1, 2, 3, 2, 1]) / 3)
    assert receptive_field.effective_size(spread) == 5
    for layers in receptive_field.NETWORKS.values():
        assert len(receptive_field.spread_evenly(layers)) == receptive_field.theory(layers)


def test_verdict_on_receptive_fields():
    size = {"theory": 5, "measured": [5] * 5, "effective": [2.0] * 5}
    sizes = dict.fromkeys(receptive_field.NETWORKS, size)
    assert receptive_field.verdict({"sizes": sizes}).outcome == "holds"
    sizes["linear"] = size | {"measured": [5, 5, 4, 5, 5]}
    assert receptive_field.verdict({"sizes": sizes}).outcome == "does not hold here"


# dependent_steps


def test_chains_of_products():
    def in_a_row(x):
        return jax.lax.scan(lambda c, a: (jnp.tanh(c @ x), a @ x), x, jnp.stack([x] * 6))

    def side_by_side(x):
        return sum(x @ x for _ in range(6))

    x = jnp.eye(2)
    assert dependent_steps.chain(jax.make_jaxpr(in_a_row)(x).jaxpr, [0]) == [6, 1]
    assert dependent_steps.chain(jax.make_jaxpr(side_by_side)(x).jaxpr, [0]) == [1]
    nested = jax.make_jaxpr(jax.jit(lambda x: jax.jit(side_by_side)(x) @ x))(x)
    assert dependent_steps.chain(nested.jaxpr, [3]) == [5]


@pytest.mark.parametrize(
    ("task", "lstm", "attention"), [("reading", 5, 4), ("training", 10, 8), ("generation", 5, 20)]
)
def test_chains_of_the_layers(task, lstm, attention):
    with flaxdl.ops.reference():
        for layer, expected in (("LSTM", lstm), ("attention", attention)):
            function, x = dependent_steps.task(task, layer, 5)
            program = jax.make_jaxpr(function)(x)
            assert max(dependent_steps.chain(program.jaxpr, [0])) == expected


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({}, "exact"),
        ({"reading": {"LSTM": [16, 64], "attention": [4, 4]}}, "does not hold here"),
        ({"training": {"LSTM": [16, 256], "attention": [4, 5]}}, "does not hold here"),
        ({"generation": {"LSTM": [16, 256], "attention": [4, 4]}}, "does not hold here"),
    ],
)
def test_verdict_on_chains(changed, outcome):
    chains = {"reading": {"LSTM": [16, 256], "attention": [4, 4]}}
    chains["training"] = chains["reading"]
    chains |= {"generation": {"LSTM": [16, 256], "attention": [4, 64]}} | changed
    assert dependent_steps.verdict({"chains": chains}).outcome == outcome

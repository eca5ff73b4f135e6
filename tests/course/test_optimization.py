"""Experiments on normalization, attention scales and training: rules on both sides, mechanisms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxdl import UserError
from flaxdl.course import (
    adam_default,
    attention_scale_training,
    cosine_schedule,
    dropout,
    gradient_clipping,
    gru_or_lstm,
    norm_batch_size,
    norm_learning_rates,
    training,
)
from flaxdl.course.experiment import is_equal
from flaxdl.layers import Linear

# training


def test_each_epoch_has_every_example_once():
    batches = np.asarray(training.draw_batches(jax.random.key(0), 12, 4, 7))
    assert batches.shape == (7, 4)
    assert sorted(batches[:3].ravel()) == sorted(batches[3:6].ravel()) == list(range(12))
    assert (batches[:3] != batches[3:6]).any()


class Line(nn.Module):
    """Linear classifier that ignores `train`."""

    @nn.compact
    def __call__(self, x, train=False):
        return Linear(2, name="fc")(x)


def test_a_grid_is_each_training_alone_and_the_best_rate_is_that_of_the_pilot_seeds():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((40, 3)).astype("f4")
    data = (inputs, (inputs[:, 0] > 0).astype("i4"))
    splits = training.Splits(data, data, data)

    def run(variables, key, rate):
        batches = training.draw_batches(key, 40, 8, 20)
        return training.fit(Line(), variables, optax.sgd(rate), data, batches, key)

    rates = (1e-3, 0.3, 1e4)
    variables, losses = training.sweep(Line(), run, rates, (3, 4), inputs)
    assert losses.shape == (3, 2, 20)
    alone = run(Line().init(jax.random.key(4), inputs[:2]), jax.random.key(4), 0.3)
    np.testing.assert_allclose(losses[1, 1], alone[1], rtol=1e-5)
    kernel = variables["params"]["fc"]["kernel"][1, 1]
    np.testing.assert_allclose(kernel, alone[0]["params"]["fc"]["kernel"], rtol=1e-4, atol=1e-6)
    best = training.tuned(Line(), run, rates, (3, 4), splits)
    assert best.rate == 0.3
    assert best.accuracy == best.by_rate[1]
    assert min(best.accuracy) > 0.9 > np.mean(best.by_rate[0])


def test_splits_of_digits_have_no_image_in_common():
    splits = training.load_digits()
    assert [len(labels) for _, labels in splits] == [1077, 360, 360]
    names = [{image.tobytes() for image in images} for images, _ in splits]
    assert len(names[0] | names[1] | names[2]) == sum(map(len, names))


# norm_batch_size


def test_one_value_per_channel_is_refused():
    model = norm_batch_size.MLP("BatchNorm")
    image = np.zeros((1, 8, 8), "f4")
    variables = model.init(jax.random.key(0), image)
    with pytest.raises(UserError, match="more than one value per channel"):
        training.loss_of(model, variables, image, np.zeros(1, "i4"), jax.random.key(0))


def test_only_batchnorm_in_training_depends_on_others_and_padding_and_loses_the_example():
    with jax.enable_x64(True):
        found = {
            (kind, training): norm_batch_size.changes(kind, training, 0)
            for kind in norm_batch_size.NORMS
            for training in (True, False)
        }
    batch = found.pop(("BatchNorm", True))
    assert min(batch["others"], batch["padding"]) > 0.1
    assert batch["example"] < 1e-12  # the mean over the rows of one example is the bias
    for change in found.values():
        assert change["others"] == change["padding"] == 0
        assert change["example"] > 0.1


def by_size(layer, batch, transformer, *, changed=(0.0, 1.0)):
    """Results: accuracies with LayerNorm at 64 and 1, and BatchNorm's smallest in both nets."""
    large, small = layer
    layer = {"1": [small] * 5, "64": [large] * 5}
    accuracy = {
        "MLP": {"LayerNorm": layer | {"2": [0.9] * 5}, "BatchNorm": {"2": batch, "64": [0.9] * 5}},
        "Transformer": {
            "LayerNorm": layer,
            "BatchNorm": {"1": transformer, "64": [0.9] * 5},
        },
    }
    own, others = ({"others": change, "padding": change} for change in changed)
    never = {"others": 0.0, "padding": 0.0}
    changes = {
        "LayerNorm": {"training": [own] * 5, "eval": [never] * 5},
        "BatchNorm": {"training": [others] * 5, "eval": [never] * 5},
    }
    return {"accuracy": accuracy, "changes": changes}


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        (by_size((0.9, 0.9), [0.84] * 5, [0.84] * 5), "holds"),
        (by_size((0.9, 0.9), [0.84] * 5, [0.86] * 5), "holds in part"),
        (by_size((0.9, 0.9), [0.84] * 4 + [0.91], [0.86] * 5), "does not hold here"),
        (by_size((0.9, 0.87), [0.7] * 5, [0.7] * 5), "does not hold here"),  # LayerNorm is worse
        (by_size((0.96, 0.96), [0.7] * 5, [0.7] * 5), "does not hold here"),  # at 64, the control
        (by_size((0.9, 0.9), [0.7] * 5, [0.7] * 5, changed=(1e-4, 1.0)), "does not hold here"),
        (by_size((0.9, 0.9), [0.7] * 5, [0.7] * 5, changed=(0.0, 1e-3)), "does not hold here"),
    ],
)
def test_verdict_on_batch_sizes(results, outcome):
    assert norm_batch_size.verdict(results).outcome == outcome


# attention_scale_training


def test_answers_of_lookups():
    pairs = attention_scale_training.PAIRS
    tokens, answers = attention_scale_training.make_examples(50, 0)
    for row, answer in zip(tokens.tolist(), answers.tolist(), strict=True):
        keys, values, query = row[:pairs], row[pairs:-1], row[-1]
        assert len(set(keys)) == pairs
        assert values[keys.index(query)] == answer


def test_scores_without_the_division_are_larger_unless_the_start_is_small():
    tokens, _ = attention_scale_training.make_examples(20, 0)
    spreads = {}
    for arm in attention_scale_training.ARMS:
        model = attention_scale_training.Lookup(arm, 64)
        variables = training.initialize(model, np.arange(2), tokens[:2])
        spreads[arm] = np.asarray(attention_scale_training.spread(model, variables, tokens))
    divided, plain, small = spreads.values()
    np.testing.assert_allclose(plain, 8 * divided, rtol=1e-5)
    np.testing.assert_allclose(small, divided, rtol=1e-5)


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        ({"64": 0.06, "512": 0.06}, "holds"),
        ({"64": 0.04, "512": 0.06}, "holds in part"),
        ({"64": 0.06, "512": 0.04}, "does not hold here"),
        ({"4": 0.06, "64": 0.06, "512": 0.06}, "does not hold here"),  # the control
    ],
)
def test_verdict_on_training_with_the_division(gains, outcome):
    divided, plain, small = attention_scale_training.ARMS
    widths = list(map(str, attention_scale_training.WIDTHS))
    accuracy = {
        divided: {width: [0.5 + gains.get(width, 0.0)] * 5 for width in widths},
        plain: {width: [0.5] * 5 for width in widths},
        small: {width: [0.5] * 5 for width in widths},
    }
    assert attention_scale_training.verdict({"accuracy": accuracy}).outcome == outcome


# is_equal


def spread_around(mean, deviation=0.005, count=10):
    return [mean + deviation * (-1) ** number for number in range(count)]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        # The bound on the mean is 0.01 - t(0.95, 9) * s / √10 = 0.01 - 1.8331 * 0.0052705 / 3.1623.
        (spread_around(0.00694), True),
        (spread_around(0.00695), False),
        (spread_around(-0.00694), True),
        (spread_around(-0.00695), False),
        (spread_around(0.0, 0.02), False),  # no difference can be proven, nor equality
        ([0.009] * 10, True),
        ([0.01] * 10, False),
    ],
)
def test_equality_is_proven_by_two_one_sided_tests(differences, expected):
    assert is_equal(differences, margin=0.01) is expected


def test_equality_needs_ten_differences():
    with pytest.raises(ValueError, match="at least 10 paired differences are needed, got 9"):
        is_equal([0.0] * 9, 0.01)


# norm_learning_rates


def by_rate(**good):
    """Results in which so many learning rates are good, by arm; others have four."""
    rates = norm_learning_rates.RATES
    counts = dict.fromkeys(norm_learning_rates.ARMS, 4) | good
    accuracy = {
        arm: [[0.9 if place < count else 0.89] * 5 for place in range(len(rates))]
        for arm, count in counts.items()
    }
    return {"accuracy": accuracy, "rates": list(rates)}


@pytest.mark.parametrize(
    ("good", "outcome"),
    [
        ({"BatchNorm": 6, "LayerNorm": 6}, "holds"),
        ({"BatchNorm": 6, "LayerNorm": 5}, "holds in part"),
        ({"BatchNorm": 5, "LayerNorm": 5}, "does not hold here"),
        ({"BatchNorm": 6, "LayerNorm": 6, "scale and bias": 6}, "does not hold here"),
    ],
)
def test_verdict_on_learning_rates(good, outcome):
    assert norm_learning_rates.verdict(by_rate(**good)).outcome == outcome


# adam_default


def optimized(adam, sgd_at_default, transformer=(0.95,) * 4):
    """Results: accuracy of Adam at four rates from 1e-3, and of SGD, best at 0.1, at 1e-3."""
    rates = [1e-3, 3e-3, 1e-2, 0.1]
    sgd = [sgd_at_default, 0.8, 0.8, 0.95]
    accuracy = {
        net: {
            "Adam": [[value] * 5 for value in values],
            "SGD with momentum": [[value] * 5 for value in sgd],
        }
        for net, values in (("CNN", adam), ("Transformer", transformer))
    }
    chosen = {net: {"SGD with momentum": 0.1} for net in accuracy}
    return {"accuracy": accuracy, "rates": rates, "learning_rates": chosen}


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        (optimized((0.94, 0.94, 0.2, 0.2), 0.2), "holds"),
        (optimized((0.94, 0.2, 0.2, 0.2), 0.2), "holds in part"),  # only one rate is good
        (optimized((0.92, 0.95, 0.95, 0.95), 0.2), "does not hold here"),
        (optimized((0.94, 0.94, 0.2, 0.2), 0.94), "does not hold here"),  # the control
    ],
)
def test_verdict_on_adam(results, outcome):
    assert adam_default.verdict(results).outcome == outcome


# cosine_schedule


def test_schedules_at_the_start_the_middle_and_the_end():
    rates = {
        arm: [
            float(cosine_schedule.schedule(arm, jnp.asarray(0.2), 100)(step))
            for step in (0, 50, 100)
        ]
        for arm in cosine_schedule.ARMS
    }
    constant, cosine, risen = rates.values()
    np.testing.assert_allclose(constant, 0.2)
    np.testing.assert_allclose(cosine, [0.2, 0.1, 0.0], atol=1e-6)
    np.testing.assert_allclose(risen, [0.2, 0.0, 0.2], atol=1e-6)


@pytest.mark.parametrize(
    ("mlp", "transformer", "control", "outcome"),
    [
        (0.91, 0.91, 0.9, "holds"),
        (0.91, 0.909, 0.9, "holds in part"),
        (0.909, 0.909, 0.9, "does not hold here"),
        (0.95, 0.95, 0.92, "does not hold here"),
    ],
)
def test_verdict_on_schedules(mlp, transformer, control, outcome):
    accuracy = {
        net: dict(zip(cosine_schedule.ARMS, ([0.9] * 5, [best] * 5, [control] * 5), strict=True))
        for net, best in (("MLP", mlp + 1e-9), ("Transformer", transformer + 1e-9))
    }
    assert cosine_schedule.verdict({"accuracy": accuracy}).outcome == outcome


# gradient_clipping


def test_the_recurrent_matrix_gets_its_spectral_radius():
    task = gradient_clipping.make_tasks()["RNN, radius 1.2"]
    variables = task.model.init(jax.random.key(0), task.splits.train[0][:1])
    weight = gradient_clipping.start(task, variables)["params"]["rnn"]["weight_hh_l0"]
    assert np.abs(np.linalg.eigvals(weight)).max() == pytest.approx(1.2, rel=1e-5)


@pytest.mark.parametrize(
    ("rnn", "transformer", "control", "outcome"),
    [
        (0.2, 0.2, 0.1, "holds"),
        (0.2, 0.19, 0.1, "holds in part"),
        (0.19, 0.19, 0.1, "does not hold here"),
        (0.9, 0.9, 0.2, "does not hold here"),
    ],
)
def test_verdict_on_clipping(rnn, transformer, control, outcome):
    names = list(gradient_clipping.make_tasks())
    explosions = {
        name: {"clipped": [[0.1] * 5], "not clipped": [[value + 1e-9] * 5]}
        for name, value in zip(names, (rnn, transformer, control), strict=True)
    }
    results = {"explosions": explosions, "rates": [gradient_clipping.HIGH]}
    assert gradient_clipping.verdict(results).outcome == outcome


# gru_or_lstm


def cells(names, digits, rnn=0.8):
    accuracy = {
        task: {"lstm": [0.9] * 10, "gru": spread_around(gru, 0.001), "rnn": [rnn] * 10}
        for task, gru in (("names", names), ("rows of digits", digits))
    }
    parameters = {task: {"lstm": 4, "gru": 3, "rnn": 1} for task in accuracy}
    return {"accuracy": accuracy, "parameters": parameters}


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        (cells(0.892, 0.892), "holds"),
        (cells(0.892, 0.95), "holds"),  # better is as good
        (cells(0.892, 0.889), "holds in part"),
        (cells(0.889, 0.889), "does not hold here"),
        (cells(0.892, 0.892, rnn=0.9), "does not hold here"),  # the control
    ],
)
def test_verdict_on_cells(results, outcome):
    assert gru_or_lstm.verdict(results).outcome == outcome
    results["parameters"]["names"] = {"lstm": 3, "gru": 3, "rnn": 1}
    assert gru_or_lstm.verdict(results).outcome == "does not hold here"


# dropout


def test_dropout_is_off_in_eval_mode_only():
    change = dropout.repeated(0)
    assert change["eval"] == 0
    assert change["training"] > 0.1


def dropped(gap, accuracy, many=0.9, off=0.0):
    few, most = str(dropout.EXAMPLES[0]), str(dropout.EXAMPLES[-1])
    counts = list(map(str, dropout.EXAMPLES))
    without = {
        "gap": dict.fromkeys(counts, [0.5] * 5),
        "accuracy": dict.fromkeys(counts, [0.9] * 5),
    }
    with_ = {
        "gap": without["gap"] | {few: [gap] * 5},
        "accuracy": without["accuracy"] | {few: [accuracy] * 5, most: [many] * 5},
    }
    results = {
        name: {"0.0": without[name], dropout.COURSE: with_[name]} for name in ("gap", "accuracy")
    }
    return results | {"changes": [{"training": 1.0, "eval": off}] * 5}


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        (dropped(0.44, 0.911), "holds"),
        (dropped(0.44, 0.909), "holds in part"),
        (dropped(0.46, 0.95), "does not hold here"),
        (dropped(0.44, 0.95, many=0.92), "does not hold here"),  # the control
        (dropped(0.44, 0.95, off=1e-6), "does not hold here"),
    ],
)
def test_verdict_on_dropout(results, outcome):
    assert dropout.verdict(results).outcome == outcome

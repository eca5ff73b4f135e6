"""Losses and metrics of each task, against NumPy by hand."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_runs import small_config

from flaxdl.runs.setup import set_up
from flaxdl.training import Classification, LanguageModeling, SequenceToSequence, Task
from flaxdl.training.metrics import MetricSums
from flaxdl.training.tasks.task import check_metrics


def random_logits(*shape):
    return np.random.default_rng(0).normal(0, 2, shape)


def negative_log_likelihood(logits, label):
    return np.log(np.exp(logits).sum()) - logits[label]


def means(task, logits, batch):
    return MetricSums.of(task.metrics(jnp.asarray(logits), batch)).means()


def test_the_label_is_searched_among_the_best_five():
    logits = np.tile(np.arange(12.0), (4, 1))  # class 11 is the most likely, 7 the fifth
    batch = {"label": np.array([11, 7, 6, 0]), "weight": np.array([1.0, 1.0, 1.0, 0.0])}
    found = means(Classification(), logits, batch)
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["top_5_accuracy"] == pytest.approx(2 / 3)
    assert "top_5_accuracy" not in Classification().metrics(jnp.zeros((4, 10)), batch)


@pytest.fixture
def texts():
    """Two texts of a batch of three; the third has no weight."""
    return {
        "inputs": np.array([[3, 1, 2, 4], [2, 2, 0, 0], [1, 1, 1, 1]], np.int32),
        "lengths": np.array([4, 2, 4], np.int32),
        "weight": np.array([1.0, 1.0, 0.0], np.float32),
    }


def test_a_language_model_is_scored_on_the_tokens_that_follow(texts):
    logits = random_logits(3, 4, 5)
    # The real tokens that have one before them: three of the first text, one of the second.
    places = [(0, 0, 1), (0, 1, 2), (0, 2, 4), (1, 0, 2)]
    losses = [negative_log_likelihood(logits[b, t], token) for b, t, token in places]
    right = [logits[b, t].argmax() == token for b, t, token in places]
    found = means(LanguageModeling(), logits, texts)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["bits_per_token"] == pytest.approx(np.mean(losses) / np.log(2), rel=1e-5)
    assert found["accuracy"] == pytest.approx(np.mean(right))
    loss = LanguageModeling().loss(jnp.asarray(logits), texts)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_language_model_without_lengths_is_scored_on_all_tokens(texts):
    del texts["lengths"]
    logits = random_logits(3, 4, 5)
    losses = [
        negative_log_likelihood(logits[b, t], texts["inputs"][b, t + 1])
        for b in range(2)
        for t in range(3)
    ]
    assert means(LanguageModeling(), logits, texts)["loss"] == pytest.approx(
        np.mean(losses), rel=1e-5
    )


def test_a_burn_in_is_context_without_weight(texts):
    """Of the first text, tokens 2 and 3 count; of the second, which has two tokens, token 1."""
    texts["burn_in"] = np.array([2, 1, 0], np.int32)
    logits = random_logits(3, 4, 5)
    places = [(0, 1, 2), (0, 2, 4), (1, 0, 2)]
    losses = [negative_log_likelihood(logits[b, t], token) for b, t, token in places]
    right = [logits[b, t].argmax() == token for b, t, token in places]
    found = means(LanguageModeling(), logits, texts)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["accuracy"] == pytest.approx(np.mean(right))
    _, weights = LanguageModeling().losses(jnp.asarray(logits), texts)
    np.testing.assert_array_equal(weights, [[0, 1, 1], [1, 0, 0], [0, 0, 0]])
    inputs, keywords = LanguageModeling().model_arguments(texts)
    assert inputs is texts["inputs"]
    assert list(keywords) == ["lengths"]


@pytest.fixture
def pairs():
    """Labels of lengths 3, 2 and 1; the third has no weight."""
    return {
        "label": np.array([[4, 2, 3], [2, 3, 0], [3, 0, 0]], np.int32),
        "target_lengths": np.array([3, 2, 1], np.int32),
        "weight": np.array([1.0, 1.0, 0.0], np.float32),
    }


def test_translations_are_scored_by_token_and_by_text(pairs):
    logits = random_logits(3, 3, 5)
    logits[1, [0, 1], [2, 3]] = 9  # the second text is right, whatever is said at its padding
    logits[1, 2, 4] = 9
    logits[0, [0, 1, 2], [4, 2, 1]] = 9  # the first is wrong in its last token
    places = [(0, 0, 4), (0, 1, 2), (0, 2, 3), (1, 0, 2), (1, 1, 3)]
    losses = [negative_log_likelihood(logits[b, s], token) for b, s, token in places]
    found = means(SequenceToSequence(), logits, pairs)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["accuracy"] == pytest.approx(4 / 5)
    assert found["exact_match"] == pytest.approx(1 / 2)
    loss = SequenceToSequence().loss(jnp.asarray(logits), pairs)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)


def test_smoothing_spreads_over_all_tokens(pairs):
    logits = random_logits(3, 3, 5)
    losses = [
        0.8 * negative_log_likelihood(logits[b, s], token)
        + 0.2 * np.mean([negative_log_likelihood(logits[b, s], other) for other in range(5)])
        for b, s, token in [(0, 0, 4), (0, 1, 2), (0, 2, 3), (1, 0, 2), (1, 1, 3)]
    ]
    loss = SequenceToSequence(label_smoothing=0.2).loss(jnp.asarray(logits), pairs)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize("task", [LanguageModeling(), SequenceToSequence()])
def test_what_is_padding_or_without_weight_never_counts(task, texts, pairs):
    batch = texts | pairs
    logits = jnp.asarray(random_logits(3, 4 if isinstance(task, LanguageModeling) else 3, 5))
    changed = logits.at[2].set(jnp.nan).at[1, 2:].set(jnp.nan)
    assert means(task, changed, batch) == pytest.approx(means(task, logits, batch))


@pytest.mark.parametrize("task", [LanguageModeling(), SequenceToSequence()])
def test_one_answer_for_a_text_is_refused(task):
    with pytest.raises(ValueError, match="the model's outputs must have shape"):
        task.check(jax.ShapeDtypeStruct((8, 10), jnp.float32), None)


def test_impossible_smoothing_is_named():
    for task in (Classification, SequenceToSequence):
        with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got 1.0"):
            task(label_smoothing=1.0)


@pytest.mark.parametrize("name", ["step", "split", "learning_rate", "examples_per_second", 3])
def test_a_metric_with_a_name_that_is_taken_is_refused(name):
    with pytest.raises(ValueError, match=f"Task.metrics must not name a metric {name!r}"):
        check_metrics(Task(), ["loss", name])


def test_a_task_without_a_loss_among_its_metrics_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class NoLoss(Classification):
        def metrics(self, outputs, batch):
            return {"accuracy": super().metrics(outputs, batch)["accuracy"]}

    config = small_config(task=NoLoss())
    with pytest.raises(ValueError, match="NoLoss.metrics must return 'loss', got accuracy"):
        set_up(config)

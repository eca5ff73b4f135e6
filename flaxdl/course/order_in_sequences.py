"""Does order matter in sequences, and does an RNN keep it?

Each sequence of 12 letters has one A and one B among other random letters; the question is which
comes first. A bag of letters (the mean of their embeddings) sees the same bag in both cases, so it
cannot do better than chance. An RNN reads the letters in order. As a control, both answer a
question that does not depend on the order: whether the letter C occurs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import (
    COLORS,
    PILOT_SEEDS,
    Results,
    Verdict,
    best_rate,
    is_larger,
    make_figure,
)
from flaxdl.layers import RNN, Embedding, Linear

CLAIM = "In sequences, order matters, and an RNN carries it in its hidden state."
EXPECTED = "holds"
SEEDS = 5

LETTERS, LENGTH, BATCH, TEST = 8, 12, 64, 2000
A, B, C = 0, 1, 2
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
MARGIN = 0.2  # of accuracy


class Bag(nn.Module):
    """Classifier of the mean of the embeddings."""

    @nn.compact
    def __call__(self, letters: jax.Array) -> jax.Array:
        """Maps letters int32[B, T] to logits [B, 2]."""
        x = Embedding(LETTERS, 16, name="embedding")(letters).mean(1)
        return Linear(2, name="fc")(nn.relu(Linear(32, name="hidden")(x)))


class Reader(nn.Module):
    """Classifier of the last output of an RNN."""

    @nn.compact
    def __call__(self, letters: jax.Array) -> jax.Array:
        """Maps letters int32[B, T] to logits [B, 2]."""
        x = Embedding(LETTERS, 16, name="embedding")(letters)
        outputs, _ = RNN(hidden_size=32, name="rnn")(x)
        return Linear(2, name="fc")(outputs[:, -1])


MODELS = {"bag of letters": Bag(), "RNN": Reader()}


def make_sequences(key: jax.Array, count: int, question: str) -> tuple[jax.Array, jax.Array]:
    """Draws sequences int32[count, LENGTH] and their labels int32[count]."""
    letters_key, places_key, label_key, place_key = jax.random.split(key, 4)
    letters = jax.random.randint(letters_key, (count, LENGTH), C + 1, LETTERS)
    label = jax.random.bernoulli(label_key, shape=(count,)).astype(jnp.int32)
    rows = jnp.arange(count)
    if question == "does C occur?":
        places = jax.random.randint(place_key, (count,), 0, LENGTH)
        return letters.at[rows, places].set(jnp.where(label, C, letters[rows, places])), label
    shuffled = jax.vmap(lambda k: jax.random.permutation(k, LENGTH)[:2])
    first, second = jnp.sort(shuffled(jax.random.split(places_key, count)), axis=1).T
    letters = letters.at[rows, first].set(jnp.where(label, A, B))
    return letters.at[rows, second].set(jnp.where(label, B, A)), label


def train(model: nn.Module, question: str, steps: int) -> Callable:
    """Returns a function of seed and learning rate: the final loss and the test accuracy."""

    def logits_of(params: Any, letters: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, letters)
        assert isinstance(logits, jax.Array)
        return logits

    def losses(params, batch):
        logits = logits_of(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def run(seed: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
        init_key, data_key, test_key = jax.random.split(jax.random.key(seed), 3)
        params = model.init(init_key, jnp.zeros((1, LENGTH), jnp.int32))["params"]
        adam = optax.adam(rate)

        def step(carry, key):
            params, state = carry
            loss, gradients = jax.value_and_grad(losses)(
                params, make_sequences(key, BATCH, question)
            )
            updates, state = adam.update(gradients, state)
            return (optax.apply_updates(params, updates), state), loss

        keys = jax.random.split(data_key, steps)
        (params, _), history = jax.lax.scan(step, (params, adam.init(params)), keys)
        letters, label = make_sequences(test_key, TEST, question)
        correct = logits_of(params, letters).argmax(-1) == label
        return history[-20:].mean(), correct.mean()

    return jax.jit(jax.vmap(run))


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the test accuracy by question, model and seed, and the chosen learning rates."""
    steps = 300 if quick else 1500
    accuracy, rates = {}, {}
    for question in ("A before B?", "does C occur?"):
        for name, model in MODELS.items():
            run = train(model, question, steps)
            grid = [(seed, rate) for rate in RATES for seed in PILOT_SEEDS]
            found, _ = run(*map(jnp.asarray, zip(*grid, strict=True)))
            by_rate = np.asarray(found).reshape(len(RATES), -1)
            rate = best_rate(dict(zip(RATES, by_rate.tolist(), strict=True)))
            _, correct = run(jnp.asarray(seeds), jnp.full(len(seeds), rate))
            accuracy.setdefault(question, {})[name] = np.asarray(correct).round(4).tolist()
            rates.setdefault(question, {})[name] = rate
    return {"accuracy": accuracy, "learning_rates": rates}


def differences(results: Results, question: str) -> list[float]:
    """Returns, for each seed, the accuracy of the RNN minus that of the bag."""
    of = results["accuracy"][question]
    return [rnn - bag for rnn, bag in zip(of["RNN"], of["bag of letters"], strict=True)]


def verdict(results: Results) -> Verdict:
    """Holds if the RNN is better by the margin where order matters, and not where it does not."""
    ordered = differences(results, "A before B?")
    control = differences(results, "does C occur?")
    reason = (
        f"The RNN answers {100 * np.median(ordered):.1f} points more of the questions about order "
        f"than the bag of letters (median), and {100 * np.median(control):.1f} points more of "
        "those that do not depend on it."
    )
    holds = is_larger(ordered, MARGIN) and not is_larger(control, MARGIN)
    return Verdict("holds" if holds else "does not hold here", reason)


def draw(results: Results):
    """Draws the accuracy of both models for both questions, a point for each seed."""
    figure = make_figure(width=5.0)
    (axes,) = figure.axes
    questions = list(results["accuracy"])
    for number, name in enumerate(MODELS):
        for place, question in enumerate(questions):
            values = [100 * value for value in results["accuracy"][question][name]]
            x = place + 0.3 * (number - 0.5)
            label = name if place == 0 else None
            axes.bar(x, np.median(values), 0.26, color=COLORS[number], alpha=0.5, label=label)
            axes.plot([x] * len(values), values, "o", color=COLORS[number])
    axes.axhline(50, linestyle="--", color=COLORS[4], label="chance")
    axes.set_xticks(range(len(questions)), questions)
    axes.set(ylabel="test accuracy (%)", ylim=(40, 103))
    axes.set_axisbelow(True)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=9)
    return figure

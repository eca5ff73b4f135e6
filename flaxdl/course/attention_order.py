"""Does attention know the order of a sequence?

The course's Transformer has no positions: attention compares tokens with tokens, wherever they are.
The task is that of `order_in_sequences`: a sequence of 12 letters has one A and one B, and the
question is which comes first. A Transformer block, followed by the mean over the letters, is
trained with and without sinusoidal positions added to the embeddings.

As a control, both answer a question that does not depend on the order: whether C occurs.
"""

import statistics
from collections.abc import Sequence
from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.course.experiment import COLORS, Results, Verdict, is_larger, make_figure
from flaxdl.course.order_in_sequences import BATCH, LENGTH, LETTERS, TEST, make_sequences
from flaxdl.course.seeds_and_rates import Logits, choose_rates, train_seeds, trainer
from flaxdl.layers import Embedding, Linear, TransformerBlock, sinusoidal_positions

CLAIM = "Without positions, attention has no order: to it, a sequence is a bag of tokens."
EXPECTED = "holds: chance without positions"
SEEDS = 5

SIZE = 32
QUESTIONS = ("A before B?", "does C occur?")
ARMS = ("without positions", "with positions")
RATES = (1e-3, 3e-3, 1e-2)
MARGIN = 0.2  # of accuracy; chance is 0.5


class Reader(nn.Module):
    """Classifier of the mean over the outputs of a Transformer block."""

    @nn.compact
    def __call__(self, letters: jax.Array, positions: jax.Array) -> jax.Array:
        """Maps letters int32[B, T] to logits [B, 2]; `positions` is 1 to add positions, else 0."""
        x = Embedding(LETTERS, SIZE, name="embedding")(letters)
        x = x + positions * jnp.asarray(sinusoidal_positions(LENGTH, SIZE), x.dtype)
        x = TransformerBlock(SIZE, num_heads=4, feed_forward_size=2 * SIZE, name="block")(x)
        return Linear(2, name="fc")(x.mean(1))


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the test accuracy by question, arm and seed, and the chosen learning rates."""
    settings = list(product(range(len(QUESTIONS)), range(len(ARMS))))
    questions, arms = map(jnp.array, zip(*settings, strict=True))

    def sequences(key: jax.Array, count: int, setting: jax.Array):
        of_each = [make_sequences(key, count, question) for question in QUESTIONS]
        letters, label = (jnp.stack(x)[questions[setting]] for x in zip(*of_each, strict=True))
        return (letters, arms[setting]), label

    def draw(key: jax.Array, setting: jax.Array):
        return sequences(key, BATCH, setting)

    def evaluate(logits: Logits, setting: jax.Array) -> jax.Array:
        inputs, label = sequences(jax.random.key(0), TEST, setting)
        return (logits(*inputs).argmax(-1) == label).mean()

    train = trainer(Reader(), draw, evaluate, 100 if quick else 600)
    numbers = range(len(settings))
    rates = choose_rates(train, RATES[1:2] if quick else RATES, numbers)
    found = train_seeds(train, seeds, rates, numbers).round(4).tolist()
    accuracy, chosen = {q: {} for q in QUESTIONS}, {q: {} for q in QUESTIONS}
    for (question, arm), values, rate in zip(settings, found, rates, strict=True):
        accuracy[QUESTIONS[question]][ARMS[arm]] = values
        chosen[QUESTIONS[question]][ARMS[arm]] = rate
    return {"accuracy": accuracy, "learning_rates": chosen}


def differences(results: Results, question: str) -> list[float]:
    """Returns, for each seed, the accuracy with positions minus that without."""
    without, with_ = (results["accuracy"][question][arm] for arm in ARMS)
    return [a - b for a, b in zip(with_, without, strict=True)]


def verdict(results: Results) -> Verdict:
    """Holds if positions help by the margin where order matters, and not where it does not."""
    ordered, control = (differences(results, question) for question in QUESTIONS)
    left = statistics.median(results["accuracy"][QUESTIONS[0]][ARMS[0]])
    reason = (
        f"Without positions, {100 * left:.1f} % of the questions about order are answered (chance: "
        f"50 %); with positions, {100 * statistics.median(ordered):.1f} points more, and "
        f"{100 * statistics.median(control):.1f} points more of those that do not depend on order."
    )
    holds = is_larger(ordered, MARGIN) and not is_larger(control, MARGIN)
    return Verdict("holds" if holds else "does not hold here", reason)


def draw(results: Results):
    """Draws the accuracy of both models for both questions, a point for each seed."""
    figure = make_figure(width=5.0)
    (axes,) = figure.axes
    for number, arm in enumerate(ARMS):
        for place, question in enumerate(QUESTIONS):
            values = [100 * value for value in results["accuracy"][question][arm]]
            x = place + 0.3 * (number - 0.5)
            label = arm if place == 0 else None
            axes.bar(x, np.median(values), 0.26, color=COLORS[number], alpha=0.5, label=label)
            axes.plot([x] * len(values), values, "o", color=COLORS[number])
    axes.axhline(50, linestyle="--", color=COLORS[4], label="chance")
    axes.set_xticks(range(len(QUESTIONS)), QUESTIONS)
    axes.set(ylabel="test accuracy (%)", ylim=(40, 103))
    axes.set_axisbelow(True)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=9)
    return figure

"""Is a GRU simpler than an LSTM, and often as good?

Both read names letter by letter and tell their language, out of 25, and read images of handwritten
digits row by row. They have the same hidden size, each its own best learning rate of Adam, and ten
seeds. Equality is a claim of its own: the mean difference in test accuracy must be within a point
by two one-sided tests, since a difference that cannot be proven may just be hidden by noise.

The control is a plain RNN: the rule must not call it as good as the LSTM in both tasks.
"""

from collections.abc import Sequence
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import (
    COLORS,
    Results,
    Verdict,
    is_equal,
    is_larger,
    make_figure,
)
from flaxdl.course.training import Splits, draw_batches, fit, initialize, load_digits, tuned
from flaxdl.data import Tfds
from flaxdl.layers import Embedding
from flaxdl.models import SimpleRNN

CLAIM = "A GRU is simpler than an LSTM and often works as well."
EXPECTED = "holds"
SEEDS = 10

CELLS = ("lstm", "gru", "rnn")
RATES = (3e-3, 1e-2, 3e-2)
SIZE, LENGTH, BATCH = 32, 24, 32
MARGIN = 0.01  # of accuracy


class Reader(nn.Module):
    """Classifier of letters or of rows of numbers by their last state."""

    cell: str
    letters: int = 0
    """Number of letters, if inputs are letters; they are padded with 0."""
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps rows [B, T, I] or letters int32[B, T] to logits."""
        lengths = None
        if self.letters:
            lengths = (x > 0).sum(1)
            x = Embedding(self.letters, SIZE, padding_index=0, name="embedding")(x)
        return SimpleRNN(SIZE, self.classes, self.cell, name="rnn")(x, lengths=lengths)  # pyright: ignore


@cache
def load_names() -> tuple[Splits, int]:
    """Returns names as letters int32[N, LENGTH] with their language, and the number of letters."""
    splits = Tfds("languages").load(seed=0)
    assert splits.test is not None
    assert splits.validation is not None
    parts = [part.arrays() for part in (splits.train, splits.validation, splits.test)]
    numbers = {letter: n for n, letter in enumerate(sorted(set("".join(parts[0]["inputs"]))), 2)}
    data = []
    for part in parts:
        letters = np.zeros((len(part["inputs"]), LENGTH), np.int32)
        for row, name in zip(letters, part["inputs"], strict=True):
            row[: min(len(name), LENGTH)] = [numbers.get(letter, 1) for letter in name[:LENGTH]]
        data.append((letters, part["label"]))
    return Splits(*data), len(numbers) + 2


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns test accuracies, learning rates and parameters of the cell by task and cell."""
    names, letters = load_names()
    tasks = {
        "names": (names, {"letters": letters, "classes": 25}, 100 if quick else 1500),
        "rows of digits": (load_digits(), {}, 100 if quick else 1000),
    }
    found = {"accuracy": {}, "learning_rates": {}, "parameters": {}}

    def train(model, splits, steps, variables, key, rate):
        adam = optax.adam(optax.linear_schedule(rate, 0.0, steps))
        batches = draw_batches(key, len(splits.train[1]), BATCH, steps)
        return fit(model, variables, adam, splits.train, batches, key)

    for task, (splits, options, steps) in tasks.items():
        for cell in CELLS:
            model = Reader(cell, **options)
            best = tuned(model, partial(train, model, splits, steps), RATES, seeds, splits)
            one = initialize(model, jnp.zeros(1, int), jnp.asarray(splits.train[0][:2]))
            layer = jax.tree.leaves(one["params"]["rnn"]["rnn"])
            values = {
                "accuracy": best.accuracy,
                "learning_rates": best.rate,
                "parameters": sum(x.size for x in layer),
            }
            for name, value in values.items():
                found[name].setdefault(task, {})[cell] = value
    return found


def differences(results: Results, task: str, cell: str) -> list[float]:
    """Returns, for each seed, the accuracy of a cell minus that of the LSTM."""
    of = results["accuracy"][task]
    return [ours - theirs for ours, theirs in zip(of[cell], of["lstm"], strict=True)]


def verdict(results: Results) -> Verdict:
    """Holds if the GRU has fewer parameters, and equals the LSTM or is better, in both tasks.

    In part if it does in one task. The plain RNN must not, in at least one of the tasks.
    """

    def is_as_good(task: str, cell: str) -> bool:
        found = differences(results, task, cell)
        return is_equal(found, MARGIN) or is_larger(found, MARGIN)

    parts = [
        f"{100 * np.mean(differences(results, task, cell)):.1f} points with the {cell.upper()} on "
        f"{task}"
        for task in results["accuracy"]
        for cell in CELLS[1:]
    ]
    reason = f"The mean differences in test accuracy from the LSTM are {', '.join(parts)}."
    simpler = all(of["gru"] < of["lstm"] for of in results["parameters"].values())
    good = [is_as_good(task, "gru") for task in results["accuracy"]]
    control = all(is_as_good(task, "rnn") for task in results["accuracy"])
    if control or not simpler or not any(good):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if all(good) else "holds in part", reason)


def draw(results: Results):
    """Draws the difference in accuracy from the LSTM, a point for each seed, and the margin."""
    figure = make_figure(width=5.0, height=3.2)
    (axes,) = figure.axes
    axes.axhspan(-100 * MARGIN, 100 * MARGIN, color=COLORS[2], alpha=0.2, linewidth=0)
    for number, cell in enumerate(CELLS[1:]):
        for place, task in enumerate(results["accuracy"]):
            values = [100 * value for value in differences(results, task, cell)]
            x = place + 0.3 * (number - 0.5)
            label = cell.upper() if place == 0 else None
            axes.plot([x] * len(values), values, "o", color=COLORS[number], alpha=0.6, label=label)
            mean = float(np.mean(values))
            axes.plot([x - 0.1, x + 0.1], [mean, mean], color=COLORS[number])
    axes.set_xticks(range(len(results["accuracy"])), list(results["accuracy"]))
    axes.set(ylabel="accuracy minus that of the LSTM (points)", xlim=(-0.6, 1.6))
    axes.legend(loc="lower left", fontsize=9)
    return figure

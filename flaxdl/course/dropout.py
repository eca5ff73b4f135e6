"""Does dropout regularize, and is it off in eval mode?

An MLP with one wide hidden layer classifies handwritten digits, with different rates of dropout on
the hidden layer, and is trained with few examples and with all of them. All trainings have the same
number of steps, which is enough to learn the training examples by heart. Regularization means that
the difference between test and training loss, the gap, becomes smaller; it is of use where the test
accuracy rises.

The control is the training with all examples: there is little to regularize. The second part
computes the outputs for the same images twice, in training and in eval mode.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import Results, Verdict, draw_range, is_larger, make_figure
from flaxdl.course.training import draw_batches, evaluate, fit, in_parallel, load_digits, tuned
from flaxdl.layers import Dropout, Linear

CLAIM = "Dropout regularizes, and is off in eval mode."
EXPECTED = "holds with little data"
SEEDS = 5

EXAMPLES = (50, 1077)
DROPOUT = (0.0, 0.3, 0.6)
COURSE = "0.3"
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
WIDTH, BATCH = 128, 25
GAP, MARGIN = 0.05, 0.01  # of the loss, and of accuracy


class MLP(nn.Module):
    """One hidden layer with ReLU and dropout."""

    dropout: float

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, 8, 8] to logits [B, 10]."""
        x = nn.relu(Linear(WIDTH, name="hidden")(images.reshape(len(images), 64)))
        return Linear(10, name="fc")(Dropout(self.dropout, name="dropout")(x, train))


def subset(key: jax.Array, count: int) -> jax.Array:
    """Draws the numbers of the training examples of a seed, int32[count]."""
    return jax.random.permutation(key, len(load_digits().train[1]))[:count]


def repeated(seed: int) -> dict[str, float]:
    """Returns how much outputs change between two calls, in training and in eval mode."""
    images = jax.random.normal(jax.random.key(seed), (4, 8, 8))
    model = MLP(0.3)
    variables = model.init(jax.random.key(seed), images)

    def change(train: bool) -> float:
        keys = jax.random.split(jax.random.key(seed))
        first, second = (model.apply(variables, images, train, rngs={"dropout": k}) for k in keys)
        assert isinstance(first, jax.Array)
        assert isinstance(second, jax.Array)
        return float(jnp.abs(first - second).max())

    return {"training": change(True), "eval": change(False)}


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns accuracy, gap and learning rate by dropout and number of examples, and changes."""
    digits, steps = load_digits(), 100 if quick else 1000
    found = {"accuracy": {}, "gap": {}, "learning_rates": {}}

    def train(model, count, variables, key, rate):
        adam = optax.adam(optax.linear_schedule(rate, 0.0, steps))
        batches = subset(key, count)[draw_batches(key, count, BATCH, steps)]
        return fit(model, variables, adam, digits.train, batches, key)

    def measure_one(case: tuple[float, int]) -> dict[str, Any]:
        dropout, count = case
        model = MLP(dropout)
        best = tuned(model, partial(train, model, count), RATES, seeds, digits)
        test = np.asarray(evaluate(model, best.variables, *digits.test)[0])
        gaps = []
        for number, seed in enumerate(seeds):
            variables = jax.tree.map(lambda x, n=number: x[n : n + 1], best.variables)
            chosen = np.asarray(subset(jax.random.key(seed), count))
            seen = evaluate(model, variables, *(array[chosen] for array in digits.train))
            gaps.append(round(float(test[number] - seen[0][0]), 4))
        return {"accuracy": best.accuracy, "gap": gaps, "learning_rates": best.rate}

    cases = list(itertools.product(DROPOUT, EXAMPLES))
    for (dropout, count), values in zip(cases, in_parallel(measure_one, cases), strict=True):
        for name, value in values.items():
            found[name].setdefault(str(dropout), {})[str(count)] = value
    return found | {"changes": [repeated(seed) for seed in seeds]}


def helps(results: Results, count: int) -> tuple[bool, bool]:
    """Returns whether dropout makes the gap smaller, and the accuracy higher, by the margins."""

    def gains(name: str) -> list[float]:
        with_, without = (results[name][dropout][str(count)] for dropout in (COURSE, "0.0"))
        return [a - b for a, b in zip(with_, without, strict=True)]

    smaller = is_larger([-gain for gain in gains("gap")], GAP)
    return smaller, is_larger(gains("accuracy"), MARGIN)


def verdict(results: Results) -> Verdict:
    """Holds if dropout lessens the gap and raises the accuracy with few examples, not with all.

    Holds in part if only the gap changes. Two calls must agree in eval mode, and only there.
    """
    parts = []
    for count in EXAMPLES:
        a, g = (
            [np.median(results[n][d][str(count)]) for d in ("0.0", COURSE)]
            for n in ("accuracy", "gap")
        )
        parts.append(
            f"with {count} examples, the gap is {g[0]:.2f} without dropout and {g[1]:.2f} with "
            f"it, and the test accuracy {100 * a[0]:.1f} and {100 * a[1]:.1f} %"
        )
    reason = f"W{'; '.join(parts)[1:]} (dropout {COURSE}, medians)."
    off = all(c["eval"] == 0 and c["training"] > 0.01 for c in results["changes"])
    smaller, better = helps(results, EXAMPLES[0])
    if not off or not smaller or helps(results, EXAMPLES[-1])[1]:
        return Verdict("does not hold here", reason)
    return Verdict("holds" if better else "holds in part", reason)


def draw(results: Results):
    """Draws gap and test accuracy by the number of training examples."""
    figure = make_figure(2, width=4.0, height=3.2)
    for axes, name, factor in zip(figure.axes, ("gap", "accuracy"), (1, 100), strict=True):
        for dropout in DROPOUT:
            columns = (results[name][str(dropout)][str(count)] for count in EXAMPLES)
            by_seed = [[factor * v for v in values] for values in zip(*columns, strict=True)]
            draw_range(axes, EXAMPLES, by_seed, f"dropout {dropout:g}")
        axes.set(xscale="log", xlabel="training examples")
        axes.set_xticks(EXAMPLES, [str(count) for count in EXAMPLES])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("test loss minus training loss")
    figure.axes[1].set_ylabel("test accuracy (%)")
    figure.axes[0].legend(fontsize=9)
    return figure

"""Does a model with attention learn better if the scores are divided by √d_k?

The task is a dictionary: eight pairs of a key and a value in random order, and one of the keys; the
answer is its value. The model is one head of attention with d_k features for queries and keys, and
a linear layer. It is trained with the division and without it, each with its own best learning rate
of Adam and 200 steps, for d_k of 4, 64 and 512.

Two more measurements tell the reasons apart. The third arm does not divide either, but starts with
weights of queries and keys that are smaller by d_k^¼, so that its scores are at first those of the
divided arm: it tells whether only the start matters. "At first" and "at last" are the standard
deviations of the scores before and after the training.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import Results, Verdict, draw_range, is_larger, make_figure
from flaxdl.course.training import Splits, draw_batches, fit, in_parallel, initialize, tuned
from flaxdl.layers import Embedding, Linear, dot_product_attention
from flaxdl.layers.initializers import uniform

CLAIM = "A model with attention learns better if its scores are divided by the root of d_k."
EXPECTED = "holds at 512 features per head, but not at the course's 64"
SEEDS = 5

WIDTHS = (4, 64, 512)
CONTROL, COURSE, WIDEST = "4", "64", "512"  # a head of the course has 512 / 8 features
ARMS = ("divided by √d_k", "not divided", "not divided, small start")
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
PAIRS, KEYS, VALUES, SIZE, BATCH = 8, 16, 8, 16, 16
MARGIN = 0.05  # of accuracy


class Lookup(nn.Module):
    """One head of attention from the query to the pairs, and a linear layer."""

    arm: str
    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """Maps keys, values and query int32[B, 2 PAIRS + 1] to logits [B, VALUES]."""
        keys, values, query = jnp.split(tokens, (PAIRS, 2 * PAIRS), axis=1)
        symbols = Embedding(KEYS, SIZE, name="keys")
        pairs = symbols(keys) + Embedding(VALUES, SIZE, name="values")(values)
        bound = 1 / math.sqrt(SIZE)  # PyTorch's initialization
        if self.arm == "not divided, small start":
            bound /= self.width**0.25
        linear = partial(Linear, self.width, kernel_init=uniform(bound), bias_init=uniform(bound))
        q, k = linear(name="W_q")(symbols(query)), linear(name="W_k")(pairs)
        if self.arm != "divided by √d_k":
            q = q * math.sqrt(self.width)  # undoes the division
        self.sow("intermediates", "scores", q @ k.swapaxes(1, 2) / math.sqrt(self.width))
        found, _ = dot_product_attention(q, k, Linear(SIZE, name="W_v")(pairs), num_heads=1)
        return Linear(VALUES, name="fc")(found[:, 0])


def make_examples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws tokens int32[count, 2 PAIRS + 1] and answers int32[count]."""
    rng = np.random.default_rng(seed)
    keys = rng.permuted(np.tile(np.arange(KEYS), (count, 1)), axis=1)[:, :PAIRS]
    values = rng.integers(VALUES, size=(count, PAIRS))
    places = rng.integers(PAIRS, size=(count, 1))
    query, answer = (np.take_along_axis(a, places, 1) for a in (keys, values))
    return np.concatenate([keys, values, query], 1).astype("i4"), answer[:, 0].astype("i4")


@partial(jax.jit, static_argnums=0)
def spread(model: Lookup, variables: Any, tokens: jax.Array) -> jax.Array:
    """Returns the standard deviation of the scores, for variables by seed."""

    def by_seed(variables: Any) -> jax.Array:
        _, seen = model.apply(variables, tokens, mutable=["intermediates"])
        (scores,) = jax.tree.leaves(seen)
        return scores.std(-1).mean()

    return jax.vmap(by_seed)(variables)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns accuracies, learning rates and spreads of the scores by arm and width."""
    steps = 50 if quick else 200
    splits = Splits(make_examples(2**15, 0), make_examples(1000, 1), make_examples(1000, 2))
    found = {name: {} for name in ("accuracy", "by_rate", "learning_rates", "at first", "at last")}

    def train(model, variables, key, rate):
        adam = optax.adam(optax.linear_schedule(rate, 0.0, steps))
        batches = draw_batches(key, len(splits.train[1]), BATCH, steps)
        return fit(model, variables, adam, splits.train, batches, key)

    def measure_one(case: tuple[str, int]) -> dict[str, Any]:
        model = Lookup(*case)
        best = tuned(model, partial(train, model), RATES, seeds, splits)
        tokens = jnp.asarray(splits.test[0][:100])
        start = initialize(model, jnp.asarray(seeds), tokens[:2])
        return {
            "accuracy": best.accuracy,
            "by_rate": best.by_rate,
            "learning_rates": best.rate,
            "at first": np.asarray(spread(model, start, tokens)).tolist(),
            "at last": np.asarray(spread(model, best.variables, tokens)).tolist(),
        }

    cases = list(itertools.product(ARMS, WIDTHS))
    for (arm, width), values in zip(cases, in_parallel(measure_one, cases), strict=True):
        for name, value in values.items():
            found[name].setdefault(arm, {})[str(width)] = value
    return found | {"rates": list(RATES)}


def differences(results: Results, width: str) -> list[float]:
    """Returns, for each seed, the accuracy with the division minus that without it."""
    divided, plain, _ = (results["accuracy"][arm][width] for arm in ARMS)
    return [with_ - without for with_, without in zip(divided, plain, strict=True)]


def verdict(results: Results) -> Verdict:
    """Holds if the division helps at 64 and 512 features per head; in part if only at 512.

    At 4 features, where it halves the scores, it must not help.
    """
    parts = [
        f"{100 * np.median(differences(results, str(width))):.1f} at {width}" for width in WIDTHS
    ]
    reason = (
        "The accuracy with the division minus that without it is, in points by the features per "
        f"head: {', '.join(parts)} (medians)."
    )

    def helps(width: str) -> bool:
        return is_larger(differences(results, width), MARGIN)

    if helps(CONTROL) or not helps(WIDEST):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if helps(COURSE) else "holds in part", reason)


def draw(results: Results):
    """Draws the accuracy by the features per head, and by learning rate at the most features."""
    figure = make_figure(2, width=3.4, height=3.0)
    left, right = figure.axes
    for arm in ARMS:
        by_seed = zip(*(results["accuracy"][arm][str(width)] for width in WIDTHS), strict=True)
        draw_range(left, WIDTHS, [[100 * value for value in values] for values in by_seed], arm)
        by_seed = zip(*results["by_rate"][arm][WIDEST], strict=True)
        values = [[100 * value for value in values] for values in by_seed]
        draw_range(right, results["rates"], values, arm)
    left.set(xlabel="features per head, d_k", ylabel="test accuracy (%)", title="best rate")
    left.set_xscale("log")
    left.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
    left.minorticks_off()
    right.set(xscale="log", xlabel="learning rate", title=f"d_k = {WIDEST}")
    for axes in figure.axes:
        axes.set_ylim(0, 103)
    left.legend(fontsize=8, loc="lower left")
    return figure

"""Does an LSTM have four gates, and does it need each of them?

The weights of an LSTM have four blocks of rows. Three of them compute gates: sigmoids, between 0
and 1, that multiply something. The input gate i multiplies what is written into the cell, the
forget gate f what the cell keeps, the output gate o what is shown of it. The fourth block computes
the candidate g, a tanh between -1 and 1, which is what is written.

To see what each contributes, an LSTM is trained without it: its place is taken by the number 1. The
task needs memory, overwriting and patience: the sequence has symbols of two kinds, and at each step
the network names the last symbol of the first kind. The measure is the loss after as many steps of
training, since a network without one part may learn in the end what the others can do for it.
"""

import math
import statistics
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxdl.course.experiment import COLORS, INK, Results, Verdict, is_larger, make_figure
from flaxdl.course.seeds_and_rates import Logits, choose_rates, train_seeds, trainer
from flaxdl.layers import Embedding, Linear
from flaxdl.layers.initializers import uniform

CLAIM = "An LSTM has four gates."
EXPECTED = "in part: three gates and a candidate, and not all of them are needed"
SEEDS = 5

ARMS = ("complete", "input gate", "forget gate", "candidate", "output gate")
SYMBOLS, NOISE, LENGTH, OFTEN = 8, 4, 60, 0.2  # OFTEN: fraction of symbols of the first kind
SIZE, BATCH, TEST = 8, 16, 500
RATES = (3e-3, 1e-2, 3e-2)
MARGIN = math.log10(2)  # a loss twice as large
SUCCESS = 0.1  # loss of the complete LSTM; guessing has log 8 = 2.1


class Namer(nn.Module):
    """LSTM without one of its parts, and a classifier of its output at each step."""

    @nn.compact
    def __call__(self, tokens: jax.Array, without: jax.Array) -> jax.Array:
        """Maps tokens int32[B, T] to logits [B, T, SYMBOLS]; `without` is an index of `ARMS`."""
        x = Embedding(SYMBOLS + NOISE, SIZE, name="embedding")(tokens)
        x = Linear(4 * SIZE, name="ih")(x)
        init = uniform(1 / math.sqrt(SIZE))
        weight = self.param("weight_hh", init, (4 * SIZE, SIZE), jnp.float32)

        def step(state: tuple[jax.Array, jax.Array], from_input: jax.Array):
            h, c = state
            i, f, g, o = jnp.split(from_input + h @ weight.T, 4, axis=-1)
            parts = [nn.sigmoid(i), nn.sigmoid(f), jnp.tanh(g), nn.sigmoid(o)]
            i, f, g, o = (jnp.where(without == k, 1, part) for k, part in enumerate(parts, 1))
            c = f * c + i * g
            h = o * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((len(tokens), SIZE))
        _, outputs = jax.lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))
        return Linear(SYMBOLS, name="fc")(outputs.swapaxes(0, 1))


def make_sequences(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Draws sequences int32[count, LENGTH], and the last symbol of the first kind at each step."""
    kind_key, symbol_key, noise_key = jax.random.split(key, 3)
    shape = (count, LENGTH)
    is_symbol = jax.random.bernoulli(kind_key, OFTEN, shape).at[:, 0].set(True)
    symbols = jax.random.randint(symbol_key, shape, 0, SYMBOLS)
    noise = jax.random.randint(noise_key, shape, SYMBOLS, SYMBOLS + NOISE)
    last = jax.lax.cummax(jnp.where(is_symbol, jnp.arange(LENGTH), 0), axis=1)
    return jnp.where(is_symbol, symbols, noise), jnp.take_along_axis(symbols, last, axis=1)


def draw_batch(key: jax.Array, without: jax.Array):
    """Draws a batch."""
    tokens, labels = make_sequences(key, BATCH)
    return (tokens, without), labels


def evaluate(logits: Logits, without: jax.Array) -> jax.Array:
    """Returns the loss over all steps of the test sequences."""
    tokens, labels = make_sequences(jax.random.key(0), TEST)
    found = logits(tokens, without)
    return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the test loss by the part that is missing and seed, and the learning rates."""
    train = trainer(Namer(), draw_batch, evaluate, 100 if quick else 300)
    arms = range(len(ARMS))
    rates = choose_rates(train, RATES[1:2] if quick else RATES, arms)
    found = train_seeds(train, seeds, rates, arms).tolist()
    return {
        "loss": dict(zip(ARMS, found, strict=True)),
        "learning_rates": dict(zip(ARMS, rates, strict=True)),
    }


def needed(results: Results) -> list[str]:
    """Returns the parts without which the loss is larger by the margin, in orders of magnitude."""
    of = results["loss"]
    orders = {
        arm: [math.log10(a / b) for a, b in zip(of[arm], of["complete"], strict=True)]
        for arm in ARMS[1:]
    }
    return [arm for arm, larger in orders.items() if is_larger(larger, MARGIN)]


def verdict(results: Results) -> Verdict:
    """Holds if all four parts are needed; in part if some are. The complete LSTM must succeed."""
    medians = {arm: statistics.median(of) for arm, of in results["loss"].items()}
    without = ", ".join(f"{medians[arm]:.2g} without the {arm}" for arm in ARMS[1:])
    reason = f"The loss of the complete LSTM is {medians['complete']:.2g}; {without} (medians)."
    if medians["complete"] > SUCCESS or not needed(results):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if len(needed(results)) == 4 else "holds in part", reason)


def draw(results: Results):
    """Draws the loss without each part, a point for each seed."""
    figure = make_figure(width=6.0)
    (axes,) = figure.axes
    for place, arm in enumerate(ARMS):
        values, color = results["loss"][arm], COLORS[min(place, 1)]
        axes.plot([place] * len(values), values, "o", color=color, alpha=0.7)
        axes.plot(place, statistics.median(values), "_", color=color, markersize=40)
    axes.axhline(math.log(SYMBOLS), linestyle="--", linewidth=1, color=INK, label="guessing")
    names = [ARMS[0], *(f"without\n{arm}" for arm in ARMS[1:])]
    axes.set_xticks(range(len(ARMS)), names, fontsize=9)
    axes.set(yscale="log", ylabel="test loss", xlim=(-0.5, len(ARMS) - 0.5))
    axes.legend(fontsize=8, loc="center right")
    return figure

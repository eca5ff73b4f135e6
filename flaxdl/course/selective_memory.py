"""Do the gates of an LSTM let it remember selectively?

The first symbol of a sequence is one of four; after it come T other symbols that mean nothing. At
the end, the network names the first symbol: it must keep one thing and ignore all others. A plain
RNN has no gates. An LSTM is trained from three initial biases of its forget gate: those of PyTorch
(around 0, so the gate is half open), a bias of 1 as Jozefowicz et al. (2015) advise, and biases
that expect memories of up to T steps ("chrono", Tallec and Ollivier, 2018).

The control is attention: the last position reads all others directly, and must name the symbol
after as much training, at every T.
"""

import statistics
from collections.abc import Sequence
from itertools import product
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.course.experiment import COLORS, INK, Results, Verdict, is_larger, make_figure
from flaxdl.course.seeds_and_rates import Logits, choose_rates, train_seeds, trainer
from flaxdl.layers import LSTM, RNN, Embedding, Linear, MultiHeadAttention

CLAIM = "The gates of an LSTM let it remember and forget selectively, which a plain RNN cannot."
EXPECTED = "in part: an LSTM needs an initial bias that opens its forget gate"
SEEDS = 5

SPANS = (5, 30, 60)  # numbers T of symbols after the first
SYMBOLS, NOISE, SIZE, BATCH, TEST = 4, 4, 24, 16, 500
QUERY = SYMBOLS + NOISE  # token at the end, where attention asks
PYTORCH, ONE, CHRONO = 0, 1, 2  # initial biases of the forget gate
ARMS = {
    "RNN": (RNN, PYTORCH),
    "LSTM": (LSTM, PYTORCH),
    "LSTM, forget bias 1": (LSTM, ONE),
    "LSTM, chrono": (LSTM, CHRONO),
    "attention": (MultiHeadAttention, PYTORCH),
}
RATES = (3e-3, 1e-2, 3e-2)
MARGIN = 0.2  # of accuracy; chance is 0.25
SUCCESS = 0.9
SHORT, LONG = "5", "30"  # spans of the verdict


class Recall(nn.Module):
    """Classifier of the last position, by a recurrent layer or by attention."""

    layer: type[nn.Module]

    @nn.compact
    def __call__(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """Maps tokens int32[B, T] with lengths int32[B] to logits [B, SYMBOLS]."""
        x = Embedding(QUERY + 1, SIZE, name="embedding")(tokens)
        if self.layer is MultiHeadAttention:
            mask = (jnp.arange(tokens.shape[1]) < lengths[:, None])[:, None, None]
            layer = MultiHeadAttention(hidden_size=SIZE, num_heads=4, name="layer")
            rows = jnp.arange(len(tokens))
            features = layer(x[rows, lengths - 1][:, None], x, x, mask)[:, 0]
        else:
            _, states = self.layer(hidden_size=SIZE, name="layer")(x, lengths=lengths)
            features = jax.tree.leaves(states)[0][0]
        return Linear(SYMBOLS, name="fc")(features)


def make_sequences(key: jax.Array, count: int, span: jax.Array, longest: int):
    """Draws sequences of `span` + 2 tokens; returns the inputs of `Recall`, and the labels."""
    symbol_key, noise_key = jax.random.split(key)
    symbols = jax.random.randint(symbol_key, (count,), 0, SYMBOLS)
    noise = jax.random.randint(noise_key, (count, longest + 2), SYMBOLS, QUERY)
    tokens = noise.at[:, 0].set(symbols).at[:, span + 1].set(QUERY)
    return (tokens, jnp.full(count, span + 2)), symbols


def with_bias(params: Any, key: jax.Array, bias: jax.Array, span: jax.Array) -> Any:
    """Changes the biases of an LSTM; its gates are in the order i, f, g, o."""
    layer = params["layer"]
    if "weight_hh_l0" not in layer or layer["weight_hh_l0"].shape[0] != 4 * SIZE:
        return params
    # Biases are log(u), so that sigmoid(bias) is u / (u + 1): a memory of u + 1 steps.
    chrono = jnp.log(jax.random.uniform(key, (SIZE,), minval=1.0, maxval=span - 1.0))
    zeros = jnp.zeros(SIZE)
    one = jnp.stack([zeros, zeros + 1, zeros, zeros]).reshape(-1)
    spread = jnp.stack([-chrono, chrono, zeros, zeros]).reshape(-1)
    first = jnp.stack([layer["bias_ih_l0"], one, spread])[bias]
    second = jnp.where(bias == PYTORCH, layer["bias_hh_l0"], 0)
    return params | {"layer": layer | {"bias_ih_l0": first, "bias_hh_l0": second}}


def accuracies(
    layer: type[nn.Module],
    biases: Sequence[int],
    spans: Sequence[int],
    seeds: Sequence[int],
    *,
    quick: bool,
) -> np.ndarray:
    """Trains a layer for each bias and span; returns the accuracies [biases, spans, seeds]."""
    settings = list(product(biases, spans))
    of_bias, of_span = map(jnp.array, zip(*settings, strict=True))

    def draw(key: jax.Array, setting: jax.Array):
        return make_sequences(key, BATCH, of_span[setting], max(spans))

    def change(params: Any, key: jax.Array, setting: jax.Array) -> Any:
        return with_bias(params, key, of_bias[setting], of_span[setting])

    def evaluate(logits: Logits, setting: jax.Array) -> jax.Array:
        inputs, labels = make_sequences(jax.random.key(0), TEST, of_span[setting], max(spans))
        return (logits(*inputs).argmax(-1) == labels).mean()

    train = trainer(Recall(layer), draw, evaluate, 100 if quick else 300, change)
    numbers = range(len(settings))
    rates = choose_rates(train, RATES[1:2] if quick else RATES, numbers)
    found = train_seeds(train, seeds, rates, numbers)
    return found.reshape(len(biases), len(spans), -1).round(4)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the test accuracy by arm, span and seed."""
    spans = SPANS[:2] if quick else SPANS
    accuracy = {}
    for layer in dict.fromkeys(layer for layer, _ in ARMS.values()):
        biases = {name: bias for name, (of, bias) in ARMS.items() if of is layer}
        found = accuracies(layer, list(biases.values()), spans, seeds, quick=quick)
        for name, by_span in zip(biases, found.tolist(), strict=True):
            accuracy[name] = dict(zip(map(str, spans), by_span, strict=True))
    return {"accuracy": accuracy}


def is_better(results: Results, arm: str, span: str) -> bool:
    """Returns True if an arm is more accurate than the RNN by the margin."""
    of = results["accuracy"]
    pairs = zip(of[arm][span], of["RNN"][span], strict=True)
    return is_larger([value - rnn for value, rnn in pairs], MARGIN)


def verdict(results: Results) -> Verdict:
    """Holds if the LSTM is better than the RNN over the long span; in part if it needs a bias.

    Over the short span the RNN must not be worse, and attention must succeed over the long one.
    """
    of = results["accuracy"]
    numbers = ", ".join(f"{arm}: {100 * statistics.median(of[arm][LONG]):.0f} %" for arm in ARMS)
    reason = f"After {LONG} other symbols, the first one is named by {numbers} (chance: 25 %)."
    gated = [arm for arm in ARMS if arm.startswith("LSTM")]
    works = statistics.median(of["attention"][LONG]) >= SUCCESS
    if not works or any(is_better(results, arm, SHORT) for arm in gated):
        return Verdict("does not hold here", reason)
    if is_better(results, gated[0], LONG):
        return Verdict("holds", reason)
    in_part = any(is_better(results, arm, LONG) for arm in gated)
    return Verdict("holds in part" if in_part else "does not hold here", reason)


def draw(results: Results):
    """Draws the accuracy after each span, a point for each seed."""
    figure = make_figure(width=6.0, height=3.6)
    (axes,) = figure.axes
    spans = list(results["accuracy"]["RNN"])
    for number, arm in enumerate(ARMS):
        for place, span in enumerate(spans):
            values = [100 * value for value in results["accuracy"][arm][span]]
            x, color = place + 0.16 * (number - 2), COLORS[number]
            label = arm if place == 0 else None
            axes.bar(x, np.median(values), 0.14, color=color, alpha=0.5, label=label)
            axes.plot([x] * len(values), values, "o", color=color, markersize=4)
    axes.axhline(100 / SYMBOLS, linestyle="--", linewidth=1, color=INK, label="chance")
    axes.set_xticks(range(len(spans)), [f"after {span} symbols" for span in spans])
    axes.set(ylabel="test accuracy (%)", ylim=(0, 104))
    axes.set_axisbelow(True)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8)
    return figure

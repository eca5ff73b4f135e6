"""Can any token attend directly to any other?

Each token is a pair of a key and a value, such as "b4". A sequence of 200 of them ends with a
query, a key without a value, and the question is the value that this key had. The key of the query
occurs once, at a distance between 1 and 200 tokens from the query; all other tokens are pairs of
other keys. An RNN, an LSTM and a layer of attention are trained on sequences of 1 to 200 tokens,
and tested on the longest, by distance. The LSTM has the initial biases that let it remember longest
("chrono", see `selective_memory`).

In the control, attention only sees the last 50 pairs. Within these, it must be as good as full
attention; beyond, it can only guess.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.course.experiment import INK, Results, Verdict, draw_range, is_larger, make_figure
from flaxdl.course.seeds_and_rates import Logits, choose_rates, train_seeds, trainer
from flaxdl.course.selective_memory import CHRONO, with_bias
from flaxdl.layers import LSTM, RNN, Embedding, Linear, MultiHeadAttention

CLAIM = "In attention, any token can attend directly to any other, however far away."
EXPECTED = "holds"
SEEDS = 5

LENGTH, KEYS, VALUES, SIZE, BATCH, TEST = 200, 8, 4, 24, 16, 300
DISTANCES = (1, 2, 5, 10, 20, 50, 100, 200)
NEAR, FAR = DISTANCES.index(20), DISTANCES.index(200)  # distances of the verdict
WINDOW = 50
ARMS = {
    "RNN": (RNN, LENGTH),
    "LSTM": (LSTM, LENGTH),
    "attention": (MultiHeadAttention, LENGTH),
    "attention to the last 50": (MultiHeadAttention, WINDOW),
}
RATES = (3e-3, 1e-2, 3e-2)
MARGIN = 0.2  # of accuracy; chance is 0.25
SUCCESS = 0.9


class Lookup(nn.Module):
    """Classifier of the query, by a recurrent layer or by attention."""

    layer: type[nn.Module]

    @nn.compact
    def __call__(
        self, keys: jax.Array, values: jax.Array, lengths: jax.Array, window: jax.Array
    ) -> jax.Array:
        """Maps keys and values int32[B, T], with lengths int32[B], to logits [B, VALUES]."""
        x = Embedding(KEYS, SIZE, name="keys")(keys)
        x = x + Embedding(VALUES + 1, SIZE, name="values")(values)
        if self.layer is MultiHeadAttention:
            places, end = jnp.arange(x.shape[1]), lengths[:, None] - 1
            mask = ((places < end) & (places >= end - window))[:, None, None]
            query = x[jnp.arange(len(x)), lengths - 1][:, None]
            layer = MultiHeadAttention(hidden_size=SIZE, num_heads=1, name="layer")
            features = layer(query, x, x, mask)[:, 0]
        else:
            _, states = self.layer(hidden_size=SIZE, name="layer")(x, lengths=lengths)
            features = jax.tree.leaves(states)[0][0]
        return Linear(VALUES, name="fc")(features)


def make_sequences(key: jax.Array, lengths: jax.Array, distances: jax.Array):
    """Draws sequences of `lengths` int32[N] pairs and a query; returns the inputs and labels.

    The pair with the query's key is `distances` int32[N] tokens before the query.
    """
    query_key, others_key, values_key = jax.random.split(key, 3)
    shape, places = (len(lengths), LENGTH + 1), jnp.arange(LENGTH + 1)
    query = jax.random.randint(query_key, (shape[0], 1), 0, KEYS)
    others = (query + jax.random.randint(others_key, shape, 1, KEYS)) % KEYS
    wanted, end = lengths - distances, lengths[:, None]
    keys = jnp.where((places == wanted[:, None]) | (places == end), query, others)
    values = jax.random.randint(values_key, shape, 0, VALUES)
    labels = values[jnp.arange(shape[0]), wanted]
    return (keys, jnp.where(places == end, VALUES, values), lengths + 1), labels


def log_uniform(key: jax.Array, most: jax.Array) -> jax.Array:
    """Draws an integer between 1 and each of `most`, as many of 1 to 9 as of 10 to 99."""
    return jnp.exp(jax.random.uniform(key, most.shape) * jnp.log(most + 1.0)).astype(jnp.int32)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the test accuracy by arm, seed and distance, and the chosen learning rates."""
    windows = jnp.array([window for _, window in ARMS.values()])

    def draw(key: jax.Array, arm: jax.Array):
        keys = jax.random.split(key, 3)
        lengths = log_uniform(keys[0], jnp.full(BATCH, LENGTH))
        inputs, labels = make_sequences(keys[1], lengths, log_uniform(keys[2], lengths))
        return (*inputs, windows[arm]), labels

    def evaluate(logits: Logits, arm: jax.Array) -> jax.Array:
        def accuracy(distance: jax.Array) -> jax.Array:
            lengths = jnp.full(TEST, LENGTH)
            inputs, labels = make_sequences(jax.random.key(0), lengths, jnp.full(TEST, distance))
            return (logits(*inputs, windows[arm]).argmax(-1) == labels).mean()

        return jax.lax.map(accuracy, jnp.array(DISTANCES))

    def change(params: Any, key: jax.Array, arm: jax.Array) -> Any:
        return with_bias(params, key, jnp.array(CHRONO), jnp.array(LENGTH))

    accuracy, chosen, names = {}, {}, list(ARMS)
    for kind in (RNN, LSTM, MultiHeadAttention):
        numbers = [number for number, arm in enumerate(names) if ARMS[arm][0] is kind]
        train = trainer(Lookup(kind), draw, evaluate, 100 if quick else 400, change)
        rates = choose_rates(train, RATES[1:2] if quick else RATES, numbers)
        found = train_seeds(train, seeds, rates, numbers).round(4).tolist()
        for number, values, rate in zip(numbers, found, rates, strict=True):
            accuracy[names[number]], chosen[names[number]] = values, rate
    return {"accuracy": accuracy, "learning_rates": chosen}


def is_better(results: Results, arm: str, place: int) -> bool:
    """Returns True if attention is more accurate than an arm at a place in DISTANCES."""
    of = results["accuracy"]
    pairs = zip(of["attention"], of[arm], strict=True)
    return is_larger([attention[place] - other[place] for attention, other in pairs], MARGIN)


def verdict(results: Results) -> Verdict:
    """Holds if attention succeeds at 200 tokens and no RNN comes close; in part if one does.

    Attention to the last 50 tokens must fail at 200, and not at 20.
    """
    of = results["accuracy"]
    medians = {arm: 100 * statistics.median(values[FAR] for values in of[arm]) for arm in ARMS}
    numbers = ", ".join(f"{arm}: {medians[arm]:.0f} %" for arm in ARMS)
    far_away = f"a key {DISTANCES[FAR]} tokens away"
    reason = f"The value of {far_away} is found by {numbers} (chance: 25 %)."
    far, near = (is_better(results, "attention to the last 50", place) for place in (FAR, NEAR))
    if medians["attention"] < 100 * SUCCESS or near or not far:
        return Verdict("does not hold here", reason)
    alone = all(is_better(results, arm, FAR) for arm in ("RNN", "LSTM"))
    return Verdict("holds" if alone else "holds in part", reason)


def draw(results: Results):
    """Draws the accuracy by distance for each arm."""
    figure = make_figure(width=5.6, height=3.4)
    (axes,) = figure.axes
    for arm, by_seed in results["accuracy"].items():
        draw_range(axes, DISTANCES, [[100 * value for value in values] for values in by_seed], arm)
    axes.lines[-1].set_linestyle("--")
    axes.axhline(100 / VALUES, linestyle=":", linewidth=1, color=INK, label="chance")
    axes.set_xscale("log")
    axes.set_xticks(DISTANCES, [str(distance) for distance in DISTANCES])
    axes.minorticks_off()
    axes.set(xlabel="distance (tokens)", ylabel="test accuracy (%)", ylim=(0, 104))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8)
    return figure

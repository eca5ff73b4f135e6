"""Do the gradients of recurrent networks vanish over long sequences?

The hidden state after T steps depends on the input at each step. How much? The experiment computes
the gradient of the last hidden state with respect to the input of every step, in float64 and before
any training. If the gradient for early inputs is tiny, the network cannot learn from them.

The same is computed for a GRU and for LSTMs: at PyTorch's initialization, with a forget bias of 1,
as Jozefowicz et al. (2015) advise, and with biases that expect memories of up to T steps (Tallec
and Ollivier, "chrono", 2018). "Gates alone" is an LSTM without biases and recurrent weights, whose
forget gate is about 0.5. The control is a layer that sums its inputs: its gradient is the same at
every lag.
"""

import math
import statistics
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from flaxdl.course.experiment import INK, Results, Verdict, draw_range, is_larger, make_figure
from flaxdl.layers import GRU, LSTM, RNN

CLAIM = "Gradients of a plain RNN vanish over long sequences; the gates of an LSTM prevent it."
EXPECTED = "in part: an LSTM at PyTorch's initialization forgets even faster than an RNN"
SEEDS = 5

STEPS, FEATURES, SIZE = 160, 8, 64
LAGS = (1, 2, 5, 10, 20, 40, 80, 159)
ARMS = ("RNN", "GRU", "LSTM", "LSTM, gates alone", "LSTM, forget bias 1", "LSTM, chrono", "sum")
VANISHED = 1e-6  # fraction of the gradient at lag 1 that is left at lag 40
PRESERVED = 1e-2


def changed(params: dict, arm: str, key: jax.Array) -> dict:
    """Changes the parameters of an LSTM for an arm; its gates are in the order i, f, g, o."""
    if arm == "LSTM":
        return params
    bias = jnp.zeros((4, SIZE))
    if arm == "LSTM, forget bias 1":
        bias = bias.at[1].set(1.0)
    if arm == "LSTM, chrono":
        spans = jnp.log(jax.random.uniform(key, (SIZE,), minval=1.0, maxval=STEPS - 1.0))
        bias = bias.at[1].set(spans).at[0].set(-spans)
    params = params | {"bias_ih_l0": bias.reshape(-1), "bias_hh_l0": jnp.zeros(4 * SIZE)}
    if arm == "LSTM, gates alone":
        params["weight_hh_l0"] = jnp.zeros((4 * SIZE, SIZE))
    return params


def gradient_by_lag(arm: str, seed: jax.Array) -> jax.Array:
    """Returns the norm of d(last hidden state . direction) / d(input) at each lag, [lags]."""
    key, data_key, direction_key, bias_key = jax.random.split(jax.random.key(seed), 4)
    inputs = jax.random.normal(data_key, (1, STEPS, FEATURES), jnp.float64)
    if arm == "sum":
        weights = jax.random.normal(key, (FEATURES, SIZE), jnp.float64) / math.sqrt(FEATURES)

        def last(x: jax.Array) -> jax.Array:
            return (x @ weights).sum(1)
    else:
        layer = {"RNN": RNN, "GRU": GRU}.get(arm, LSTM)(hidden_size=SIZE)
        params = layer.init(key, inputs)["params"]
        if isinstance(layer, LSTM):
            params = changed(dict(params), arm, bias_key)
        params = jax.tree.map(lambda array: array.astype(jnp.float64), params)

        def last(x: jax.Array) -> jax.Array:
            return layer.apply({"params": params}, x)[0][:, -1]

    direction = jax.random.normal(direction_key, (SIZE,), jnp.float64)
    gradient = jax.grad(lambda x: (last(x) @ direction).sum())(inputs)
    norms = jnp.linalg.norm(gradient[0], axis=-1)[::-1]  # by lag, from 0
    return norms[jnp.array(LAGS)]


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns gradient norms by arm, seed and lag."""
    with jax.enable_x64(True):
        norms = {
            arm: jax.jit(jax.vmap(partial(gradient_by_lag, arm)))(jnp.asarray(seeds)).tolist()
            for arm in ARMS
        }
    return {"lags": list(LAGS), "norms": norms}


def fractions(results: Results, arm: str) -> list[float]:
    """Returns, for each seed, the gradient at lag 40 divided by that at lag 1."""
    at_1, at_40 = results["lags"].index(1), results["lags"].index(40)
    return [norms[at_40] / norms[at_1] for norms in results["norms"][arm]]


def verdict(results: Results) -> Verdict:
    """Holds if the RNN's gradient vanishes and that of the LSTM does not.

    Holds in part if this needs other biases than those of PyTorch's initialization. The sum must
    not vanish.
    """
    left = {arm: statistics.median(fractions(results, arm)) for arm in ARMS}
    numbers = ", ".join(f"{arm}: {left[arm]:.0e}" for arm in ARMS)
    reason = f"Of the gradient at lag 1, this fraction is left at lag 40: {numbers}."
    if left["sum"] < PRESERVED or left["RNN"] > VANISHED:
        return Verdict("does not hold here", reason)

    def is_preserved(arm: str) -> bool:
        pairs = zip(fractions(results, arm), fractions(results, "RNN"), strict=True)
        orders = [math.log10(lstm / rnn) for lstm, rnn in pairs]
        return left[arm] >= PRESERVED and is_larger(orders, margin=2.0)

    if is_preserved("LSTM"):
        return Verdict("holds", reason)
    if is_preserved("LSTM, forget bias 1") or is_preserved("LSTM, chrono"):
        return Verdict("holds in part", reason)
    return Verdict("does not hold here", reason)


def draw(results: Results):
    """Draws the gradient norm by lag, relative to lag 1."""
    figure = make_figure(width=6.0, height=3.6)
    (axes,) = figure.axes
    for arm in ARMS[:-1]:
        by_seed = [[max(n / norms[0], 1e-30) for n in norms] for norms in results["norms"][arm]]
        draw_range(axes, results["lags"], by_seed, arm)
    axes.axhline(1, linestyle="--", linewidth=1, color=INK, label="sum of the inputs")
    axes.set(xscale="log", yscale="log", ylim=(1e-24, 1e3), xlabel="lag (steps before the last)")
    axes.set_ylabel("gradient relative to lag 1")
    axes.legend(fontsize=8, loc="lower left")
    return figure

"""Does a Transformer need warmup if its norms come after the additions?

The course's block adds the output of a sublayer to its input and normalizes the sum (post-norm), as
the first Transformer did. Most later ones normalize the input of the sublayer instead (pre-norm).
Networks of six blocks of either kind read handwritten digits, four tokens of two rows of pixels
each. They are trained by Adam with a learning rate that falls linearly to zero, with and without
warmup, in which it first rises linearly for a third of the steps.

Pre-norm is the control: there, warmup must not decide whether the network learns.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import (
    INK,
    PILOT_SEEDS,
    Results,
    Verdict,
    best_rate,
    draw_range,
    is_larger,
    make_figure,
)
from flaxdl.course.training import Data, draw_batches, fit, in_parallel, load_digits
from flaxdl.layers import LayerNorm, Linear, TransformerBlock, sinusoidal_positions

CLAIM = "With norms after the additions, as in the course, a Transformer needs warmup."
EXPECTED = "holds in part: only at learning rates above the best one"
SEEDS = 5

LAYERS, SIZE, TOKENS, BATCH = 6, 16, 4, 16
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2)
LARGE = "0.02"  # learning rate of the second part of the verdict
NORMS = POST, PRE = "post-norm", "pre-norm"
WARMUPS = ("no warmup", "warmup")
NEEDED, LEARNS = 0.02, 0.25  # gains of accuracy at the best rate, and at the large one


class Layer(nn.Module):
    """A Transformer block without dropout, as a step of `nn.scan`."""

    norm_first: bool

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """Maps [B, TOKENS, SIZE] to the same shape."""
        return TransformerBlock(SIZE, 4, 2 * SIZE, 0.0, self.norm_first, name="block")(x), None


class Network(nn.Module):
    """Classifier of digits, by the mean over the tokens after the last block."""

    norm_first: bool

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, 8, 8] to logits [B, 10]."""
        x = Linear(SIZE, name="pixels")(images.reshape(len(images), TOKENS, -1))
        x = x + jnp.asarray(sinusoidal_positions(TOKENS, SIZE), x.dtype)
        repeat = partial(nn.scan, variable_axes={"params": 0}, split_rngs={"params": True})
        x, _ = repeat(Layer, length=LAYERS)(self.norm_first, name="layers")(x, None)
        if self.norm_first:
            x = LayerNorm(name="norm")(x)
        return Linear(10, name="fc")(x.mean(1))


def schedule(rate: jax.Array, warmup: jax.Array, steps: int) -> optax.Schedule:
    """Returns a learning rate that falls to zero, after a rise in a third of the steps or not."""
    rise = steps // 3

    def fraction(step: Any) -> jax.Array:
        rise_and_fall = jnp.minimum((step + 1) / rise, (steps - step) / (steps - rise))
        return jnp.where(warmup, rise_and_fall, 1 - step / steps)

    return lambda step: rate * fraction(step)


@partial(jax.jit, static_argnums=(0, 1))
def train(network: Network, steps: int, runs: tuple, data: Data, test: Data) -> tuple:
    """Returns the mean loss of the last tenth of the steps, and the test accuracy, for each run.

    `runs` are the seeds, the learning rates, and whether there is warmup, each [runs].
    """

    def run(seed: jax.Array, rate: jax.Array, warmup: jax.Array) -> tuple[jax.Array, jax.Array]:
        init_key, data_key = jax.random.split(jax.random.key(seed))
        variables = network.init(init_key, data[0][:1])
        adam = optax.adam(schedule(rate, warmup, steps))
        batches = draw_batches(data_key, len(data[1]), BATCH, steps)
        variables, losses = fit(network, variables, adam, data, batches, data_key)
        logits: Any = network.apply(variables, test[0])
        return losses[-(steps // 10) :].mean(), (logits.argmax(-1) == test[1]).mean()

    return jax.vmap(run)(*runs)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns losses and accuracies by norm, warmup, learning rate and seed, and the best rates."""
    digits, steps = load_digits(), 60 if quick else 200
    all_seeds = (*PILOT_SEEDS, *seeds)
    grid = list(product(range(len(WARMUPS)), RATES, all_seeds))
    warmups, rates, run_seeds = map(jnp.asarray, zip(*grid, strict=True))

    def measure_one(norm: str) -> list[np.ndarray]:
        runs = (run_seeds, rates, warmups)
        found = train(Network(norm == PRE), steps, runs, digits.train, digits.test)
        shape = (len(WARMUPS), len(RATES), len(all_seeds))
        return [np.asarray(values).astype(float).reshape(shape).round(4) for values in found]

    names, pilots = ("loss", "accuracy"), len(PILOT_SEEDS)
    results = {name: {norm: {} for norm in NORMS} for name in (*names, "best_rates")}
    for norm, found in zip(NORMS, in_parallel(measure_one, NORMS), strict=True):
        for place, warmup in enumerate(WARMUPS):
            of_pilots = found[0][place, :, :pilots].tolist()
            best = best_rate(dict(zip(RATES, of_pilots, strict=True)))
            results["best_rates"][norm][warmup] = str(best)
            for name, values in zip(names, found, strict=True):
                by_rate = values[place, :, pilots:].tolist()
                results[name][norm][warmup] = dict(zip(map(str, RATES), by_rate, strict=True))
    return results


def gains(results: Results, norm: str, rate: str | None) -> list[float]:
    """Returns each seed's gain in accuracy by warmup, at a rate, or (None) at the best rates."""
    of, best = results["accuracy"][norm], results["best_rates"][norm]
    without, with_ = (of[warmup][rate or best[warmup]] for warmup in WARMUPS)
    return [a - b for a, b in zip(with_, without, strict=True)]


def verdict(results: Results) -> Verdict:
    """Holds if post-norm needs warmup at its best learning rate; in part if at the large one.

    Pre-norm must not need it, in the median at the best rate.
    """
    best, large = ({n: gains(results, n, rate) for n in NORMS} for rate in (None, LARGE))
    parts = [
        f"{100 * statistics.median(best[norm]):.1f} points at the best rates and "
        f"{100 * statistics.median(large[norm]):.1f} at {LARGE} with {norm}"
        for norm in NORMS
    ]
    reason = f"Warmup improves the test accuracy by {'; '.join(parts)} (medians)."
    if is_larger(best[POST], NEEDED) and statistics.median(best[PRE]) < NEEDED:
        return Verdict("holds", reason)
    if is_larger(large[POST], LEARNS) and not is_larger(large[PRE], LEARNS):
        return Verdict("holds in part", reason)
    return Verdict("does not hold here", reason)


def draw(results: Results):
    """Draws the training loss by learning rate, with and without warmup, for each kind of norm."""
    figure = make_figure(2, width=3.6, height=3.2)
    for axes, (norm, by_warmup) in zip(figure.axes, results["loss"].items(), strict=True):
        for warmup, by_rate in by_warmup.items():
            draw_range(axes, RATES, list(zip(*by_rate.values(), strict=True)), warmup)
        axes.axhline(np.log(10), linestyle="--", linewidth=1, color=INK, label="chance")
        axes.set(xscale="log", ylim=(0, 2.6), title=norm)
        axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
        axes.minorticks_off()
        axes.set(xlabel="highest learning rate", ylabel="training loss")
    figure.axes[0].legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.85))
    return figure

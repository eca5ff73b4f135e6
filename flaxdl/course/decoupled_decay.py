"""Is AdamW better than Adam with weight decay, for a small transformer?

Weight decay pulls all weights toward zero. Adam adds it to the gradient, which it then divides by
the size of recent gradients: weights with large gradients decay less ("coupled"). AdamW subtracts
it from the weights after that division, so that all decay alike ("decoupled"). A Transformer block
learns handwritten digits from 150 images, for a grid of decays and learning rates.

The same number is not the same decay for both, so they are compared at the decay that suits each
best. The control is a decay of zero, for which both are the same algorithm.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import PILOT_SEEDS, Results, Verdict, is_larger, make_figure
from flaxdl.course.norm_batch_size import Transformer
from flaxdl.course.training import draw_batches, evaluate, fit, initialize, load_digits

CLAIM = "For transformers, AdamW is better than Adam with weight decay."
EXPECTED = "in part: at some learning rates, by little"
SEEDS = 5

ARMS = ("Adam", "AdamW")
DECAYS = (0.0, 1e-3, 1e-2, 1e-1, 1.0)
RATES = (3e-3, 1e-2, 3e-2)
EXAMPLES, BATCH = 150, 16
MARGIN = 0.01  # of accuracy
MODEL = Transformer("LayerNorm")


def optimizer(
    arm: str, decay: jax.Array, rate: jax.Array, steps: int
) -> optax.GradientTransformation:
    """Returns the optimizer; the arms differ in the order of the first two transformations."""
    parts = [optax.add_decayed_weights(decay), optax.scale_by_adam()]
    if arm == "AdamW":
        parts.reverse()
    schedule = optax.linear_schedule(1.0, 0.0, steps)
    return optax.chain(*parts, optax.scale_by_schedule(schedule), optax.scale(-rate))


@partial(jax.jit, static_argnums=(0, 1))
def train(arm: str, steps: int, variables: Any, seeds: jax.Array, data: Any) -> Any:
    """Returns the trained variables, with the axes [decays, rates, seeds] before their own."""

    def run(decay: jax.Array, rate: jax.Array, variables: Any, seed: jax.Array) -> Any:
        key = jax.random.key(seed)
        batches = draw_batches(key, EXAMPLES, BATCH, steps)
        return fit(MODEL, variables, optimizer(arm, decay, rate, steps), data, batches, key)[0]

    by_seed = jax.vmap(run, in_axes=(None, None, 0, 0))
    by_rate = jax.vmap(by_seed, in_axes=(None, 0, None, None))
    grid = jax.vmap(by_rate, in_axes=(0, None, None, None))
    return grid(jnp.asarray(DECAYS), jnp.asarray(RATES), variables, seeds)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns test accuracies [decays][rates][seeds] by arm, and the best cells by pilot seeds."""
    digits, everyone = load_digits(), jnp.asarray((*PILOT_SEEDS, *seeds))
    data = jax.tree.map(lambda array: jnp.asarray(array[:EXAMPLES]), digits.train)
    start = initialize(MODEL, everyone, data[0][:2])
    pilots, shape = len(PILOT_SEEDS), (len(DECAYS), len(RATES), -1)
    found: dict[str, Any] = {"accuracy": {}, "decays": {}, "rates": {}}
    for arm in ARMS:
        trained = train(arm, 60 if quick else 200, start, everyone, data)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), trained)
        losses = np.asarray(evaluate(MODEL, flat, *digits.validation)[0]).reshape(shape)
        means = np.nan_to_num(losses[..., :pilots].mean(-1), nan=np.inf)
        found["decays"][arm] = means.argmin(0).tolist()
        found["rates"][arm] = int(means.min(0).argmin())
        accuracy = np.asarray(evaluate(MODEL, flat, *digits.test)[1], float).reshape(shape)
        found["accuracy"][arm] = accuracy[..., pilots:].round(4).tolist()
    return found


def at_best_decay(results: Results, arm: str, rate: int) -> list[float]:
    """Returns, for each seed, the accuracy at a rate (its place) and the best decay for it."""
    return results["accuracy"][arm][results["decays"][arm][rate]][rate]


def verdict(results: Results) -> Verdict:
    """Holds if AdamW is better by a point, both at their best decay and rate.

    In part if it is at one of the rates, both at their best decay for it. Without decay, the arms
    must not differ by a point.
    """

    def gains(rates: dict[str, int]) -> list[float]:
        adam, adamw = (at_best_decay(results, arm, rates[arm]) for arm in ARMS)
        return [a - b for a, b in zip(adamw, adam, strict=True)]

    at_best = gains(results["rates"])
    by_rate = [gains(dict.fromkeys(ARMS, place)) for place in range(len(RATES))]
    without = [np.asarray(results["accuracy"][arm][0]) for arm in ARMS]
    apart = float(abs(without[1] - without[0]).max())
    parts = [
        f"{100 * np.median(gain):.1f} at {rate:g}"
        for gain, rate in zip(by_rate, RATES, strict=True)
    ]
    reason = (
        f"The gain of AdamW is {100 * np.median(at_best):.1f} points at the best decay and "
        f"learning rate of each; at the best decay for each learning rate, "
        f"{', '.join(parts)} (medians)."
    )
    if apart >= MARGIN or not any(is_larger(gain, MARGIN) for gain in (at_best, *by_rate)):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if is_larger(at_best, MARGIN) else "holds in part", reason)


def draw(results: Results):
    """Draws the median test accuracy by decay and rate; brackets mark the decay chosen for each."""
    figure = make_figure(2, width=3.7, height=3.4)
    for axes, arm in zip(figure.axes, ARMS, strict=True):
        values = 100 * np.median(results["accuracy"][arm], axis=-1)
        axes.imshow(values, cmap="cividis", vmin=50, vmax=95, aspect="auto")
        for row, column in np.ndindex(*values.shape):
            color = "black" if values[row, column] > 75 else "white"
            text = f"{values[row, column]:.0f}"
            if row == results["decays"][arm][column]:
                text = f"[{text}]"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
        axes.set_xticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
        axes.set_yticks(range(len(DECAYS)), [f"{decay:g}" for decay in DECAYS])
        axes.set(title=arm, xlabel="learning rate", ylabel="weight decay")
        axes.grid(visible=False)
    return figure

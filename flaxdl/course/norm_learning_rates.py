"""Do normalization layers make training stable over a wider range of learning rates?

A network of six hidden layers classifies handwritten digits. It is trained by plain SGD, which,
unlike Adam, does not adapt to the scale of the gradients, with learning rates from 1e-4 to 1. The
arms differ in what comes before each ReLU: BatchNorm, LayerNorm or nothing.

The control has the scale and the bias of a norm, but does not normalize. The last arm has no norm
and He's initialization (2015) instead of PyTorch's, which shrinks the signal in each layer. It
tells how much of the effect is only that of a poor start.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import Results, Verdict, draw_range, is_larger, make_figure
from flaxdl.course.training import (
    draw_batches,
    fit,
    in_parallel,
    load_digits,
    sweep,
    test_accuracy,
)
from flaxdl.layers import BatchNorm, LayerNorm, Linear

CLAIM = "Normalization layers stabilize training."
EXPECTED = "holds"
SEEDS = 5

ARMS = ("BatchNorm", "LayerNorm", "none", "scale and bias", "none, He's initialization")
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
DEPTH, WIDTH, BATCH = 6, 32, 32
GOOD = 0.9  # test accuracy
MARGIN = 2  # learning rates, which is a factor of ten


class ScaleAndBias(nn.Module):
    """Parameters of a norm, without the normalization."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, C] to [B, C]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return x * scale + self.param("bias", nn.initializers.zeros, x.shape[-1:])


class Network(nn.Module):
    """Six hidden layers with ReLU, each normalized or not."""

    arm: str

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, 8, 8] to logits [B, 10]."""
        x = images.reshape(len(images), 64)
        for number in range(DEPTH):
            if self.arm == "none, He's initialization":
                he = nn.initializers.he_normal()
                x = Linear(WIDTH, kernel_init=he, name=f"fc{number}")(x)
            else:
                x = Linear(WIDTH, name=f"fc{number}")(x)
            if self.arm == "BatchNorm":
                x = BatchNorm(name=f"norm{number}")(x, train)
            elif self.arm == "LayerNorm":
                x = LayerNorm(name=f"norm{number}")(x)
            elif self.arm == "scale and bias":
                x = ScaleAndBias(name=f"norm{number}")(x)
            x = nn.relu(x)
        return Linear(10, name="fc")(x)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the test accuracy by arm, learning rate and seed."""
    digits, steps = load_digits(), 100 if quick else 500

    def train(model, variables, key, rate):
        batches = draw_batches(key, len(digits.train[1]), BATCH, steps)
        return fit(model, variables, optax.sgd(rate), digits.train, batches, key)

    def measure_one(arm: str) -> list[list[float]]:
        model = Network(arm)
        variables, _ = sweep(model, partial(train, model), RATES, seeds, digits.train[0])
        flat = jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[2:])), variables)
        return np.reshape(test_accuracy(model, flat, digits), (len(RATES), -1)).tolist()

    found = dict(zip(ARMS, in_parallel(measure_one, ARMS), strict=True))
    return {"accuracy": found, "rates": list(RATES)}


def good_rates(results: Results, arm: str) -> list[int]:
    """Returns, for each seed, the number of learning rates with a good test accuracy."""
    by_seed = zip(*results["accuracy"][arm], strict=True)
    return [sum(value >= GOOD for value in values) for values in by_seed]


def verdict(results: Results) -> Verdict:
    """Holds if both norms widen the range of good learning rates by a factor of ten.

    Holds in part if only one of them does. A scale and a bias alone must not widen the range.
    """
    none = good_rates(results, "none")

    def widens(arm: str) -> bool:
        pairs = zip(good_rates(results, arm), none, strict=True)
        return is_larger([with_ - without for with_, without in pairs], MARGIN)

    numbers = ", ".join(f"{arm}: {np.median(good_rates(results, arm)):g}" for arm in ARMS)
    reason = (
        f"Of {len(results['rates'])} learning rates, so many lead to a test accuracy of at least "
        f"{100 * GOOD:.0f} %: {numbers} (medians)."
    )
    widening = [widens("BatchNorm"), widens("LayerNorm")]
    if widens("scale and bias") or not any(widening):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if all(widening) else "holds in part", reason)


def draw(results: Results):
    """Draws the test accuracy by learning rate."""
    figure = make_figure(width=6.0, height=3.6)
    (axes,) = figure.axes
    for arm in ARMS:
        by_seed = zip(*results["accuracy"][arm], strict=True)
        draw_range(axes, results["rates"], [[100 * v for v in values] for values in by_seed], arm)
    axes.set(xscale="log", xlabel="learning rate of SGD", ylabel="test accuracy (%)", ylim=(0, 103))
    axes.legend(fontsize=8, loc="upper left")
    return figure

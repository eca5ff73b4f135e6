"""Do gradients pass a residual block whose branch is zero?

The course comments the skip connection with "even if block(x) → 0, gradients still flow through x".
In a stack of eight of its blocks, the scale of the last batch normalization is set to 0, so that
every branch is exactly 0. The experiment computes the gradient of a random projection of the
output with respect to the input of each block.

The control is the same stack without skip connections, whose gradient must be zero. The block of
the course has a ReLU after the sum, which stops the gradient where its input is negative. Two
more arms test this: a stack without this ReLU, and inputs that are all negative.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.course.experiment import Results, Verdict, draw_range, is_larger, make_figure
from flaxdl.layers import BatchNorm, Conv

CLAIM = "Gradients flow through the skip connection even if the branch of the block is zero."
EXPECTED = "holds where the ReLU after the sum is open"
SEEDS = 5

BLOCKS, BATCH, SIZE, CHANNELS = 8, 4, 8, 8
ARMS = ("skip", "skip, no ReLU after the sum", "skip, negative inputs", "no skip")
PRESERVED = 0.5


class Block(nn.Module):
    """Block of the course, with optional skip connection and final ReLU."""

    skip: bool = True
    rectify: bool = True

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same shape, with the statistics of the batch."""
        x = Conv(CHANNELS, 3, padding=1, name="block.0")(inputs)
        x = nn.relu(BatchNorm(name="block.1")(x, train=True))
        x = Conv(CHANNELS, 3, padding=1, name="block.3")(x)
        x = BatchNorm(name="block.4")(x, train=True)
        x = x + inputs if self.skip else x
        return nn.relu(x) if self.rectify else x


@partial(jax.jit, static_argnums=0)
def initialize(block: Block, key: jax.Array, x: jax.Array) -> Any:
    """Returns parameters and statistics of a block."""
    return block.init(key, x)


@partial(jax.jit, static_argnums=0)
def apply(block: Block, variables: Any, x: jax.Array) -> jax.Array:
    """Returns the output of a block, [B, H, W, C]."""
    return block.apply(variables, x, mutable=["batch_stats"])[0]


def gradient_by_depth(arm: str, seed: int, *, branch_scale: float = 0.0) -> list[float]:
    """Returns the norms of the gradients for the input of each block and for the output."""
    block = Block(skip=arm != "no skip", rectify=arm != "skip, no ReLU after the sum")
    data_key, direction_key, *keys = jax.random.split(jax.random.key(seed), BLOCKS + 2)
    x = jax.random.normal(data_key, (BATCH, SIZE, SIZE, CHANNELS))
    x = -jnp.abs(x) if arm == "skip, negative inputs" else x
    gradient = jax.random.normal(direction_key, x.shape)

    pullbacks = []
    for key in keys:
        variables: dict[str, Any] = dict(initialize(block, key, x))
        variables["params"]["block.4"]["scale"] = jnp.full(CHANNELS, branch_scale)
        x, pullback = jax.vjp(partial(apply, block, variables), x)
        pullbacks.append(pullback)

    norms = [float(jnp.linalg.norm(gradient))]
    for pullback in reversed(pullbacks):
        (gradient,) = pullback(gradient)
        norms.append(float(jnp.linalg.norm(gradient)))
    return norms[::-1]


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the norms of the gradients by arm, seed and depth."""
    return {"norms": {arm: [gradient_by_depth(arm, seed) for seed in seeds] for arm in ARMS}}


def fractions(results: Results, arm: str) -> list[float]:
    """Returns, for each seed, the fraction of the gradient that is left at the first block."""
    return [norms[0] / norms[-1] for norms in results["norms"][arm]]


def verdict(results: Results) -> Verdict:
    """Holds if at least half of the gradient passes all blocks, and none without skips."""
    left = {arm: statistics.median(fractions(results, arm)) for arm in ARMS}
    numbers = "; ".join(f"{arm}: {fraction:.2f}" for arm, fraction in left.items())
    reason = f"Of the gradient at the output, this fraction is left at the input: {numbers}."
    holds = is_larger(fractions(results, "skip"), PRESERVED)
    without = max(fractions(results, "no skip"))
    return Verdict("holds" if holds and without == 0 else "does not hold here", reason)


def draw(results: Results):
    """Draws the fraction of the gradient that is left at the input of each block."""
    figure = make_figure(width=5.6, height=3.4)
    (axes,) = figure.axes
    for arm, by_seed in results["norms"].items():
        left = [[norm / norms[-1] for norm in norms] for norms in by_seed]
        draw_range(axes, range(1, BLOCKS + 2), left, arm)
    axes.lines[-1].set(linestyle="--", marker="s", markersize=9, markerfacecolor="none")
    labels = [*map(str, range(1, BLOCKS + 1)), "output"]
    axes.set_xticks(range(1, BLOCKS + 2), labels)
    axes.set(xlabel="input of block", ylabel="fraction of the gradient left", ylim=(-0.05, 1.1))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(0, 0.4))
    return figure

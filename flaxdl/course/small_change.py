"""Is a small change easier to learn than the whole map?

A block with a skip connection computes x + f(x): its layers learn the residual, the difference
between output and input. Without the skip connection, they learn the output itself. Both are
trained on the same targets: x plus a change, which is another random network, of a size between a
tenth and three times that of x.

A third arm separates the skip connection from a good start. It has none, but its initial weights
return x, plus what half of the features of a residual block add to it at first.

In the control, the target is a rotation of x plus the same change. For a plain block, this is as
hard as before; but x is no longer a part of the target, and the skip connection must not help.

Legend: B examples per batch, W features of inputs and outputs.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

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

CLAIM = "It is easier to learn a residual, a small change of the input, than the whole map."
EXPECTED = "holds"
SEEDS = 5

WIDTH, HIDDEN, BATCH, TEST = 16, 64, 32, 2000
SIZES = (0.1, 0.3, 1.0, 3.0)  # root mean square of the change; that of x is 1
SMALL, LARGE = "0.1", "1.0"  # sizes of the verdict
TARGETS = ("x + change", "rotated x + change")
ARMS = ("residual", "plain", "plain, starts as identity")
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
MARGIN = 1.0  # of the binary logarithm of a ratio of errors: a factor of 2

Block = Any  # weights and biases of two layers, by name


def apply(block: Block, x: jax.Array) -> jax.Array:
    """Maps [B, W] to the same shape by two layers with ReLU between them."""
    return jax.nn.relu(x @ block["w1"] + block["b1"]) @ block["w2"] + block["b2"]


def random_block(key: jax.Array, hidden: int, first: float, second: float) -> Block:
    """Returns weights drawn from normal distributions with these variances, and biases of 0."""
    keys = jax.random.split(key)
    w1 = jax.random.normal(keys[0], (WIDTH, hidden)) * first**0.5
    w2 = jax.random.normal(keys[1], (hidden, WIDTH)) * second**0.5
    return {"w1": w1, "b1": jnp.zeros(hidden), "w2": w2, "b2": jnp.zeros(WIDTH)}


def returning_input(block: Block) -> Block:
    """Returns the block with 2 W of its hidden features replaced by those of the identity."""
    identity = jnp.concatenate([jnp.eye(WIDTH), -jnp.eye(WIDTH)], axis=1)  # x = relu(x) - relu(-x)
    w1 = block["w1"].at[:, : 2 * WIDTH].set(identity)
    return block | {"w1": w1, "w2": block["w2"].at[: 2 * WIDTH].set(identity.T)}


def train(
    steps: int, seed: jax.Array, rate: jax.Array, size: jax.Array, target: jax.Array, arm: jax.Array
) -> jax.Array:
    """Trains a block; returns the root mean square of its errors on other inputs.

    `target` and `arm` are places in TARGETS and ARMS.
    """
    keys = jax.random.split(jax.random.key(seed), 4)
    # Half as many hidden features, so that a plain block has room for x and the change.
    change = random_block(keys[0], HIDDEN // 2, 2 / WIDTH, 2 / HIDDEN)
    rotation, _ = jnp.linalg.qr(jax.random.normal(keys[1], (WIDTH, WIDTH)))
    base = jnp.stack([jnp.eye(WIDTH), rotation])[target]
    skip, _, identity = (arm == place for place in range(len(ARMS)))
    block = random_block(keys[2], HIDDEN, 1 / (3 * WIDTH), 1 / (3 * HIDDEN))  # as in PyTorch
    block = jax.tree.map(partial(jnp.where, identity), returning_input(block), block)

    def loss(block: Block, x: jax.Array) -> jax.Array:
        wanted = x @ base + size * apply(change, x)
        return jnp.square(skip * x + apply(block, x) - wanted).mean()

    adam = optax.adam(optax.linear_schedule(rate, 0.0, steps))

    def step(carry, key):
        block, state = carry
        gradients = jax.grad(loss)(block, jax.random.normal(key, (BATCH, WIDTH)))
        updates, state = adam.update(gradients, state)
        return (optax.apply_updates(block, updates), state), None

    data_keys = jax.random.split(keys[3], steps)
    (block, _), _ = jax.lax.scan(step, (block, adam.init(block)), data_keys)
    return loss(block, jax.random.normal(jax.random.key(0), (TEST, WIDTH))) ** 0.5


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the error by target, arm, size of the change and seed, and the learning rates."""
    cases = list(product(range(len(TARGETS)), range(len(ARMS)), SIZES))
    together = jax.jit(jax.vmap(partial(train, 100 if quick else 600)))

    def errors(runs: list[tuple]) -> np.ndarray:  # [cases, runs of each]
        found = together(*map(jnp.asarray, zip(*runs, strict=True)))
        return np.asarray(found).astype(float).reshape(len(cases), -1)

    grid = product(cases, RATES, PILOT_SEEDS)
    pilots = errors([(seed, rate, size, t, a) for (t, a, size), rate, seed in grid])
    by_rate = pilots.reshape(len(cases), len(RATES), -1).tolist()
    rates = [best_rate(dict(zip(RATES, values, strict=True))) for values in by_rate]
    runs = zip(cases, rates, strict=True)
    found = errors([(seed, rate, size, t, a) for (t, a, size), rate in runs for seed in seeds])
    error, chosen = ({target: {arm: {} for arm in ARMS} for target in TARGETS} for _ in range(2))
    for (t, a, size), rate, values in zip(cases, rates, found.round(5).tolist(), strict=True):
        error[TARGETS[t]][ARMS[a]][str(size)] = values
        chosen[TARGETS[t]][ARMS[a]][str(size)] = rate
    return {"error": error, "learning_rates": chosen}


def ratios(results: Results, target: str, size: str) -> list[float]:
    """Returns, for each seed, the plain block's error divided by that of the residual block."""
    residual, plain, _ = (results["error"][target][arm][size] for arm in ARMS)
    return [without / with_ for with_, without in zip(residual, plain, strict=True)]


def verdict(results: Results) -> Verdict:
    """Holds if the residual block halves the error; in part if it does so for small changes alone.

    With a rotation, it must not.
    """
    parts = [
        f"{statistics.median(ratios(results, target, size)):.1f} ({target}, a change of {size})"
        for target, size in product(TARGETS, (SMALL, LARGE))
    ]
    reason = f"The plain block's error over that of the residual block is {', '.join(parts)}."

    def helps(target: str, size: str) -> bool:
        return is_larger(np.log2(ratios(results, target, size)).tolist(), MARGIN)

    task, control = TARGETS
    if not helps(task, SMALL) or helps(control, SMALL) or helps(control, LARGE):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if helps(task, LARGE) else "holds in part", reason)


def draw(results: Results):
    """Draws the error by the size of the change, for each target and arm."""
    figure = make_figure(2, width=3.6, height=3.2)
    for axes, (target, arms) in zip(figure.axes, results["error"].items(), strict=True):
        for arm, by_size in arms.items():
            draw_range(axes, SIZES, list(zip(*by_size.values(), strict=True)), arm)
        if target == TARGETS[0]:
            axes.plot(SIZES, SIZES, "--", color=INK, linewidth=1, label="output x")
        axes.set(xscale="log", yscale="log", ylim=(0.001, 4), title=target)
        axes.set_xticks(SIZES, [str(size) for size in SIZES])
        axes.minorticks_off()
        axes.set(xlabel="size of the change (x: 1)", ylabel="root mean square error")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.axes[1].legend(*handles, fontsize=8, loc="lower right")
    return figure

"""Does max pooling keep enough when it keeps only the strongest activation?

A strong activation says that a pattern was found, and pooling forgets where in its window. So the
result should change little if the image moves by a pixel, as the strongest activation often stays
in its window. Averages of the window and a plain stride (one of four values, the others are
dropped) also halve the size.

Small CNNs with each of them learn handwritten digits in the middle of an image. Then the test
digits are shifted, and the experiment counts how often the prediction stays the same. Images are
cyclic: what leaves on the right returns on the left, so that borders do not matter. The control is
a shift of 4 pixels, the product of the two strides: there, all networks must predict the same.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import COLORS, Results, Verdict, draw_range, is_larger, make_figure
from flaxdl.course.training import Splits, draw_batches, fit, in_parallel, load_digits, tuned
from flaxdl.layers import Linear, avg_pool, max_pool

CLAIM = "Max pooling downsamples: it keeps only the strongest activation."
EXPECTED = "in part"
SEEDS = 5

POOLS = {
    "max": partial(max_pool, window=2),
    "average": partial(avg_pool, window=2),
    "stride": lambda x: x[:, ::2, ::2],
}
SHIFTS = (0, 1, 2, 3, 4)
RATES = (1e-2, 3e-2)
MARGIN = 0.05  # of predictions that stay the same


class Network(nn.Module):
    """Two convolutions, each followed by pooling, and a linear layer for the mean of each map."""

    pool: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W] to logits [B, 10]."""
        x = x[..., None]
        for number, channels in enumerate((8, 32)):
            offsets = itertools.product((-1, 0, 1), repeat=2)
            window = jnp.concatenate([jnp.roll(x, offset, (1, 2)) for offset in offsets], axis=-1)
            x = nn.relu(Linear(channels, name=f"conv{number}")(window))
            x = POOLS[self.pool](x)
        x = x.mean((1, 2))
        self.sow("intermediates", "features", x)
        return Linear(10, name="fc")(x)


def enlarged(digits: Splits) -> Splits:
    """Adds a border of 2 pixels to the digits [N, 8, 8]."""
    return Splits(
        *(
            (np.pad(images, ((0, 0), (2, 2), (2, 2)), constant_values=images.min()), labels)
            for images, labels in digits
        )
    )


@partial(jax.jit, static_argnums=0)
def effects(network: Network, variables: dict, images: jax.Array, shift: int):
    """Returns how often the prediction stays the same, and the relative change of the features.

    Means over shifts up, down, left and right, for variables with one more axis, [seeds].
    """

    def outputs(variables: dict, images: jax.Array) -> tuple[jax.Array, Any]:
        logits, state = network.apply(variables, images, mutable="intermediates")
        (features,) = state["intermediates"]["features"]
        return jnp.asarray(logits).argmax(-1), features

    def of_one(variables: dict) -> tuple[jax.Array, jax.Array]:
        labels, features = outputs(variables, images)
        same, change = [], []
        for axis, sign in itertools.product((1, 2), (-1, 1)):
            moved = outputs(variables, jnp.roll(images, sign * shift, axis))
            same.append((moved[0] == labels).mean())
            distance = jnp.linalg.norm(moved[1] - features, axis=-1)
            change.append((distance / jnp.linalg.norm(features, axis=-1)).mean())
        return jnp.stack(same).mean(), jnp.stack(change).mean()

    return jax.vmap(of_one)(variables)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns accuracies, and effects of shifts by pooling, shift and seed."""
    digits, steps = enlarged(load_digits()), 100 if quick else 400
    found: dict = {"accuracy": {}, "learning_rates": {}, "same": {}, "change": {}}

    def train(network, variables, key, rate):
        batches = draw_batches(key, len(digits.train[1]), 32, steps)
        return fit(network, variables, optax.adam(rate), digits.train, batches, key)

    def measure_one(pool: str):
        network = Network(pool)
        best = tuned(network, partial(train, network), RATES, seeds, digits)
        return best, [effects(network, best.variables, digits.test[0], shift) for shift in SHIFTS]

    for pool, (best, by_shift) in zip(POOLS, in_parallel(measure_one, POOLS), strict=True):
        found["accuracy"][pool], found["learning_rates"][pool] = best.accuracy, best.rate
        for name, values in zip(("same", "change"), zip(*by_shift, strict=True), strict=True):
            found[name][pool] = np.asarray(values, float).T.round(4).tolist()  # [seeds, shifts]
    return found


def advantages(results: Results, pool: str, shift: int) -> list[float]:
    """Returns, for each seed, how much more often predictions stay the same with max pooling."""
    place = SHIFTS.index(shift)
    pairs = zip(results["same"]["max"], results["same"][pool], strict=True)
    return [ours[place] - theirs[place] for ours, theirs in pairs]


def verdict(results: Results) -> Verdict:
    """Holds if max pooling tolerates a pixel better than both others, in part if than a stride."""
    stable = [
        f"{100 * np.median([seed[SHIFTS.index(1)] for seed in results['same'][pool]]):.0f} % with "
        f"{pool} (test accuracy {100 * np.median(results['accuracy'][pool]):.1f} %)"
        for pool in POOLS
    ]
    reason = (
        f"After a shift of 1 pixel, the predictions that stay the same are {', '.join(stable)}."
    )
    over = {pool: is_larger(advantages(results, pool, 1), MARGIN) for pool in POOLS}
    if not over["stride"] or is_larger(advantages(results, "stride", SHIFTS[-1]), MARGIN):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if over["average"] else "holds in part", reason)


def draw(results: Results):
    """Draws the test accuracy, and the predictions that stay the same by shift."""
    figure = make_figure(2, width=3.8, height=3.2)
    bars, lines = figure.axes
    for number, pool in enumerate(POOLS):
        values = [100 * value for value in results["accuracy"][pool]]
        bars.bar(number, np.median(values), 0.6, color=COLORS[number], alpha=0.5)
        bars.plot([number] * len(values), values, "o", color=COLORS[number])
        draw_range(lines, SHIFTS, (100 * np.array(results["same"][pool])).tolist(), pool)
    bars.set_xticks(range(len(POOLS)), POOLS)
    bars.set(ylabel="test accuracy (%)", ylim=(80, 100))
    bars.set_axisbelow(True)
    lines.set(xlabel="shift (pixels)", ylabel="same prediction (%)", ylim=(0, 103), xticks=SHIFTS)
    lines.legend(fontsize=8, loc="lower left")
    return figure

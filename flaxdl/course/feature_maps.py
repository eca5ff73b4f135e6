"""Do the feature maps of a layer detect different patterns?

A CNN is trained on handwritten digits, and the maps of its layers are compared before and after
training: two maps that are large at the same places of the same images are correlated. The
effective number of maps counts how many different ones there are: n equal maps count as 1, n
uncorrelated maps as n. Then each map is ablated, that is, replaced by its mean value; what the
accuracy loses shows whether the network uses it.

The untrained network is what training is compared with. As a control for the measure, each filter
of another network starts with a twin, and twins stay equal: their maps must count half.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import COLORS, INK, Results, Verdict, is_larger, make_figure
from flaxdl.course.pixel_order import patches
from flaxdl.course.training import draw_batches, fit, initialize, load_digits, tuned
from flaxdl.layers import Linear, max_pool

CLAIM = "The feature maps of a layer detect different patterns."
EXPECTED = "in part: some maps are dead, or nearly twins"
SEEDS = 5

LAYERS, MAPS = ("conv0", "conv1"), 16
RATES = (1e-3, 3e-3, 1e-2)
TWIN = 0.9  # correlation above which two maps count as twins
DISTINCT = 0.75  # smallest fraction of maps that are neither dead nor twins
MARGIN = 1.0  # of the effective number of maps


class Network(nn.Module):
    """Two convolutions with pooling, and a linear layer."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, ablate: Any = None) -> jax.Array:
        """Maps images [B, H, W] to logits [B, 10].

        Args:
            x: images.
            train: whether the network is trained; it makes no difference.
            ablate: for each layer, 1 for the maps to replace by their mean, and 0 for others.
        """
        x = x[..., None]
        for number, layer in enumerate(LAYERS):
            x = nn.relu(Linear(MAPS, name=layer)(patches(x)))
            if ablate is not None:
                x = jnp.where(ablate[number] == 1, x.mean((0, 1, 2)), x)
            self.sow("intermediates", "maps", x)
            x = max_pool(x, 2)
        return Linear(10, name="fc")(x.reshape(len(x), -1))


def correlations(maps: jax.Array) -> jax.Array:
    """Returns the correlations of maps [B, H, W, C], [C, C]; those of a constant map are 0."""
    flat = maps.reshape(-1, maps.shape[-1])
    centered = flat - flat.mean(0)
    length = jnp.linalg.norm(centered, axis=0)
    unit = centered / jnp.where(length < 1e-4, jnp.inf, length)
    return unit.T @ unit


def effective_number(r: np.ndarray) -> float:
    """Returns how many uncorrelated maps have the variety of maps with correlations r [C, C]."""
    return float(np.trace(r) ** 2 / np.square(r).sum())


def distinct_fraction(r: np.ndarray) -> float:
    """Returns the fraction of maps that are neither constant nor twins of another map."""
    others = np.abs(r - np.diag(np.diag(r))).max(0)
    return float(((np.diag(r) > 0.5) & (others < TWIN)).mean())


def with_twins(params: Mapping[str, Any]) -> dict:
    """Replaces the second half of the maps of each layer by copies of the first half."""

    def copied(array: jax.Array, axis: int) -> jax.Array:
        if array.shape[axis] != MAPS:
            return array
        half = jnp.take(array, jnp.arange(MAPS // 2), axis)
        return jnp.concatenate([half, half], axis)

    twins = {}
    for name, layer in params.items():
        inputs = 1 if name == LAYERS[0] else MAPS
        kernel = layer["kernel"].reshape(-1, inputs, layer["kernel"].shape[1])
        kernel = copied(copied(kernel, 1), 2).reshape(layer["kernel"].shape)
        twins[name] = {"kernel": kernel, "bias": copied(layer["bias"], 0)}
    return twins


@jax.jit
def analyze(variables: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns correlations and losses of accuracy, for variables with one more axis, [seeds].

    Returns:
        The correlations of the maps of both layers [seeds, 2, C, C], and the accuracy that is lost
        when one map of a layer is ablated [seeds, 2, C].
    """

    def of_one(variables: Any) -> tuple[jax.Array, jax.Array]:
        def accuracy(ablate: jax.Array) -> jax.Array:
            logits: Any = Network().apply(variables, images, False, ablate)
            return (logits.argmax(-1) == labels).mean()

        state: Any = Network().apply(variables, images, mutable="intermediates")[1]
        r = jnp.stack([correlations(maps) for maps in state["intermediates"]["maps"]])
        single = jnp.eye(2 * MAPS).reshape(2 * MAPS, 2, MAPS)
        ablated = jax.lax.map(accuracy, single).reshape(2, MAPS)
        return r, accuracy(jnp.zeros((2, MAPS))) - ablated

    return jax.lax.map(of_one, variables)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns effective numbers and distinct fractions of maps, losses by map, and matrices."""
    digits, steps, network = load_digits(), 100 if quick else 500, Network()

    def train(twins, variables, key, rate):
        if twins:
            variables = {"params": with_twins(variables["params"])}
        batches = draw_batches(key, len(digits.train[1]), 32, steps)
        return fit(network, variables, optax.adam(rate), digits.train, batches, key)

    trained, twins = (
        tuned(network, partial(train, twins), RATES, seeds, digits) for twins in (False, True)
    )
    untrained = initialize(network, jnp.asarray(seeds), jnp.asarray(digits.train[0][:2]))
    arms = {"untrained": untrained, "trained": trained.variables, "twins": twins.variables}
    found: dict = {
        "accuracy": {"trained": trained.accuracy, "twins": twins.accuracy},
        "learning_rates": {"trained": trained.rate, "twins": twins.rate},
    }
    for arm, variables in arms.items():
        r, lost = map(np.asarray, analyze(variables, *digits.test))
        for name, of in (("effective", effective_number), ("distinct", distinct_fraction)):
            values = [[of(one) for one in of_seed] for of_seed in r]
            found.setdefault(name, {})[arm] = np.round(values, 3).tolist()  # [seeds, layers]
        found.setdefault("lost", {})[arm] = lost.astype(float).round(4).tolist()
        found.setdefault("correlations", {})[arm] = r[0, 1].astype(float).round(3).tolist()
    return found


def are_distinct(results: Results, arm: str) -> bool:
    """Returns True if most maps of both layers are neither dead nor twins, for every seed."""
    return bool(np.min(results["distinct"][arm]) >= DISTINCT)


def verdict(results: Results) -> Verdict:
    """Holds if most maps are distinct and training makes them less alike, in part if one is so."""
    before, after = (np.array(results["effective"][arm]) for arm in ("untrained", "trained"))
    fractions = {arm: 100 * np.min(of) for arm, of in results["distinct"].items()}
    numbers = [np.median(of, 0) for of in (before, after)]
    reason = (
        f"At least {fractions['trained']:.0f} % of the maps of a layer are neither dead nor twins "
        f"({fractions['twins']:.0f} % in the control). Training changes the effective number of "
        f"maps, of {MAPS}, from {numbers[0][0]:.1f} to {numbers[1][0]:.1f} in the first layer and "
        f"from {numbers[0][1]:.1f} to {numbers[1][1]:.1f} in the second (medians)."
    )
    less_alike = all(is_larger((after - before)[:, layer].tolist(), MARGIN) for layer in (0, 1))
    if are_distinct(results, "twins"):
        return Verdict("does not hold here", reason)
    parts = are_distinct(results, "trained") + less_alike
    return Verdict(("does not hold here", "holds in part", "holds")[parts], reason)


def draw(results: Results):
    """Draws correlations before and after, effective numbers, and the losses by map."""
    figure = make_figure(3, width=3.0, height=3.4)
    pictures, bars, lines = figure.axes
    grid = pictures.get_gridspec()
    assert grid is not None
    grid.set_width_ratios((1, 2, 2))
    matrices = [np.abs(results["correlations"][arm]) for arm in ("untrained", "trained")]
    gap = np.full((3, MAPS), np.nan)
    pictures.imshow(np.concatenate([matrices[0], gap, matrices[1]]), cmap="viridis", vmin=0, vmax=1)
    pictures.set_axis_off()
    for number, (arm, by_seed) in enumerate(results["effective"].items()):
        for layer, values in enumerate(np.transpose(by_seed)):
            x, color = layer + 0.27 * (number - 1), COLORS[number]
            label = None if layer else arm
            bars.bar(x, np.median(values), 0.24, color=color, alpha=0.5, label=label)
            bars.plot([x] * len(values), values, "o", color=color, markersize=3)
    bars.axhline(MAPS / 2, linestyle="--", linewidth=1, color=INK)
    bars.set_xticks((0, 1), ("first layer", "second layer"))
    bars.set(ylabel=f"effective number of maps (of {MAPS})", ylim=(0, MAPS))
    bars.set_axisbelow(True)
    bars.legend(fontsize=8, loc="upper left")
    lost = -np.sort(-np.array(results["lost"]["trained"]), -1)
    for layer, label in enumerate(("first layer", "second layer")):
        color = COLORS[3 + layer]
        lines.plot(range(1, MAPS + 1), 100 * np.median(lost[:, layer], 0), color=color, label=label)
        lines.plot(range(1, MAPS + 1), 100 * lost[:, layer].T, ".", color=color, alpha=0.5)
    lines.set(xlabel="maps, by their importance", ylabel="accuracy lost when ablated (points)")
    lines.set_xticks((1, 4, 8, 12, MAPS))
    lines.legend(fontsize=8, loc="upper right")
    return figure

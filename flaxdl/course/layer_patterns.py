"""Do low layers see edges, and high layers shapes and objects?

A CNN of three convolutions learns handwritten digits. Two numbers say what its layers respond to.
Of the first layer's filters, we compute how much of their contrast is that of an edge: weights that
rise evenly in one direction. Of the maps of each layer, we compute how much of the variance of
their mean activation is explained by the class of the image: 0 for a map that responds to all
digits alike, 1 for one that only depends on the class.

The same network before training is the control. A random filter has edges too, and a higher layer
sees more of the image even if it has learned nothing.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import (
    COLORS,
    INK,
    Results,
    Verdict,
    draw_range,
    is_larger,
    make_figure,
)
from flaxdl.course.pixel_order import patches
from flaxdl.course.training import draw_batches, fit, initialize, load_digits, tuned
from flaxdl.layers import Linear, max_pool

CLAIM = "Low layers detect edges, higher layers shapes and then objects."
EXPECTED = "in part: strokes yes, objects not at this scale"
SEEDS = 5

FIELDS = ((1, -1, 3), (1, -2, 5), (2, -4, 10))  # stride, start and size of what a unit sees
MAPS = 16
RATES = (3e-3, 1e-2)
EDGES, MARGIN_EDGES = 0.5, 0.05  # of the contrast of filters
MARGIN_CLASSES = 0.1  # of the variance of maps
SHOWN_MAPS, SHOWN_PATCHES = 5, 4


class Network(nn.Module):
    """Three convolutions, pooling after the last two, and a linear layer."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, 8, 8] to logits [B, 10]."""
        x = x[..., None]
        for number in range(len(FIELDS)):
            x = nn.relu(Linear(MAPS, name=f"conv{number}")(patches(x)))
            self.sow("intermediates", "maps", x)
            if number > 0:
                x = max_pool(x, 2)
        return Linear(10, name="fc")(x.reshape(len(x), -1))


def edge_fraction(kernels: np.ndarray) -> float:
    """Returns how much of the contrast of filters [9, C] is that of an edge, from 0 to 1.

    The contrast is the squared deviation from the filter's mean; that of an edge is what a plane
    over the 3 x 3 pixels explains. Random filters have 1/4, as 2 of 8 directions are planes.
    """
    contrast = kernels - kernels.mean(0)
    rows, columns = np.repeat((-1, 0, 1), 3), np.tile((-1, 0, 1), 3)
    slopes = np.stack([rows, columns]) @ contrast / 6**0.5
    return float(np.square(slopes).sum() / np.square(contrast).sum())


def class_fraction(activations: np.ndarray, labels: np.ndarray) -> float:
    """Returns how much of the variance of activations [N, C] the class explains, from 0 to 1.

    The median over maps that are not dead.
    """
    alive = activations.std(0) > 1e-4
    deviation = activations[:, alive] - activations[:, alive].mean(0)
    between = sum(
        (labels == label).mean() * np.square(deviation[labels == label].mean(0))
        for label in np.unique(labels)
    )
    return float(np.median(between / np.square(deviation).mean(0)))


def strongest_patches(images: np.ndarray, maps: np.ndarray, layer: int) -> list:
    """Returns patches that activate maps most, at most one per image, [maps, patches, size, size].

    Args:
        images: images [B, H, W].
        maps: maps of the layer [B, h, w, C]; the first ones that are not dead are shown.
        layer: number of the layer.
    """
    stride, start, size = FIELDS[layer]
    padded = np.pad(images, ((0, 0), (size, size), (size, size)), constant_values=images.min())
    chosen = []
    for number in np.flatnonzero(maps.max((0, 1, 2)) > 0)[:SHOWN_MAPS]:
        values = maps[..., number]
        best = np.argsort(-values.max((1, 2)), kind="stable")[:SHOWN_PATCHES]
        row_of_patches = []
        for image in best:
            place = np.unravel_index(values[image].argmax(), values[image].shape)
            row, column = (int(p) * stride + start + size for p in place)
            patch = padded[image, row : row + size, column : column + size]
            row_of_patches.append(patch.astype(float).round(2).tolist())
        chosen.append(row_of_patches)
    return chosen


@jax.jit
def maps_of(variables: Any, images: jax.Array) -> list[jax.Array]:
    """Returns the maps of each layer, for variables with one more axis, [seeds, B, h, w, C]."""

    def of_one(variables: Any) -> list[jax.Array]:
        state: Any = Network().apply(variables, images, mutable="intermediates")[1]
        return list(state["intermediates"]["maps"])

    return jax.lax.map(of_one, variables)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the fractions for edges and classes by seed, before and after training."""
    digits, steps, network = load_digits(), 100 if quick else 400, Network()

    def train(variables, key, rate):
        batches = draw_batches(key, len(digits.train[1]), 32, steps)
        return fit(network, variables, optax.adam(rate), digits.train, batches, key)

    best = tuned(network, train, RATES, seeds, digits)
    untrained = initialize(network, jnp.asarray(seeds), jnp.asarray(digits.train[0][:2]))
    found: dict = {
        "accuracy": best.accuracy,
        "learning_rate": best.rate,
        "edges": {},
        "classes": {},
    }
    images, labels = digits.test
    for arm, variables in (("untrained", untrained), ("trained", best.variables)):
        kernels = np.asarray(variables["params"]["conv0"]["kernel"])
        maps = [np.asarray(layer) for layer in maps_of(variables, images)]
        found["edges"][arm] = [round(edge_fraction(of_seed), 3) for of_seed in kernels]
        found["classes"][arm] = [
            [round(class_fraction(layer[seed].mean((1, 2)), labels), 3) for layer in maps]
            for seed in range(len(seeds))
        ]
        if arm == "trained":
            found["patches"] = [
                strongest_patches(images, layer[0], number) for number, layer in enumerate(maps)
            ]
    return found


def rises(results: Results, arm: str) -> bool:
    """Returns True if the class explains more of the last layer than of the first."""
    first, *_, last = np.transpose(results["classes"][arm])
    return is_larger((last - first).tolist(), MARGIN_CLASSES)


def verdict(results: Results) -> Verdict:
    """Holds if filters become edges and the class explains ever more, in part if one is so."""
    before, after = (np.array(results["edges"][arm]) for arm in ("untrained", "trained"))
    explained = {
        arm: " and ".join(f"{100 * np.median(layer):.0f} %" for layer in np.transpose(of)[[0, -1]])
        for arm, of in results["classes"].items()
    }
    reason = (
        f"Of the contrast of the first filters, {100 * np.median(after):.0f} % is that of an edge, "
        f"and {100 * np.median(before):.0f} % before training. Of the first and last layer, the "
        f"class explains {explained['trained']}, and {explained['untrained']} before training "
        f"(medians)."
    )
    if rises(results, "untrained"):
        return Verdict("does not hold here", reason)
    are_edges = np.median(after) >= EDGES and is_larger((after - before).tolist(), MARGIN_EDGES)
    parts = int(are_edges) + rises(results, "trained")
    return Verdict(("does not hold here", "holds in part", "holds")[parts], reason)


def mosaic(rows: list) -> np.ndarray:
    """Returns patches [maps, patches, size, size] as one image, with gaps between them."""
    array = np.array(rows)
    gap = max(1, array.shape[-1] // 5)
    padded = np.pad(array, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    return np.concatenate(np.concatenate(padded, axis=1), axis=1)


def draw(results: Results):
    """Draws the strongest patches by layer, the edges of filters, and what the class explains."""
    figure = make_figure(5, width=1.9, height=3.2)
    *pictures, bars, lines = figure.axes
    grid = lines.get_gridspec()
    assert grid is not None
    grid.set_width_ratios((1, 1, 1, 1, 1.8))
    for number, (axes, rows) in enumerate(zip(pictures, results["patches"], strict=True)):
        axes.imshow(mosaic(rows), cmap="viridis", interpolation="nearest")
        axes.set_title(f"layer {number + 1}", fontsize=9)
        axes.set_axis_off()
    for number, arm in enumerate(("untrained", "trained")):
        values = [100 * value for value in results["edges"][arm]]
        bars.bar(number, np.median(values), 0.6, color=COLORS[number], alpha=0.5)
        bars.plot([number] * len(values), values, "o", color=COLORS[number], markersize=3)
        classes = (100 * np.array(results["classes"][arm])).tolist()
        draw_range(lines, (1, 2, 3), classes, arm)
    bars.axhline(25, linestyle="--", linewidth=1, color=INK)
    bars.set_xticks((0, 1), ("untrained", "trained"), fontsize=8)
    bars.set(ylabel="edges in the first filters (%)", ylim=(0, 100))
    bars.set_axisbelow(True)
    lines.set(xlabel="layer", ylabel="explained by the class (%)", xticks=(1, 2, 3), ylim=(0, 100))
    lines.legend(fontsize=8, loc="upper left")
    return figure

"""Does a unit of a CNN see no more and no less than its receptive field?

In theory, each layer with a window of k pixels widens the field by k - 1 times the product of the
strides before it. The experiment computes the gradient of one unit in the middle with respect to
the image, as the root of the mean square over 64 random images and the channels, with He's
initialization. The measured field is the box of all pixels with a gradient other than 0.

Not all of a field counts equally. As in Luo et al. (2016), the effective size is the root of the
number of pixels with at least 4.55 % of the largest gradient. The predicted effective size is that
of a calculation in which each layer spreads the squared gradient evenly over its window.

The networks are stacks of 3 x 3 convolutions and the features of the course's CNN. The control is a
linear layer, whose field is the whole image.
"""

import math
import statistics
from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.course.experiment import COLORS, Results, Verdict, draw_range, make_figure
from flaxdl.layers import Conv, Linear, max_pool
from flaxdl.layers.initializers import kaiming_normal

CLAIM = "Each unit sees a part of the input, its receptive field, which grows with depth."
EXPECTED = "holds; the effective field is smaller than the theoretical"
SEEDS = 5

SIZE, CHANNELS, IMAGES, CROP = 48, 8, 64, 24
DEPTHS = (1, 2, 4, 8, 16)
COURSE = "conv pool conv pool conv"
NETWORKS = {f"{depth} conv": ("conv",) * depth for depth in DEPTHS}
NETWORKS |= {COURSE: tuple(COURSE.split()), "linear": ("linear",)}
EFFECTIVE = 0.0455  # of the largest gradient


class Network(nn.Module):
    """Stack of 3 x 3 convolutions with ReLU, max pooling, and linear layers."""

    layers: tuple[str, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images [B, H, W, 1] to the unit in the middle of the first feature map, [B]."""
        for number, layer in enumerate(self.layers):
            if layer == "pool":
                x = max_pool(x, 2)
            elif layer == "linear":
                x = Linear(1, name=f"{number}")(x.reshape(len(x), 1, 1, -1))
            else:
                conv = Conv(CHANNELS, 3, padding=1, kernel_init=kaiming_normal, name=f"{number}")
                x = nn.relu(conv(x))
        return x[:, x.shape[1] // 2, x.shape[2] // 2].sum(-1)


def theory(layers: Sequence[str]) -> int:
    """Returns the size of the receptive field in pixels."""
    field, stride = 1, 1
    for layer in layers:
        if layer == "linear":
            return SIZE
        field += (2 if layer == "conv" else 1) * stride
        stride *= 2 if layer == "pool" else 1
    return field


@partial(jax.jit, static_argnums=0)
def gradient_map(layers: tuple[str, ...], seed: int) -> jax.Array:
    """Returns the root of the mean square gradient for each pixel, [SIZE, SIZE], at most 1."""
    network = Network(layers)
    init_key, data_key = jax.random.split(jax.random.key(seed))
    images = jax.random.normal(data_key, (IMAGES, SIZE, SIZE, 1))
    variables = network.init(init_key, images)
    gradient = jax.grad(lambda x: jnp.sum(jnp.asarray(network.apply(variables, x))))(images)
    root = jnp.sqrt(jnp.square(gradient).mean((0, 3)))
    return root / root.max()


def spread_evenly(layers: Sequence[str]) -> np.ndarray:
    """Returns the map of a network whose layers spread the squared gradient over their windows."""
    squared = np.ones(SIZE if layers[0] == "linear" else 1)  # along a side of the field
    for layer in reversed(layers):
        if layer == "conv":
            squared = np.convolve(squared, np.ones(3))
        elif layer == "pool":
            squared = np.repeat(squared, 2)
    return np.sqrt(np.outer(squared, squared)) / squared.max()


def effective_size(values: np.ndarray) -> float:
    """Returns the root of the number of pixels that pass the threshold."""
    return math.sqrt((values >= EFFECTIVE * values.max()).sum())


def measured_size(values: np.ndarray) -> int:
    """Returns the longer side of the box around all pixels with a gradient."""
    return max(int(np.ptp(places)) + 1 for places in np.nonzero(values))


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the sizes by network and seed, and the map of the course's CNN for one seed."""
    sizes = {}
    for name, layers in NETWORKS.items():
        maps = [np.asarray(gradient_map(layers, seed)) for seed in seeds]
        sizes[name] = {
            "theory": theory(layers),
            "measured": [measured_size(values) for values in maps],
            "effective": [effective_size(values) for values in maps],
            "predicted": effective_size(spread_evenly(layers)),
        }
    edge = (SIZE - CROP) // 2
    crop = np.asarray(gradient_map(NETWORKS[COURSE], seeds[0]))[
        edge : edge + CROP, edge : edge + CROP
    ]
    return {"sizes": sizes, "map": crop.round(4).tolist()}


def verdict(results: Results) -> Verdict:
    """Holds if every measured size is that of the theory, also that of the control."""
    holds = all(set(size["measured"]) == {size["theory"]} for size in results["sizes"].values())
    deep, course = (results["sizes"][name] for name in (f"{DEPTHS[-1]} conv", COURSE))
    reason = (
        f"The measured field {'is' if holds else 'is not always'} that of the theory: "
        f"{course['theory']} pixels wide for the course's CNN, {deep['theory']} for "
        f"{DEPTHS[-1]} convolutions. The effective size is "
        f"{statistics.median(course['effective']):.1f} and "
        f"{statistics.median(deep['effective']):.1f} pixels (medians)."
    )
    return Verdict("holds" if holds else "does not hold here", reason)


def draw(results: Results):
    """Draws the map of the course's CNN with its field, and the sizes by depth."""
    figure = make_figure(2, width=3.8, height=3.4)
    image, lines = figure.axes
    image.imshow(np.sqrt(results["map"]), cmap="viridis")
    field = results["sizes"][COURSE]["theory"]
    rows = np.nonzero(np.array(results["map"]))[0]
    start = rows.min() - 0.5
    image.add_patch(_square(start, field, COLORS[1]))
    image.set(title="the course's CNN", xticks=[], yticks=[])
    image.grid(visible=False)
    sizes = [results["sizes"][f"{depth} conv"] for depth in DEPTHS]
    lines.plot(DEPTHS, [s["theory"] for s in sizes], "-", linewidth=6, alpha=0.4, label="theory")
    for name in ("measured", "effective"):
        draw_range(lines, DEPTHS, list(zip(*(s[name] for s in sizes), strict=True)), name)
    predicted = [s["predicted"] for s in sizes]
    lines.plot(DEPTHS, predicted, ":", color=COLORS[3], label="effective, predicted")
    lines.set(xlabel="convolutions of 3 x 3", ylabel="size of the field (pixels)", xticks=DEPTHS)
    lines.legend(fontsize=8)
    return figure


def _square(start: float, side: int, color: str):
    from matplotlib.patches import Rectangle

    return Rectangle((start, start), side, side, fill=False, edgecolor=color, linewidth=2)

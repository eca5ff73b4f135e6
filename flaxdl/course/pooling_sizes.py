"""Does max pooling halve the height and width of an image?

The course comments `nn.MaxPool2d(2)` with "halves spatial dims". The experiment pools images of
12 sizes from 8 to 65 pixels. An odd row or column at the end has no partner and is dropped.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from flaxdl.course.experiment import COLORS, Results, Verdict, make_figure
from flaxdl.layers import max_pool

CLAIM = "Max pooling with windows of 2 x 2 halves the spatial size."
EXPECTED = "exact; odd sizes are rounded down and lose their last row and column"
SEEDS = 1

SIZES = (8, 9, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the pooled size by size, and whether the last row of the image has any influence."""
    pooled, last_row_matters = {}, {}
    for size in SIZES:
        image = jnp.zeros((1, size, size, 1))
        output = max_pool(image, 2)
        changed = max_pool(image.at[:, -1].set(1.0), 2)
        pooled[str(size)] = output.shape[1]
        last_row_matters[str(size)] = bool(jnp.any(changed != output))
    return {"pooled": pooled, "last_row_matters": last_row_matters}


def verdict(results: Results) -> Verdict:
    """Exact if each size is halved, and the last row is lost for all odd sizes and no even one."""
    halved = all(pooled == int(size) // 2 for size, pooled in results["pooled"].items())
    lost = [int(size) for size, matters in results["last_row_matters"].items() if not matters]
    if not halved or lost != [size for size in SIZES if size % 2]:
        return Verdict("does not hold here", "Some sizes are not halved.")
    return Verdict(
        "exact",
        f"All {len(SIZES) - len(lost)} even sizes are halved; the {len(lost)} odd sizes are "
        "halved, rounded down, and their last row has no influence.",
    )


def draw(results: Results):
    """Draws the pooled size by size."""
    figure = make_figure()
    (axes,) = figure.axes
    for odd, label in ((0, "even"), (1, "odd: the last row is lost")):
        sizes = [size for size in SIZES if size % 2 == odd]
        pooled = [results["pooled"][str(size)] for size in sizes]
        axes.plot(sizes, pooled, "o" if odd else "s", color=COLORS[odd], label=label)
    axes.set(xlabel="size of the image (pixels)", ylabel="pooled size (pixels)")
    axes.legend()
    return figure

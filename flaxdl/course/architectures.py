"""The cost of the famous architectures, and their accuracy.

The experiment builds each network without computing anything: only shapes are needed to count the
parameters, and the multiply-adds for one image. It compares both with the published numbers. The
accuracies on ImageNet are not measured here; they are those that torchvision publishes with the
weights that flaxdl loads, trained with the first recipe of each network.

LeNet-5 is from 1998 and has no accuracy on ImageNet; it reads digits of 32 x 32 pixels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from flaxdl import models
from flaxdl.analysis.layers import inspect
from flaxdl.course.experiment import COLORS, Results, Verdict, make_figure
from flaxdl.weights.hub import PRETRAINED

CLAIM = "The famous architectures are LeNet (1998), AlexNet (2012), VGG and ResNet (2015)."
EXPECTED = "exact"
SEEDS = 1

# Published parameters, and billions of multiply-adds for one image (torchvision's documentation).
PUBLISHED = {
    "LeNet5": (61_706, None),
    "AlexNet": (61_100_840, 0.71),
    "VGG11": (132_863_336, 7.61),
    "VGG13": (133_047_848, 11.31),
    "VGG16": (138_357_544, 15.47),
    "VGG19": (143_667_240, 19.63),
    "ResNet18": (11_689_512, 1.81),
    "ResNet34": (21_797_672, 3.66),
    "ResNet50": (25_557_032, 4.09),
    "ResNet101": (44_549_160, 7.80),
    "ResNet152": (60_192_808, 11.51),
}
FAMILIES = {"AlexNet": "o", "VGG": "s", "ResNet": "^"}
ROUNDING = 0.01


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns parameters, multiply-adds (billions) and published accuracy (percent) by network."""
    found = {}
    for name in PUBLISHED:
        size, channels, classes = (32, 1, 10) if name == "LeNet5" else (224, 3, 1000)
        image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
        layers = inspect(getattr(models, name)(num_classes=classes), image)
        weights = PRETRAINED.get(name.lower())
        found[name] = {
            "parameters": sum(layer.parameters for layer in layers),
            "multiply_adds": sum(layer.flops for layer in layers) / 2e9,
            "accuracy": None if weights is None else weights.accuracy,
        }
    return {"networks": found}


def verdict(results: Results) -> Verdict:
    """Exact if all parameters are as published, and the multiply-adds to rounding."""
    found = results["networks"]
    same = [name for name, (count, _) in PUBLISHED.items() if found[name]["parameters"] == count]
    near = [
        abs(found[name]["multiply_adds"] / cost - 1) <= ROUNDING
        for name, (_, cost) in PUBLISHED.items()
        if cost is not None
    ]
    costs = [
        f"{name} has {found[name]['parameters'] / 1e6:.1f} million parameters, needs "
        f"{found[name]['multiply_adds']:.1f} billion multiply-adds for an image and reaches "
        f"{found[name]['accuracy']:.1f} %"
        for name in ("VGG16", "ResNet50")
    ]
    reason = (
        f"{len(same)} of {len(PUBLISHED)} networks have exactly the published number of "
        f"parameters. {'; '.join(costs)}."
    )
    exact = len(same) == len(PUBLISHED) and all(near)
    return Verdict("exact" if exact else "does not hold here", reason)


def draw(results: Results):
    """Draws accuracy by multiply-adds; the area of a point is the number of parameters."""
    figure = make_figure(width=5.5, height=3.6)
    (axes,) = figure.axes
    for color, (family, marker) in zip(COLORS, FAMILIES.items(), strict=False):
        networks = {n: x for n, x in results["networks"].items() if n.startswith(family)}
        costs = [one["multiply_adds"] for one in networks.values()]
        accuracies = [one["accuracy"] for one in networks.values()]
        areas = [one["parameters"] / 6e5 for one in networks.values()]
        axes.plot(costs, accuracies, color=color, alpha=0.5, linewidth=1)
        axes.scatter(costs, accuracies, s=areas, color=color, marker=marker, alpha=0.6)
        for name, cost, accuracy in zip(networks, costs, accuracies, strict=True):
            depth = name.removeprefix(family)
            label = f"{family}-{depth}".rstrip("-") if cost == costs[0] else depth
            below = family == "VGG"
            axes.annotate(
                label,
                (cost, accuracy),
                xytext=(0, -16 if below else 9),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    axes.set(xscale="log", xlim=(0.5, 33), ylim=(53, 82))
    axes.set_xticks((0.7, 2, 5, 10, 20), ("0.7", "2", "5", "10", "20"))
    axes.set_xticks([], minor=True)
    axes.set(xlabel="billions of multiply-adds for an image", ylabel="top-1 accuracy (%)")
    axes.set_title("ImageNet; area of a point: number of parameters", fontsize=9)
    return figure

"""Why slide a small filter, instead of connecting every neuron to every input?

The first half counts parameters and multiply-adds by the size of the image, without computing
anything: for the course's CNN; for the same units, each connected to all values of the layer below;
and for a multilayer perceptron (MLP) with only 256 units.

The second half trains an MLP and two small CNNs on handwritten digits in the middle of an image,
and tests them on digits that are shifted by a few pixels. A filter that slides finds the same
stroke elsewhere; a neuron that is connected to every pixel has a weight of its own for each place.
As a control, the same networks learn from shifted digits, so that there is nothing left to gain.
"""

import itertools
from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.analysis.layers import inspect
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
from flaxdl.course.training import (
    Data,
    Splits,
    Tuned,
    draw_batches,
    fit,
    in_parallel,
    load_digits,
    test_accuracy,
    tuned,
)
from flaxdl.layers import Linear, max_pool
from flaxdl.models import SimpleCNN

CLAIM = "Connecting every neuron to every input is too expensive for images; CNNs slide a filter."
EXPECTED = "holds"
SEEDS = 5

SIDES = (8, 16, 32, 64, 128, 224)
SIZE, SHIFTS = 16, (0, 1, 2, 3)
TRAINED = ("centered", "shifted")
RATES = (3e-3, 1e-2)
FACTOR = 100  # of parameters and of multiply-adds, at the largest size
SHIFT, MARGIN = 2, 0.1  # pixels; accuracy


class Dense(nn.Module):
    """Fully connected layers with these numbers of units, and a last one for ten classes."""

    units: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, ...] to logits [B, 10]."""
        x = x.reshape(len(x), -1)
        for number, units in enumerate(self.units):
            x = nn.relu(Linear(units, name=f"hidden{number}")(x))
        return Linear(10, name="fc")(x)


class Filters(nn.Module):
    """Two convolutions with pooling, and a linear layer for all positions or for their mean."""

    average: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W] to logits [B, 10]."""
        x = x[..., None]
        for number, channels in enumerate((8, 32)):
            x = nn.relu(Linear(channels, name=f"conv{number}")(patches(x)))
            x = max_pool(x, 2)
        x = x.mean((1, 2)) if self.average else x.reshape(len(x), -1)
        return Linear(10, name="fc")(x)


MODELS = {"MLP": Dense((128,)), "CNN": Filters(False), "CNN, averaged": Filters(True)}


def costs(side: int) -> dict[str, dict[str, int]]:
    """Returns the parameters and multiply-adds for an image of this size, by network."""
    outputs = [(side // shrink) ** 2 * maps for shrink, maps in ((1, 32), (2, 64), (4, 128))]
    networks = {
        "same units, fully connected": Dense((*outputs, 256)),
        "MLP of 256 units": Dense((256,)),
        "CNN": SimpleCNN(),
    }
    found = {}
    for name, network in networks.items():
        rows = inspect(network, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
        found[name] = {
            "parameters": sum(row.parameters for row in rows),
            "multiply_adds": sum(row.flops for row in rows) // 2,
        }
    return found


def placed(data: Data, shifts: Sequence[tuple[int, int]]) -> Data:
    """Places each digit [8, 8] at these distances (down, right) from the middle of an image."""
    images, labels = data
    edge, paper = (SIZE - images.shape[1]) // 2, images.min()
    sides = [((edge + down, edge - down), (edge + right, edge - right)) for down, right in shifts]
    copies = [np.pad(images, ((0, 0), *side), constant_values=paper) for side in sides]
    return np.concatenate(copies), np.tile(labels, len(shifts))


def shifted(digits: Splits, trained: str, shift: int) -> Splits:
    """Returns digits in the middle, or at all distances of up to 3 pixels, and tests at `shift`."""
    places = [(0, 0)]
    if trained == "shifted":
        reach = range(-SHIFTS[-1], SHIFTS[-1] + 1)
        places = list(itertools.product(reach, reach))
    tests = sorted({(shift, 0), (-shift, 0), (0, shift), (0, -shift)})
    few = places[::24]  # a corner, the middle, and the opposite corner
    return Splits(
        placed(digits.train, places), placed(digits.validation, few), placed(digits.test, tests)
    )


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns costs by size of the image, and accuracies by training, model, shift and seed."""
    digits, steps = load_digits(), 50 if quick else 400
    found: dict = {"costs": [costs(side) for side in SIDES], "learning_rates": {}, "accuracy": {}}
    splits = {(t, shift): shifted(digits, t, shift) for t in TRAINED for shift in SHIFTS}

    def train(model, data, variables, key, rate):
        batches = draw_batches(key, len(data[1]), 32, steps)
        return fit(model, variables, optax.adam(rate), data, batches, key)

    def measure_one(case: tuple[str, str]) -> Tuned:
        data, model = splits[case[0], 0], MODELS[case[1]]
        return tuned(model, partial(train, model, data.train), RATES, seeds, data)

    cases = list(itertools.product(TRAINED, MODELS))
    for (trained, name), best in zip(cases, in_parallel(measure_one, cases), strict=True):
        found["learning_rates"].setdefault(trained, {})[name] = best.rate
        found["accuracy"].setdefault(trained, {})[name] = {
            str(shift): test_accuracy(MODELS[name], best.variables, splits[trained, shift])
            for shift in SHIFTS
        }
    return found


def losses(results: Results, trained: str, name: str) -> list[float]:
    """Returns, for each seed, the accuracy that is lost by the shift."""
    accuracy = results["accuracy"][trained][name]
    return [a - b for a, b in zip(accuracy["0"], accuracy[str(SHIFT)], strict=True)]


def suffers(results: Results, trained: str) -> bool:
    """Returns True if the MLP loses more accuracy than the CNN by the shift."""
    mlp, cnn = (losses(results, trained, name) for name in ("MLP", "CNN"))
    return is_larger([a - b for a, b in zip(mlp, cnn, strict=True)], MARGIN)


def verdict(results: Results) -> Verdict:
    """Holds if full connections cost 100 times as much and a shift hurts the CNN less."""
    dense, mlp, cnn = results["costs"][-1].values()
    ratios = [dense[cost] / cnn[cost] for cost in ("parameters", "multiply_adds")]
    points = [
        f"{100 * np.median(losses(results, trained, name)):.0f}"
        for trained in TRAINED
        for name in ("MLP", "CNN")
    ]
    reason = (
        f"At {SIDES[-1]} pixels, the same units fully connected need {ratios[0] / 1e6:.1f} million "
        f"times the parameters of the CNN and {ratios[1]:,.0f} times its multiply-adds; an MLP of "
        f"256 units needs {mlp['parameters'] / cnn['parameters']:.0f} times the parameters and "
        f"{mlp['multiply_adds'] / cnn['multiply_adds']:.2f} times the multiply-adds. By a shift of "
        f"{SHIFT} pixels, the MLP loses {points[0]} points of test accuracy and the CNN "
        f"{points[1]} (medians); trained on shifted digits, {points[2]} and {points[3]}."
    )
    if suffers(results, "shifted"):
        return Verdict("does not hold here", reason)
    parts = (min(ratios) >= FACTOR) + suffers(results, "centered")
    return Verdict(("does not hold here", "holds in part", "holds")[parts], reason)


def draw(results: Results):
    """Draws the costs by size of the image, and the accuracy by shift."""
    figure = make_figure(2, width=4.0, height=3.6)
    left, right = figure.axes
    for color, name in zip((COLORS[3], *COLORS), results["costs"][0], strict=False):
        for cost, style in (("multiply_adds", "--"), ("parameters", "-")):
            values = [by_network[name][cost] for by_network in results["costs"]]
            left.plot(SIDES, values, style, color=color, label=name if style == "-" else None)
    left.plot([], [], "--", color=INK, label="multiply-adds (dashed)")
    left.set(xscale="log", yscale="log", xlabel="side of the image (pixels)", ylim=(2e4, 1e17))
    left.set(ylabel="parameters, multiply-adds")
    left.set_xticks(SIDES, map(str, SIDES))
    left.minorticks_off()
    left.legend(fontsize=8, loc="upper left")
    for color, name in zip(COLORS, MODELS, strict=False):
        centered, control = (
            100 * np.transpose([results["accuracy"][t][name][str(shift)] for shift in SHIFTS])
            for t in TRAINED
        )
        draw_range(right, SHIFTS, centered.tolist(), name)
        right.plot(SHIFTS, np.median(control, 0), "--", color=color, linewidth=1)
    right.plot([], [], "--", color=INK, linewidth=1, label="trained on shifted digits")
    right.set(xlabel="shift of the test digits (pixels)", ylabel="test accuracy (%)")
    right.set(ylim=(0, 140), xticks=SHIFTS, yticks=range(0, 101, 20))
    right.legend(fontsize=8, loc="upper right", ncols=2)
    return figure

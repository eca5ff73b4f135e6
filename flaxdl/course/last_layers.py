"""Is it enough to fine-tune the last layers of a pretrained network?

The small CNN of `transfer` has learned printed letters, and is trained on 1 to 100 % of the
handwritten digits. Either everything is trained, or the last two layers and not the convolutions,
or the new classifier alone.

Training fewer layers is cheaper; the question is what it costs in accuracy. The control is a
network with random initial weights whose classifier alone is trained: it must not be enough there.
"""

import statistics
from collections.abc import Sequence

from flaxdl.course.experiment import (
    PILOT_SEEDS,
    Results,
    Verdict,
    draw_range,
    make_figure,
)
from flaxdl.course.pretrained_digits import FRACTIONS, STAGES, Arms, compare, pretrain

CLAIM = "On a smaller data set, it is enough to fine-tune the last few layers."
EXPECTED = "in part: with 1 % of the images, not with all"
SEEDS = 5

ARMS: Arms = {
    "everything": (True, STAGES),
    "last two layers": (True, STAGES[2:]),
    "classifier alone": (True, STAGES[3:]),
    "classifier, random base": (False, STAGES[3:]),
}
EVERYTHING, LAST, _, CONTROL = ARMS
CLOSE = 0.02  # of accuracy
SMALL = 2  # fractions that are a smaller data set: 1 % and 5 %


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the test accuracy by arm, fraction and seed, and the learning rates."""
    pretrained = pretrain((*PILOT_SEEDS, *seeds), 300 if quick else 2000)
    return compare("handwritten digits", ARMS, pretrained, seeds, 60 if quick else 300)


def shortfalls(results: Results, arm: str) -> list[float]:
    """Returns, for each fraction, the median over seeds of what an arm loses against everything."""
    of = results["accuracy"]
    return [
        statistics.median(most - value for most, value in zip(*columns, strict=True))
        for columns in zip(of[EVERYTHING], of[arm], strict=True)
    ]


def verdict(results: Results) -> Verdict:
    """Holds if the last two layers lose at most two points at every fraction.

    In part if they do so at 1 % and 5 %. A classifier on a random base must lose more there.
    """
    last, control = shortfalls(results, LAST), shortfalls(results, CONTROL)
    parts = [
        f"{100 * loss:.1f} with {100 * fraction:g} %"
        for loss, fraction in zip(last, FRACTIONS, strict=True)
    ]
    reason = (
        "Against training everything, the last two layers lose (points of accuracy, medians) "
        f"{', '.join(parts)} of the images; the classifier on a random base loses at least "
        f"{100 * min(control[:SMALL]):.1f} with 1 % and 5 %."
    )
    if max(last[:SMALL]) > CLOSE or min(control[:SMALL]) <= CLOSE:
        return Verdict("does not hold here", reason)
    return Verdict("holds" if max(last) <= CLOSE else "holds in part", reason)


def draw(results: Results):
    """Draws the test accuracy by fraction of the images."""
    figure = make_figure(width=5.0, height=3.4)
    percent = [100 * fraction for fraction in FRACTIONS]
    (axes,) = figure.axes
    for arm, by_fraction in results["accuracy"].items():
        values = [[100 * value for value in of_seed] for of_seed in zip(*by_fraction, strict=True)]
        draw_range(axes, percent, values, arm)
    axes.set(xscale="log", xlabel="training images (%)", ylabel="test accuracy (%)", ylim=(0, 103))
    axes.set_xticks(percent, [f"{value:g}" for value in percent])
    axes.minorticks_off()
    axes.legend(fontsize=9, loc="lower right")
    return figure

"""Does transfer learning reach 90 % of the performance with 1 % of the data?

A small CNN learns to tell apart 52 letters in 22 typefaces. Then its last layer is replaced, and
the whole network is trained on ten digits, with 1 to 100 % of their training images. The same
network with random initial weights is trained on the same images ("from scratch"). There are two
kinds of digits: printed in the same typefaces as the letters, and handwritten.

The performance to reach is that of the network trained from scratch on all images. The control is
the network trained from scratch on 1 %: if it reached 90 %, no transfer would be needed.
"""

import statistics
from collections.abc import Sequence

from flaxdl.course.experiment import (
    INK,
    PILOT_SEEDS,
    Results,
    Verdict,
    draw_range,
    is_larger,
    make_figure,
)
from flaxdl.course.pretrained_digits import FRACTIONS, STAGES, TARGETS, Arms, compare, pretrain

CLAIM = "Transfer learning often achieves 90 % of the performance with 1 % of the data."
EXPECTED = "in part: about 80 % with 1 % of the data, 95 % with 5 %"
SEEDS = 5

ARMS: Arms = {"from scratch": (False, STAGES), "pretrained": (True, STAGES)}
SCRATCH, PRETRAINED = ARMS
REACHED = 0.9


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns accuracies by target, arm, fraction and seed, and the learning rates."""
    pretrained = pretrain((*PILOT_SEEDS, *seeds), 300 if quick else 2000)
    steps = 60 if quick else 300
    return {target: compare(target, ARMS, pretrained, seeds, steps) for target in TARGETS}


def reached(results: Results, target: str, arm: str, place: int) -> list[float]:
    """Returns, for each seed, the ratio of an arm's accuracy to that from scratch on all images.

    Args:
        results: what `measure` returned.
        target: one of `TARGETS`.
        arm: one of `ARMS`.
        place: number of the fraction in `FRACTIONS`.
    """
    of = results[target]["accuracy"]
    return [part / whole for part, whole in zip(of[arm][place], of[SCRATCH][-1], strict=True)]


def verdict(results: Results) -> Verdict:
    """Holds if the pretrained network reaches 90 % with 1 % on both targets, in part if on one.

    A target on which the network from scratch reaches it with 1 % does not count.
    """

    def is_reached(target: str, arm: str) -> bool:
        return is_larger([ratio - REACHED for ratio in reached(results, target, arm, 0)], 0.0)

    parts = []
    for target in TARGETS:
        scratch, transferred = (
            100 * statistics.median(reached(results, target, arm, 0)) for arm in ARMS
        )
        parts.append(f"{transferred:.0f} % on {target} (from scratch: {scratch:.0f} %)")
    reason = (
        f"With 1 % of the images, the pretrained network reaches {' and '.join(parts)} of the "
        "accuracy from scratch on all images (medians)."
    )
    holds = [
        is_reached(target, PRETRAINED) and not is_reached(target, SCRATCH) for target in TARGETS
    ]
    if not any(holds):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if all(holds) else "holds in part", reason)


def draw(results: Results):
    """Draws the test accuracy by fraction of the images, a panel for each target."""
    figure = make_figure(2, width=3.6, height=3.0)
    percent = [100 * fraction for fraction in FRACTIONS]
    for axes, target in zip(figure.axes, TARGETS, strict=True):
        for arm in ARMS:
            by_seed = list(zip(*results[target]["accuracy"][arm], strict=True))
            values = [[100 * value for value in of_seed] for of_seed in by_seed]
            draw_range(axes, percent, values, arm)
        goal = REACHED * statistics.median(results[target]["accuracy"][SCRATCH][-1])
        axes.axhline(
            100 * goal, linestyle="--", linewidth=1, color=INK, label="90 % of scratch, 100 %"
        )
        axes.set(xscale="log", xlabel="training images (%)", title=target, ylim=(0, 103))
        axes.set_xticks(percent, [f"{value:g}" for value in percent])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("test accuracy (%)")
    figure.axes[0].legend(fontsize=8, loc="lower right")
    return figure

"""Do even LSTMs struggle with very long sequences?

The task is that of `selective_memory`: name the first of T + 1 symbols, after T others that mean
nothing, here up to 400. The LSTM starts with PyTorch's biases, or with biases that expect memories
of up to T steps ("chrono", Tallec and Ollivier, 2018), which is the best that is known about T.

Failure alone would not say that the length is the reason. So attention must name the symbol at
every T after as much training, and the LSTM at the shortest.
"""

import statistics
from collections.abc import Sequence

from flaxdl.course.experiment import COLORS, INK, Results, Verdict, is_larger, make_figure
from flaxdl.course.selective_memory import CHRONO, PYTORCH, SYMBOLS, accuracies
from flaxdl.layers import LSTM, MultiHeadAttention

CLAIM = "Even LSTMs struggle with very long sequences."
EXPECTED = "holds"
SEEDS = 5

SPANS = (10, 400)  # numbers T of symbols after the first
ARMS = ("LSTM", "LSTM, chrono", "attention")
MARGIN = 0.2  # of accuracy; chance is 0.25
SUCCESS = 0.9


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the test accuracy by arm, span and seed."""
    accuracy = {arm: {} for arm in ARMS}
    for span in (SPANS[0], 50) if quick else SPANS:
        of_lstm = accuracies(LSTM, (PYTORCH, CHRONO), (span,), seeds, quick=quick)
        of_attention = accuracies(MultiHeadAttention, (PYTORCH,), (span,), seeds, quick=quick)
        for arm, found in zip(ARMS, [*of_lstm, *of_attention], strict=True):
            accuracy[arm][str(span)] = found[0].tolist()
    return {"accuracy": accuracy}


def struggles(results: Results, arm: str, span: str) -> bool:
    """Returns True if attention is more accurate than an arm by the margin."""
    of = results["accuracy"]
    pairs = zip(of["attention"][span], of[arm][span], strict=True)
    return is_larger([attention - value for attention, value in pairs], MARGIN)


def verdict(results: Results) -> Verdict:
    """Holds if both LSTMs struggle with the longest span; in part if only that of PyTorch does.

    Attention must succeed, and the LSTM with chrono biases must not struggle with the shortest.
    """
    of = results["accuracy"]
    spans = list(of["attention"])
    short, long = spans[0], spans[-1]
    numbers = ", ".join(f"{arm}: {100 * statistics.median(of[arm][long]):.0f} %" for arm in ARMS)
    reason = f"After {long} other symbols, the first one is named by {numbers} (chance: 25 %)."
    plain, chrono, attention = ARMS
    if statistics.median(of[attention][long]) < SUCCESS or struggles(results, chrono, short):
        return Verdict("does not hold here", reason)
    if not struggles(results, plain, long):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if struggles(results, chrono, long) else "holds in part", reason)


def draw(results: Results):
    """Draws the accuracy after each span, a point for each seed."""
    figure = make_figure(width=5.0)
    (axes,) = figure.axes
    spans = list(results["accuracy"]["attention"])
    for number, arm in enumerate(ARMS):
        for place, span in enumerate(spans):
            values = [100 * value for value in results["accuracy"][arm][span]]
            x, color = place + 0.25 * (number - 1), COLORS[number]
            label = arm if place == 0 else None
            axes.bar(x, statistics.median(values), 0.22, color=color, alpha=0.5, label=label)
            axes.plot([x] * len(values), values, "o", color=color, markersize=4)
    axes.axhline(100 / SYMBOLS, linestyle="--", linewidth=1, color=INK, label="chance")
    axes.set_xticks(range(len(spans)), [f"after {span} symbols" for span in spans])
    axes.set(ylabel="test accuracy (%)", ylim=(0, 104))
    axes.set_axisbelow(True)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=9)
    return figure

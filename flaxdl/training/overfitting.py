"""Check that a model can overfit a few batches, as evidence that it can learn at all."""

from collections.abc import Sequence
from typing import Any

_ACCURACY = 0.999  # not 1: with dropout, a few predictions stay wrong
# Fraction of the first loss, since accuracy can remain low: no model predicts every token of texts
# that begin alike.
_LOSS = 0.01


def has_overfit(lines: Sequence[dict[str, Any]], batches: int) -> bool:
    """Returns whether the model overfits all batches.

    A line of metrics indicates overfitting if the accuracy is at least 0.999, or if the loss has
    fallen to 1% of its first value. The latest lines that do must cover at least `batches` steps.

    Args:
        lines: lines of training metrics so far, with means over the steps since the previous line.
        batches: number of batches to overfit; the steps cycle through them.
    """
    good_since = lines[-1]["step"] if lines else 0
    for number, line in reversed(list(enumerate(lines))):
        if not _is_good(line, first=lines[0]):
            break
        good_since = lines[number - 1]["step"] if number else 0
    return bool(lines) and lines[-1]["step"] - good_since >= batches


def verdict(lines: Sequence[dict[str, Any]], batches: int) -> str:
    """Describes whether the model overfits the batches, with the last training metrics."""
    last = lines[-1]
    figures = [
        f"{name} {'not finite' if last[name] is None else format(last[name], '.4g')}"
        for name in ("accuracy", "loss")
        if name in last
    ]
    which = "the batch" if batches == 1 else f"the {batches} batches"
    reached = f"training {' and '.join(figures)} at step {last['step']:,}"
    if has_overfit(lines, batches):
        return f"overfit {which}: {reached}; the model can learn"
    return (
        f"did NOT overfit {which}: {reached}. Try more --epochs, another "
        "--optimizer.learning-rate, or a model without dropout; otherwise look for a bug in the "
        "model, the loss or the labels"
    )


def _is_good(line: dict[str, Any], *, first: dict[str, Any]) -> bool:
    accuracy, loss, start = line.get("accuracy"), line["loss"], first["loss"]
    if accuracy is not None and accuracy >= _ACCURACY:
        return True
    return None not in (loss, start) and 0 <= loss <= _LOSS * start

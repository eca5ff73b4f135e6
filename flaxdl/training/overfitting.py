"""Whether a model has overfitted a few batches, which shows that it can learn at all."""

from collections.abc import Sequence
from typing import Any

_ACCURACY = 0.999  # dropout makes some mistakes to the end
_LOSS = 0.01  # of the first loss; of texts whose beginnings are alike, no model gets all tokens


def is_learned(lines: Sequence[dict[str, Any]], batches: int) -> bool:
    """Returns whether accuracy has risen to 1, or loss fallen to a hundredth, on all batches.

    Args:
        lines: the lines of training metrics so far, each the mean since the one before.
        batches: the number of batches that are trained on in turn.
    """
    good_since = lines[-1]["step"] if lines else 0
    for number, line in reversed(list(enumerate(lines))):
        if not _is_good(line, first=lines[0]):
            break
        good_since = lines[number - 1]["step"] if number else 0
    return bool(lines) and lines[-1]["step"] - good_since >= batches


def verdict(lines: Sequence[dict[str, Any]], batches: int) -> str:
    """Says whether the model can learn, with the figures of the last line of training metrics."""
    last = lines[-1]
    figures = [
        f"{name} {'not finite' if last[name] is None else format(last[name], '.4g')}"
        for name in ("accuracy", "loss")
        if name in last
    ]
    which = "the batch" if batches == 1 else f"the {batches} batches"
    reached = f"training {' and '.join(figures)} at step {last['step']:,}"
    if is_learned(lines, batches):
        return f"overfit {which}: {reached}; the model can learn"
    return (
        f"did NOT overfit {which}: {reached}. Try more --epochs, another "
        "--optimizer.learning-rate, or a model without dropout; otherwise look for a mistake in "
        "the model, the loss or the labels"
    )


def _is_good(line: dict[str, Any], *, first: dict[str, Any]) -> bool:
    accuracy, loss, start = line.get("accuracy"), line["loss"], first["loss"]
    if accuracy is not None and accuracy >= _ACCURACY:
        return True
    return None not in (loss, start) and 0 <= loss <= _LOSS * start

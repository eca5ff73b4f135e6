"""Predictions of a multi-label classifier for the report: scores by class, and the worst mistakes.

N: evaluated examples, K: classes, M: mistakes to show.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxdl.data import Dataset
from flaxdl.report import page
from flaxdl.report.evaluated import evaluated
from flaxdl.report.scores import ClassScore
from flaxdl.report.shown_examples import KeptExamples, example_names, shown_inputs
from flaxdl.runs.restored import RestoredRun
from flaxdl.training.tasks import MultiLabelClassification, Task
from flaxdl.training.tasks.scores import ranking_score

_MAX_SHOWN = 24  # mistakes


@dataclass(frozen=True)
class LabelSets:
    """Predictions of a multi-label classifier, and the inputs of its worst mistakes."""

    step: int
    """Step of the checkpoint."""
    split: str
    available: int
    """Number of examples in the split."""
    thresholds: np.ndarray  # float32[K]
    probability: np.ndarray  # float32[N, K]
    actual: np.ndarray  # int8[N, K]
    """1 for the classes of an example, 0 for others, -1 if unknown."""
    index: np.ndarray  # int32[N]
    """Position of each example in the split."""
    names: np.ndarray  # texts [N]
    """File names of the examples; empty if examples are not files."""
    shown: np.ndarray  # int32[M]
    """Indices (into the N predictions) of the mistakes to show, most confident first."""
    inputs: np.ndarray  # uint8[M, H, W] or [M, H, W, 3], or texts [M]
    """Inputs of these mistakes; empty if inputs are neither images nor texts."""

    @property
    def predicted(self) -> np.ndarray:
        """True for each predicted class, bool[N, K]."""
        return self.probability >= self.thresholds

    @property
    def is_wrong(self) -> np.ndarray:
        """True where the prediction of a known entry is wrong, bool[N, K]."""
        return (self.actual >= 0) & (self.predicted != (self.actual > 0))

    def has_thresholds_of(self, task: Task) -> bool:
        """Returns whether the thresholds are those of a task, which tuning may have changed."""
        if not isinstance(task, MultiLabelClassification):
            return False
        expected = task.threshold_array(jnp.zeros((1, self.probability.shape[1]), jnp.float32))
        return np.array_equal(self.thresholds, expected)


def compute(run: RestoredRun, split: str, dataset: Dataset) -> LabelSets:
    """Evaluates a transformed split, or evenly spaced examples of a large one."""
    task = run.config.task
    assert isinstance(task, MultiLabelClassification)
    thresholds = np.zeros(0, np.float32)
    found: list[tuple[np.ndarray, ...]] = []  # index, label and probability of each batch
    mistakes = KeptExamples(_MAX_SHOWN)
    with closing(evaluated(run, dataset, lambda logits, _: task.probabilities(logits))) as batches:
        for index, batch, probability in batches:
            thresholds, label = np.asarray(task.threshold_array(probability)), batch["label"]
            is_wrong = (probability >= thresholds) != (label > 0.5)
            errors = np.abs(probability - label) * (is_wrong & ~np.isnan(label))
            worst = np.max(np.nan_to_num(errors), axis=1)
            mistakes.add(np.flatnonzero(worst), -worst, batch["inputs"])
            found.append((index, label, probability))
    index, label, probability = (np.concatenate(x) for x in zip(*found, strict=True))
    return LabelSets(
        step=int(run.state.step),
        split=split,
        available=len(dataset),
        thresholds=thresholds.astype(np.float32),
        probability=probability.astype(np.float32),
        actual=np.nan_to_num(label, nan=-1).astype(np.int8),
        index=index.astype(np.int32),
        names=example_names(dataset, index),
        shown=mistakes.numbers,
        inputs=shown_inputs(run, mistakes.inputs),
    )


def section(found: LabelSets, classes: Sequence[str]) -> page.LabelSets:
    """Returns the section of the report about a multi-label classifier."""
    rows = _rows(found, classes)
    is_small = len(classes) <= page.MAX_CLASSES
    return page.LabelSets(
        split=found.split,
        evaluated=len(found.actual),
        available=found.available,
        rows=rows if is_small else sorted(rows, key=_by_f1),
        unknown=int(np.sum(found.actual < 0)),
        wrong=int(np.sum(found.is_wrong.any(1))),
        mistakes=[_mistake(found, place, classes) for place in range(len(found.shown))],
    )


def _by_f1(row: page.LabelRow) -> tuple[bool, float]:
    """Returns a key that puts classes without an F1 score last."""
    return row.score.f1 is None, row.score.f1 or 0


def _rows(found: LabelSets, classes: Sequence[str]) -> list[page.LabelRow]:
    is_class, is_known = found.actual > 0, found.actual >= 0
    predicted = found.predicted & is_known
    rows = []
    for number, name in enumerate(classes):
        one = slice(number, number + 1)
        correct = int(np.sum(predicted[:, one] & is_class[:, one]))
        guesses, examples = int(np.sum(predicted[:, one])), int(np.sum(is_class[:, one]))
        score = ClassScore(
            name,
            examples,
            precision=correct / guesses if guesses else None,
            recall=correct / examples if examples else None,
            f1=2 * correct / (guesses + examples) if guesses + examples else None,
        )
        columns = (x[:, one] for x in (found.probability, is_class, is_known))
        auroc = ranking_score("auroc", *columns)
        threshold = float(found.thresholds[number])
        rows.append(page.LabelRow(score, threshold, None if np.isnan(auroc) else auroc))
    return rows


def _mistake(found: LabelSets, place: int, classes: Sequence[str]) -> page.LabelMistake:
    """Returns one of the mistakes to show."""
    number = found.shown[place]
    actual, probability = found.actual[number], found.probability[number]
    is_wrong, order = found.is_wrong[number], np.argsort(-probability, kind="stable")

    def named(chosen: np.ndarray) -> list[tuple[str, float]]:
        return [(classes[int(i)], float(probability[i])) for i in order if chosen[i]]

    shown: dict[str, Any] = {}
    if place < len(found.inputs):
        one = found.inputs[place]
        is_text = found.inputs.dtype.kind == "U"
        shown = {"text": str(one)} if is_text else {"picture": page.data_uri(one)}
    name = f"{found.split} example {found.index[number]:,}"
    return page.LabelMistake(
        name=str(found.names[number]) if len(found.names) else name,
        missed=named(is_wrong & (actual > 0)),
        wrong=named(is_wrong & (actual == 0)),
        correct=named(~is_wrong & (actual > 0)),
        **shown,
    )

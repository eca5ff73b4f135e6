"""Numbers that a regression model predicts for held-out data, for the report.

N: evaluated examples, K: targets, M: examples to show.
"""

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from flaxdl.data import Dataset
from flaxdl.report import charts, page
from flaxdl.report.evaluated import evaluated
from flaxdl.report.shown_examples import KeptExamples, example_names, shown_inputs
from flaxdl.runs.restored import RestoredRun
from flaxdl.training.tasks import Regression
from flaxdl.training.tasks.regression import target_scores

_MAX_SHOWN = 12  # examples with the largest errors
_MAX_DRAWN = 4  # targets


@dataclass(frozen=True)
class Estimates:
    """True and predicted values in the targets' own units, and the inputs with large errors."""

    step: int
    """Step of the checkpoint."""
    split: str
    available: int
    """Number of examples in the split."""
    targets: np.ndarray  # texts [K]
    """Names of the targets."""
    std: np.ndarray  # float64[K]
    """Standard deviation of each target, the unit in which errors are compared."""
    label: np.ndarray  # float64[N, K]
    """True values; NaN where one is missing."""
    estimate: np.ndarray  # float64[N, K]
    shown: np.ndarray  # int32[M]
    """Indices (into the N examples) of those with the largest errors, largest first."""
    inputs: np.ndarray  # uint8[M, H, W] or [M, H, W, 3], or texts [M]
    """Inputs of these examples; empty if inputs are neither images nor texts."""
    index: np.ndarray  # int32[N]
    """Position of each example in the split."""
    names: np.ndarray  # texts [N]
    """File names of the examples; empty if examples are not files."""


def compute(run: RestoredRun, split: str, dataset: Dataset) -> Estimates:
    """Evaluates a transformed split, or evenly spaced examples of a large one."""
    task = run.config.task
    assert isinstance(task, Regression)
    found: list[tuple[np.ndarray, ...]] = []  # index, label and estimate of each batch
    worst = KeptExamples(_MAX_SHOWN)
    with closing(evaluated(run, dataset, lambda outputs, _: outputs)) as batches:
        for index, batch, outputs in batches:
            estimate = task.in_own_units(outputs)
            label = np.asarray(batch["label"], np.float64).reshape(estimate.shape)
            error = np.abs(estimate - label) / np.array(task.std)
            largest = np.max(error, axis=1, where=~np.isnan(error), initial=-1)
            worst.add(np.flatnonzero(largest >= 0), -largest, batch["inputs"])
            found.append((index, label, estimate))
    index, label, estimate = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Estimates(
        step=int(run.state.step),
        split=split,
        available=len(dataset),
        targets=np.array(task.target_names),
        std=np.array(task.std),
        label=label,
        estimate=estimate,
        shown=worst.numbers,
        inputs=shown_inputs(run, worst.inputs),
        index=index.astype(np.int32),
        names=example_names(dataset, index),
    )


def section(found: Estimates) -> page.Estimates:
    """Returns the section of the report about the predictions."""
    rows, drawn = [], []
    for k, name in enumerate(map(str, found.targets)):
        is_known = ~np.isnan(found.label[:, k])
        label, estimate = found.label[is_known, k], found.estimate[is_known, k]
        figures = {**target_scores(estimate, label, std=1.0), "bias": float("nan")}
        if len(label):
            figures["bias"] = float(np.mean(estimate - label))
        texts = ["–" if np.isnan(x) else charts.number(x) for x in figures.values()]
        rows.append((name, [f"{len(label):,}", *texts]))
        if len(label) and len(drawn) < _MAX_DRAWN:
            scatter = charts.scatter_chart(f"Predicted over true {name}", label, estimate)
            drawn.append([scatter, charts.histogram_chart(f"Errors of {name}", estimate - label)])
    return page.Estimates(
        split=found.split,
        evaluated=len(found.label),
        available=found.available,
        rows=rows,
        charts=drawn,
        worst=[_example(found, int(number), place) for place, number in enumerate(found.shown)],
    )


def _example(found: Estimates, number: int, place: int) -> page.Estimated:
    """Returns the example with this number, which has this place in the inputs.

    Its targets are those with the largest errors, largest first.
    """
    shown: dict[str, Any] = {}
    if place < len(found.inputs):
        one = found.inputs[place]
        is_text = found.inputs.dtype.kind == "U"
        shown = {"text": str(one)} if is_text else {"picture": page.data_uri(one)}
    error = np.abs(found.estimate[number] - found.label[number]) / found.std
    largest = np.argsort(-error, kind="stable")[: np.sum(~np.isnan(error))]  # NaN comes last
    position = f"{found.split} example {found.index[number]:,}"
    return page.Estimated(
        name=str(found.names[number]) if len(found.names) else position,
        values=[
            (
                str(found.targets[k]),
                charts.number(found.label[number, k]),
                charts.number(found.estimate[number, k]),
            )
            for k in largest[:_MAX_DRAWN]
        ],
        **shown,
    )

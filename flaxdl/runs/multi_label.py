"""Prediction of several labels for an example, by multi-label classifiers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from flaxdl.runs.restored import RestoredRun
from flaxdl.training.distributed.mesh import replicated
from flaxdl.training.tasks import MultiLabelClassification


@dataclass(frozen=True)
class MultiLabelPrediction:
    """Prediction of a multi-label classifier for one input."""

    item: str
    """File name or text."""
    labels: tuple[str, ...]
    """Names of the classes with a probability of at least their threshold, in descending order of
    probability; may be empty."""
    probabilities: dict[str, float]
    """Probability of each class by its name, in descending order; their sum is not 1."""


def make_labeler(
    run: RestoredRun,
) -> Callable[[Sequence[str], Mapping[str, np.ndarray], int], list[MultiLabelPrediction]]:
    """Returns a function that maps items and a padded batch to predictions.

    Args:
        run: restored run with the task `MultiLabelClassification`.
    """
    task, classes = run.config.task, run.classes
    assert isinstance(task, MultiLabelClassification)
    assert classes is not None, "the task requires names"

    @partial(jax.jit, out_shardings=replicated(run.mesh))
    def classify(state: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        logits = run.inference.predict(state, batch)
        return task.probabilities(logits), task.predicted(logits)

    def label_items(
        items: Sequence[str], batch: Mapping[str, np.ndarray], first: int
    ) -> list[MultiLabelPrediction]:
        probabilities, predicted = map(np.asarray, classify(run.state, run.put(batch)))
        found = []
        for item, row, is_predicted in zip(items, probabilities, predicted, strict=False):
            order = np.argsort(-row, kind="stable")
            labels = tuple(classes[i] for i in order if is_predicted[i])
            by_name = {classes[i]: float(row[i]) for i in order}
            found.append(MultiLabelPrediction(item, labels, by_name))
        return found

    return label_items

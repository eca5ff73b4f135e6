"""Fitting of a run's task to its training split, and the record of it in `config.json`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from flaxdl.config import setting_names
from flaxdl.data import Splits
from flaxdl.errors import UserError
from flaxdl.runs.config_json import from_json, to_json
from flaxdl.training.tasks import Task


def fit_task(task: Task, splits: Splits) -> Task:
    """Returns the task fitted to the raw training split, see `Task.fit`.

    Examples of weight 0 are left out if the weights are known without reading every example.
    """
    if type(task).fit is Task.fit:
        return task
    labels, weights = splits.train.labels(), splits.train.weights()
    if labels is not None and weights is not None:
        labels = labels[np.asarray(weights, np.float32) > 0]  # as in batches
    return task.fit(labels, splits.classes)


def fitted_fields(task: Task, fitted: Task) -> dict[str, Any]:
    """Returns the fields of a task that fitting has changed, as JSON-compatible values."""
    return {
        name: to_json(getattr(fitted, name), f"task.{name}")
        for name in setting_names(task)
        if getattr(fitted, name) != getattr(task, name)
    }


def with_fitted_fields(
    task: Task, fields: Mapping[str, Any], where: str = "config.json is inconsistent: data.task"
) -> Task:
    """Returns the fitted task, given the result of `fitted_fields`.

    Args:
        task: task of the config.
        fields: fields that fitting has changed, as JSON-compatible values.
        where: origin of the fields, for messages.

    Raises:
        UserError: if the task does not accept the fields.
    """
    try:
        return replace(task, **{name: from_json(value) for name, value in fields.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error

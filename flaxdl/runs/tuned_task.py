"""Record of a run's tuned task in `tuned_task.json`, see `Task.tuned`.

What is tuned belongs to a checkpoint, and is used only with it.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from flaxdl.errors import SaveError, UserError
from flaxdl.filesystem.atomic import atomic_write
from flaxdl.runs.fitted_task import with_fitted_fields
from flaxdl.runs.plan import Plan

P = TypeVar("P", bound=Plan)


def with_stored_task(plan: P, path: Path, step: int) -> P:
    """Returns a plan with the task that was tuned with the checkpoint of a step, if there is one.

    Args:
        plan: plan of the run, with the task of its config.
        path: path of `tuned_task.json`.
        step: step of the checkpoint.

    Raises:
        UserError: if the file cannot be read, or if the task does not accept the fields.
    """
    if not plan.config.task.needs_tuning:
        return plan
    return with_tuned_task(plan, read_tuned_fields(path, step) or {})


def with_tuned_task(plan: P, fields: Mapping[str, Any]) -> P:
    """Returns a plan with the tuned task, given the fields that tuning changed.

    Without any, the plan itself is returned.

    Raises:
        UserError: if the task does not accept the fields.
    """
    if not fields:
        return plan
    task = with_fitted_fields(plan.config.task, fields, where="tuned_task.json is inconsistent")
    return replace(plan, config=replace(plan.config, task=task))


def read_tuned_fields(path: Path, step: int) -> dict[str, Any] | None:
    """Returns the fields that were tuned with the checkpoint of a step; None without a record.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        record = json.loads(path.read_text())
        found, fields = record["step"], dict(record["task"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read: {error!r}; delete it, and run the training again to write it"
        ) from error
    return fields if found == step else None


def write_tuned_fields(path: Path, step: int, fields: Mapping[str, Any]) -> None:
    """Writes the fields that were tuned with the checkpoint of a step.

    Raises:
        SaveError: if the file cannot be written.
    """
    try:
        with atomic_write(path) as unfinished:
            unfinished.write_text(json.dumps({"step": step, "task": fields}, indent=2) + "\n")
    except OSError as error:
        raise SaveError(f"{path} cannot be written: {error.strerror}") from error

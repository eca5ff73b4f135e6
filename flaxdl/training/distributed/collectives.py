"""Collective functions that share values and errors among the processes of a run.

All processes must call them in the same order. Values are sent as JSON; with one process, nothing
is sent.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from flaxdl.errors import SaveError, UserError
from flaxdl.tracebacks import located_message, user_frames

T = TypeVar("T")


def is_first() -> bool:
    """Returns whether this is the process that prints and writes files."""
    return jax.process_index() == 0


def broadcast_from_first(value: T) -> T:
    """Returns the JSON-compatible `value` of process 0 in all processes."""
    return value if jax.process_count() == 1 else _gather(value)[0]


def run_on_all(function: Callable[[], T]) -> T:
    """Calls a function in all processes; if it fails in one, it fails in all.

    A process in which the function fails raises its own error. The others would wait for that
    process forever, so they raise an error that names it.

    Raises:
        UserError: if another process raised a UserError or SaveError, was interrupted, or failed in
            the user's code.
        RuntimeError: if another process raised an exception of any other kind.
    """
    if jax.process_count() == 1:
        return function()
    result, error = None, None
    try:
        result = function()
    except BaseException as raised:
        error = raised
    failures = _gather(None if error is None else _failure(error))
    if error is not None:
        raise error
    for process, failure in enumerate(failures):
        if failure is not None:
            kind = UserError if failure["on_purpose"] else RuntimeError
            raise kind(f"process {process} {failure['message']}")
    return result  # type: ignore[return-value]


def run_on_first(function: Callable[[], T]) -> T | None:
    """Calls a function in the first process only, and raises its error in all processes."""
    return run_on_all(function if is_first() else lambda: None)


def _failure(error: BaseException) -> dict[str, Any]:
    """Returns a message about an error for the other processes, and whether it is a UserError."""
    if not isinstance(error, Exception):
        verb = "was interrupted" if isinstance(error, KeyboardInterrupt) else "has exited"
        return {"on_purpose": True, "message": verb}
    if isinstance(error, SaveError):
        return {"on_purpose": True, "message": f"has stopped: {error}"}
    if isinstance(error, UserError) or user_frames(error):
        return {"on_purpose": True, "message": f"has stopped: {located_message(error)}"}
    return {"on_purpose": False, "message": f"failed: {located_message(error)}"}


def check_agreement(value: Any, differences: Callable[[Any, Any], Sequence[str]]) -> None:
    """Checks that a JSON-compatible value is the same in all processes.

    Args:
        value: value of this process.
        differences: callable that lists the differences between two values.

    Raises:
        UserError: if values differ; raised in all processes, with the differences.
    """
    if jax.process_count() == 1:
        return
    first, *others = _gather(value)
    found = [
        f"process {process}: {line}"
        for process, other in enumerate(others, start=1)
        for line in differences(first, other)
    ]
    if found:
        raise UserError(
            "all processes of a run must have the same config, data and versions, but these differ "
            "from process 0:\n  " + "\n  ".join(found)
        )


def _gather(value: T) -> list[T]:
    """Returns the JSON-compatible values of all processes, in order."""
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]

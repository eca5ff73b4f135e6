"""Lookup of table columns by name."""

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from flaxdl.checks import did_you_mean
from flaxdl.errors import UserError

_MAX_SHOWN = 20


def find_columns(
    file: Path,
    columns: Sequence[str],
    names: Sequence[str],
    cause: Callable[[str], str] | None = None,
) -> list[int]:
    """Returns the indices of table columns, ignoring whitespace around names.

    Args:
        file: path of the table, for error messages.
        columns: names of the requested columns.
        names: names of all columns of the table, in order.
        cause: callable that takes the name of a missing column and returns text to append to the
            error message; by default, a suggestion of the nearest name.

    Raises:
        UserError: if a column is missing or its name is not unique.
    """
    plain = [_plain(name) for name in names]
    places = []
    for column in columns:
        for known, wanted in ((list(names), column), (plain, _plain(column))):
            found = [place for place, name in enumerate(known) if name == wanted]
            if found:
                break
        if not found:
            hint = did_you_mean(column, plain) if cause is None else cause(column)
            raise UserError(
                f"{file} has no column {column!r}; its columns are {_shown(plain)}{hint}"
            )
        if len(found) > 1:
            raise UserError(
                f"{file} must have one column {column!r}, has {len(found)} of that name"
            )
        places += found
    return places


def _shown(names: Sequence[str]) -> str:
    shown = [name if len(name) <= 60 else f"{name[:60]}..." for name in names[:_MAX_SHOWN]]
    more = [f"{len(names) - _MAX_SHOWN:,} more"] if len(names) > _MAX_SHOWN else []
    return ", ".join(shown + more)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()

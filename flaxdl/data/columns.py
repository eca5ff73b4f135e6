"""Finding the wanted columns of a table by their names."""

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from flaxdl.checks import did_you_mean
from flaxdl.errors import UserError

_MOST_SHOWN = 20


def find_columns(
    file: Path,
    columns: Sequence[str],
    names: Sequence[str],
    cause: Callable[[str], str] | None = None,
) -> list[int]:
    """Returns the places of columns in a table; blanks at the ends of names do not matter.

    Args:
        file: the table, for messages.
        columns: the wanted names.
        names: the names of the table's columns, in their order.
        cause: gives the end of the message about a missing column; by default the nearest name.

    Raises:
        UserError: if a column is missing, or there are two of its name.
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
            raise UserError(f"{file} has the columns {_shown(plain)}, got {column!r}{hint}")
        if len(found) > 1:
            raise UserError(
                f"{file} must have one column {column!r}, got {len(found)} of that name"
            )
        places += found
    return places


def _shown(names: Sequence[str]) -> str:
    shown = [name if len(name) <= 60 else f"{name[:60]}..." for name in names[:_MOST_SHOWN]]
    more = [f"{len(names) - _MOST_SHOWN:,} more"] if len(names) > _MOST_SHOWN else []
    return ", ".join(shown + more)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()

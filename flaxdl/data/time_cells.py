"""Times in the cells of a table: numbers, and dates with their format."""

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np

from flaxdl.errors import UserError

_YEAR_AND_MONTH = re.compile(r"\d{4}-\d\d")
_COMPACT = {  # from year 1000 to 2999; other whole numbers are numbers
    "%Y%m%d": re.compile("[12][0-9]{7}"),
    "%Y%m": re.compile("[12][0-9]{5}"),
}


def parse_times(cells: Sequence[Any], lines: Sequence[int], *, name: str) -> tuple[list[Any], str]:
    """Returns times as numbers or as dates, and the format of the dates for `strftime`.

    Dates with a time zone are converted to UTC.

    Args:
        cells: numbers, or dates in ISO 8601 or such as 20240131 or 202401.
        lines: their line numbers in the file, for error messages.
        name: name of the file and the column, for error messages.

    Raises:
        UserError: if a time cannot be read, or if numbers and dates, or dates with and without a
            time zone, are mixed.
    """
    texts = [str(cell).strip().removesuffix(".0") for cell in cells]
    for pattern, digits in _COMPACT.items():
        if all(map(digits.fullmatch, texts)):
            with suppress(ValueError):  # numbers that are no dates, such as 202313
                return [datetime.strptime(text, pattern) for text in texts], pattern
    times = [_parsed(cell, line, name) for cell, line in zip(cells, lines, strict=True)]
    kinds = [time.tzinfo if isinstance(time, datetime) else "number" for time in times]
    mixed = [n for n, kind in enumerate(kinds) if kind != kinds[0]]
    if mixed:
        raise UserError(
            f"{name} must have only numbers or only dates, all with a time zone or all without, "
            f"got {cells[0]!r} and {cells[mixed[0]]!r}"
        )
    return times, "" if kinds[0] == "number" else _pattern(cells, times)


def _parsed(cell: Any, line: int, name: str) -> float | datetime:
    """Returns a number, or a date with time."""
    if isinstance(cell, date):
        moment = cell if isinstance(cell, datetime) else datetime(cell.year, cell.month, cell.day)
        return _in_utc(moment)
    try:
        if isinstance(cell, int | float | Decimal | str) and np.isfinite(float(cell)):
            return float(cell)
    except ValueError:
        text = str(cell).strip()
        try:
            if _YEAR_AND_MONTH.fullmatch(text):
                text += "-01"
            return _in_utc(datetime.fromisoformat(text))
        except (ValueError, OverflowError):
            pass
    raise UserError(
        f"{name} must have numbers, such as years, or dates such as 2024-01-31 and "
        f"2024-01-31 12:00, got {cell!r} in line {line}"
    )


def _in_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo is None else moment.astimezone(UTC)


def _pattern(cells: Sequence[Any], times: Sequence[Any]) -> str:
    if all(isinstance(x, str) and _YEAR_AND_MONTH.fullmatch(x.strip()) for x in cells):
        return "%Y-%m"
    zone = "+00:00" if times[0].tzinfo is not None else ""
    if all(time.time() == times[0].time().min for time in times) and not zone:
        return "%Y-%m-%d"
    fraction = ".%f" if any(time.microsecond for time in times) else ""
    return f"%Y-%m-%d %H:%M:%S{fraction}{zone}"

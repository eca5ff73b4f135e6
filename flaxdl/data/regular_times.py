"""Times of the rows of a table: their places on a regular grid, and the times that follow."""

import calendar
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from flaxdl.errors import UserError

_TOLERANCE = 0.01  # of a step
_MOST_MISSING = 10  # grid points per row
_YEAR_AND_MONTH = re.compile(r"\d{4}-\d\d")


@dataclass(frozen=True)
class RegularTimes:
    """A grid of times: a last time and a step."""

    last: float | datetime
    """Last time; a number, such as a year, or a date."""
    step: float
    """Distance between neighboring times: in the unit of the numbers, in months if `in_months`, and
    otherwise in seconds."""
    in_months: bool = False
    """True for dates that are a whole number of calendar months apart."""
    pattern: str = ""
    """Format of dates, for `strftime`."""

    def after(self, count: int) -> list[str]:
        """Returns the times of the next `count` steps as text."""
        return [self._text(number) for number in range(1, count + 1)]

    def _text(self, number: int) -> str:
        if not isinstance(self.last, datetime):
            return f"{self.last + number * self.step:.12g}"
        if not self.in_months:
            return (self.last + timedelta(seconds=number * self.step)).strftime(self.pattern)
        months = 12 * self.last.year + self.last.month - 1 + round(number * self.step)
        year, month = months // 12, months % 12 + 1
        day, longest = self.last.day, calendar.monthrange(year, month)[1]
        if _is_month_end(self.last):
            day = longest
        return self.last.replace(year=year, month=month, day=min(day, longest)).strftime(
            self.pattern
        )


def places_of(
    cells: Sequence[Any], lines: Sequence[int], *, name: str
) -> tuple[np.ndarray, RegularTimes]:
    """Returns the place of each row on a regular grid, and its times.

    Dates with the same day in every month, or the last day of every month, are counted in calendar
    months. The step is the median distance between neighboring times.

    Args:
        cells: the times, in any order: numbers, or dates in ISO 8601.
        lines: their line numbers in the file, for error messages.
        name: name of the file and the column, for error messages.

    Returns:
        The places, int64[N], starting at 0, and the grid.

    Raises:
        UserError: if a time cannot be read or is repeated, or if the times are not on a grid.
    """
    times = [_parsed(cell, line, name) for cell, line in zip(cells, lines, strict=True)]
    is_date = isinstance(times[0], datetime)
    mixed = [n for n, time in enumerate(times) if isinstance(time, datetime) != is_date]
    if mixed:
        raise UserError(
            f"{name} must have only numbers or only dates, got {cells[0]!r} and {cells[mixed[0]]!r}"
        )
    in_months = is_date and _are_months(times)
    values = np.array([_value(time, in_months) for time in times])
    order = np.argsort(values, kind="stable")
    distances = np.diff(values[order])
    if (distances == 0).any():
        first = int(np.flatnonzero(distances == 0)[0])
        one, other = (order[first], order[first + 1])
        raise UserError(
            f"each time must occur once in {name}, got {cells[one]!r} in lines {lines[one]} and "
            f"{lines[other]}; tables with several series need a column for each"
        )
    step = float(np.sort(distances)[(len(distances) - 1) // 2]) if len(distances) else 1.0
    places = (values - values[order[0]]) / step
    off = np.abs(places - np.rint(places)) > _TOLERANCE
    if off.any() or places.max() > _MOST_MISSING * len(places) + 1:
        wrong = int(np.flatnonzero(off)[0] if off.any() else order[-1])
        raise UserError(
            f"{name} must have regular times, but {cells[wrong]!r} in line {lines[wrong]} is "
            f"{places[wrong]:.6g} steps after the first; without a time column, rows count as "
            "equally spaced"
        )
    last: Any = times[order[-1]]
    pattern = _pattern(cells, times) if is_date else ""
    return np.rint(places).astype(np.int64), RegularTimes(last, step, in_months, pattern)


def _parsed(cell: Any, line: int, name: str) -> float | datetime:
    """Returns a number, or a date with time; those with a time zone are converted to UTC."""
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
        except ValueError:
            pass
    raise UserError(
        f"{name} must have numbers, such as years, or dates such as 2024-01-31 and "
        f"2024-01-31 12:00, got {cell!r} in line {line}"
    )


def _in_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo is None else moment.astimezone(UTC)


def _are_months(times: Sequence[Any]) -> bool:
    months = {(time.year, time.month) for time in times}
    days = {time.day for time in times}
    clocks = {time.time() for time in times}
    if len(times) < 2 or len(clocks) > 1 or len(months) < len(set(times)):
        return False
    return len(days) == 1 or all(map(_is_month_end, times))


def _is_month_end(time: date) -> bool:
    return time.day == calendar.monthrange(time.year, time.month)[1]


def _value(time: float | datetime, in_months: bool) -> float:
    if not isinstance(time, datetime):
        return time
    if in_months:
        return float(12 * time.year + time.month - 1)
    start = datetime(1970, 1, 1, tzinfo=time.tzinfo)
    return (time - start).total_seconds()


def _pattern(cells: Sequence[Any], times: Sequence[Any]) -> str:
    if all(isinstance(x, str) and _YEAR_AND_MONTH.fullmatch(x.strip()) for x in cells):
        return "%Y-%m"
    zone = "+00:00" if times[0].tzinfo is not None else ""
    if all(time.time() == times[0].time().min for time in times) and not zone:
        return "%Y-%m-%d"
    fraction = ".%f" if any(time.microsecond for time in times) else ""
    return f"%Y-%m-%d %H:%M:%S{fraction}{zone}"

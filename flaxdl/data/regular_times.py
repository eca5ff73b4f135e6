"""Times of the rows of a table: their places on a regular grid, and the times that follow."""

import calendar
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np

from flaxdl.data.time_cells import parse_times
from flaxdl.errors import UserError

_TOLERANCE = 0.01  # of a step
_ROUNDING = 0.05  # of a step, for rounded numbers such as 1958.042, 1958.125, 1958.208
_MOST_MISSING = 10  # grid points per row


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
    at_month_end: bool = False
    """True for dates that are all the last day of a month, whose day therefore varies."""
    pattern: str = ""
    """Format of dates, for `strftime`."""

    def after(self, count: int) -> list[str]:
        """Returns the times of the next `count` steps as text.

        Raises:
            UserError: if a date is after the year 9999.
        """
        try:
            return [self._text(number) for number in range(1, count + 1)]
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"dates must be at most in the year 9999, but {count:,} steps after {self.last} "
                "end later"
            ) from error

    def _text(self, number: int) -> str:
        if not isinstance(self.last, datetime):
            return f"{self.last + number * self.step:.12g}"
        if not self.in_months:
            return (self.last + timedelta(seconds=number * self.step)).strftime(self.pattern)
        months = 12 * self.last.year + self.last.month - 1 + round(number * self.step)
        year, month = months // 12, months % 12 + 1
        longest = calendar.monthrange(year, month)[1]
        day = longest if self.at_month_end else min(self.last.day, longest)
        return self.last.replace(year=year, month=month, day=day).strftime(self.pattern)


def places_of(
    cells: Sequence[Any], lines: Sequence[int], *, name: str
) -> tuple[np.ndarray, RegularTimes]:
    """Returns the place of each row on a regular grid, and its times.

    Dates with the same day in every month, or the last day of every month, are counted in calendar
    months. The step is the median distance between neighboring times; for rounded numbers, such as
    decimal years, it is the mean distance.

    Args:
        cells: the times, in any order: numbers, or dates in ISO 8601 or such as 20240131 or 202401.
        lines: their line numbers in the file, for error messages.
        name: name of the file and the column, for error messages.

    Returns:
        The places, int64[N], starting at 0, and the grid.

    Raises:
        UserError: if a time cannot be read or is repeated, if the times are not on a grid, or if
            there is only one date, which has no step.
    """
    times, pattern = parse_times(cells, lines, name=name)
    is_date = isinstance(times[0], datetime)
    if is_date and len(times) == 1:
        raise UserError(
            f"{name} must have two dates or more, since the distance of dates is unknown from "
            f"one, got {cells[0]!r}"
        )
    in_months = is_date and _are_months(times)
    values = np.array([_value(time, in_months) for time in times])
    order = np.argsort(values, kind="stable")
    with np.errstate(over="ignore"):
        distances = np.diff(values[order])
    if (distances == 0).any():
        first = int(np.flatnonzero(distances == 0)[0])
        one, other = (order[first], order[first + 1])
        raise UserError(
            f"each time must occur once in {name}, got {cells[one]!r} in lines {lines[one]} and "
            f"{lines[other]}; tables with several series need a column for each"
        )
    step, places, off = _steps(values, distances, may_be_rounded=not is_date)
    if off.any() or places.max() > _MOST_MISSING * len(places) + 1:
        wrong = int(np.flatnonzero(off)[0] if off.any() else order[-1])
        raise UserError(
            f"{name} must have regular times, but {cells[wrong]!r} in line {lines[wrong]} is "
            f"{places[wrong]:.6g} steps after the first; without a time column, rows count as "
            "equally spaced"
        )
    at_month_end = in_months and all(map(_is_month_end, times))
    grid = RegularTimes(times[order[-1]], step, in_months, at_month_end, pattern)
    return np.rint(places).astype(np.int64), grid


def _steps(
    values: np.ndarray, distances: np.ndarray, *, may_be_rounded: bool
) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns the step, the places, and which times have no place on the grid."""
    if not len(distances):
        return 1.0, np.zeros(1), np.zeros(1, bool)
    step = float(np.sort(distances)[(len(distances) - 1) // 2])
    places, off = _places(values, step, _TOLERANCE)
    if may_be_rounded and off.any():
        with np.errstate(all="ignore"):  # neighbors can be several steps apart
            mean = float(distances.sum() / np.rint(distances / step).sum())
        refined, still_off = _places(values, mean, _ROUNDING)
        if not still_off.any():
            return mean, refined, still_off
    return step, places, off


def _places(values: np.ndarray, step: float, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distances from the first value in steps, and which have no place on the grid."""
    with np.errstate(all="ignore"):  # distances that overflow have no place
        places = (values - values.min()) / step
        off = ~(np.abs(places - np.rint(places)) <= tolerance)
    taken = np.ones(len(places), bool)
    taken[np.unique(np.rint(places), return_index=True)[1]] = False
    return places, off | taken


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

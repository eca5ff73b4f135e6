"""Sources of time series to forecast: tables, and series from the package statsmodels."""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flaxdl.data.hash_split import check_fractions
from flaxdl.data.regular_times import RegularTimes, places_of
from flaxdl.data.separated_files import check_separator
from flaxdl.data.source import Source, Splits
from flaxdl.data.table_cells import as_number
from flaxdl.data.table_files import read_table
from flaxdl.data.text_files import check_encoding
from flaxdl.data.windows import WindowSizes, split_windows
from flaxdl.errors import UserError

_LOGGER = logging.getLogger(__name__)
_SHOWN = 5  # invalid lines in a message


@dataclass(frozen=True)
class TimeSeries:
    """One or several series on a regular grid of times."""

    columns: tuple[str, ...]
    """Names of the series."""
    values: np.ndarray
    """Values in the series' own units, float64[T, C]; NaN where missing."""
    times: RegularTimes | None
    """Times of the steps; None if the table has no time column."""


@dataclass(frozen=True, kw_only=True)
class SeriesSource(Source):
    """Base class of sources of windows for forecasting; subclasses define `read`.

    The steps are divided in order of time into training, validation and test part. Every window, a
    `context` and the `horizon` that follows it, lies within one part: forecasts are scored on
    steps that neither training nor the selection of the checkpoint has seen, not even as inputs.
    Windows start at every step of their part (rolling origin). Missing values are not filled in;
    the windows that contain them are left out.
    """

    context: int
    """Number of steps that a forecast is made from."""
    horizon: int
    """Number of steps to forecast."""
    season: int = 1
    """Period in steps of the seasonal naive forecast that results are compared with, such as 12 for
    monthly values; 1 repeats the last value."""
    validation_fraction: float = 0.15
    """Fraction of the steps in the validation part; 0 for none."""
    test_fraction: float = 0.2
    """Fraction of the steps in the test part, the last one; 0 for none."""

    def __post_init__(self):
        check_fractions(self.validation_fraction, self.test_fraction)
        WindowSizes(self.context, self.horizon, self.season)

    @property
    @abstractmethod
    def series_columns(self) -> tuple[str, ...]:
        """Names of the columns with the series."""

    @property
    @abstractmethod
    def time_column(self) -> str | None:
        """Name of the time column; None without one."""

    @abstractmethod
    def read(self, path: str | None = None) -> TimeSeries:
        """Reads the series, or those in another file of the same columns.

        Raises:
            UserError: if the file cannot be read, or if times or values are invalid.
        """

    def load(self, seed: int) -> Splits:
        """Reads the series and cuts them into windows; the seed has no influence.

        Raises:
            UserError: if the series cannot be read, or if a part has no complete window.
        """
        series = self.read()
        found = split_windows(
            series.values,
            WindowSizes(self.context, self.horizon, self.season),
            validation=self.validation_fraction,
            test=self.test_fraction,
            name=str(getattr(self, "path", type(self).__name__)),
        )
        return Splits(found["train"], found.get("validation"), found.get("test"), classes=None)


@dataclass(frozen=True)
class SeriesTable(SeriesSource):
    """One or several time series in the columns of a CSV, TSV, JSON Lines or Parquet file.

    With a time column, rows are sorted by time, and missing rows count as missing values. Times are
    numbers, such as years, or dates in ISO 8601 or such as 20240131 or 202401, at regular distances
    or in regular months. Without one, rows are in order of time and equally spaced. Empty cells,
    `NaN`, `NA` and `null` are missing values.
    """

    path: str
    """Path or URL of the file: .csv, .tsv, .jsonl, .json (one object per line) or .parquet."""
    columns: tuple[str, ...]
    """Names of the columns with the series."""
    time: str | None = None
    """Name of the column with the times."""
    separator: str | None = None
    """Separator between fields of delimiter-separated files; by default, a tab in .tsv files and a
    comma in others, or the one in a first line such as `sep=;`."""
    encoding: str = "utf-8"
    """Encoding of the text, such as `cp1252`; a byte order mark takes precedence."""

    def __post_init__(self):
        super().__post_init__()
        check_separator(self.separator)
        check_encoding(self.encoding)
        if isinstance(self.columns, str):
            raise UserError(
                f"columns must be a tuple of names, such as ({self.columns!r},), got "
                f"{self.columns!r}"
            )
        names = [*self.columns, *([] if self.time is None else [self.time])]
        if not self.columns or len(set(names)) < len(names):
            raise UserError(
                f"columns must be the names of different columns other than time, got "
                f"{self.columns} and time {self.time!r}"
            )

    @property
    def series_columns(self) -> tuple[str, ...]:
        """Names of the columns with the series."""
        return self.columns

    @property
    def time_column(self) -> str | None:
        """Name of the time column; None without one."""
        return self.time

    def read(self, path: str | None = None) -> TimeSeries:
        """Reads the table, or another one with the same columns."""
        path = self.path if path is None else path
        return read_series(
            path, self.columns, self.time, separator=self.separator, encoding=self.encoding
        )


def read_series(
    path: str,
    columns: Sequence[str],
    time: str | None,
    *,
    separator: str | None = None,
    encoding: str = "utf-8",
) -> TimeSeries:
    """Reads series from the columns of a table; see `SeriesTable`.

    Raises:
        UserError: if the file cannot be read, or if times or values are invalid.
    """
    names = [*columns, *([] if time is None else [time])]
    rows, broken = read_table(path, names, separator=separator, encoding=encoding)
    lines = [line for line, _ in rows]
    values = np.full((len(rows), len(columns)), np.nan)
    for number, (line, row) in enumerate(rows):
        for place, name in enumerate(columns):
            try:
                values[number, place] = as_number(row[place])
            except ValueError:
                reason = f"has {row[place]!r} in column {name}, which is not a finite number"
                broken.setdefault(line, reason)
    _check_lines(path, broken)
    if time is None:
        return TimeSeries(tuple(columns), values, None)
    where = f"column {time!r} of {path}"
    places, times = places_of([row[-1] for _, row in rows], lines, name=where)
    if (np.diff(places) < 0).any():
        _LOGGER.warning("%s is not in order; the rows are sorted by time", where)
    on_grid = np.full((places.max() + 1, len(columns)), np.nan)
    on_grid[places] = values
    return TimeSeries(tuple(columns), on_grid, times)


def _check_lines(path: str, broken: Mapping[int, str]) -> None:
    if not broken:
        return
    shown = [f"{path}:{line} {reason}" for line, reason in sorted(broken.items())[:_SHOWN]]
    more = [f"and {len(broken) - _SHOWN:,} more"] if len(broken) > _SHOWN else []
    count = "1 line" if len(broken) == 1 else f"{len(broken):,} lines"
    raise UserError(f"{path} has {count} with invalid values:\n  " + "\n  ".join([*shown, *more]))

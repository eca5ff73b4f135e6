"""Monthly sea surface temperatures, as a small real series to forecast."""

from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from flaxdl.data.regular_times import RegularTimes
from flaxdl.data.series_table import SeriesSource, TimeSeries, read_series
from flaxdl.errors import UserError

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


@dataclass(frozen=True)
class ElNino(SeriesSource):
    """Monthly sea surface temperature off Peru and Ecuador, in °C, from 1950 to 2010.

    The series has a season of 12 months, and irregular warm years (El Niño). Its 732 values are in
    the public domain; the package statsmodels contains them (`pip install 'flaxdl[series]'`). Files
    for prediction have the columns `month`, such as 2010-12, and `temperature`.
    """

    @property
    def series_columns(self) -> tuple[str]:
        """Name of the column with the series."""
        return ("temperature",)

    @property
    def time_column(self) -> str:
        """Name of the time column."""
        return "month"

    def read(self, path: str | None = None) -> TimeSeries:
        """Reads the series, or a file with the columns `month` and `temperature`.

        Raises:
            UserError: if statsmodels is not installed, or if the file cannot be read.
        """
        if path is not None:
            return read_series(path, self.series_columns, self.time_column)
        spec = find_spec("statsmodels")
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                "ElNino needs the package statsmodels: run `pip install 'flaxdl[series]'`"
            )
        folder = Path(spec.submodule_search_locations[0], "datasets", "elnino")
        rows = read_series(str(folder / "elnino.csv"), _MONTHS, None)  # a row per year
        last = RegularTimes(datetime(2010, 12, 1), step=1, in_months=True, pattern="%Y-%m")
        return TimeSeries(self.series_columns, rows.values.reshape(-1, 1), last)

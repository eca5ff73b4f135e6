"""Times on a grid: years, months, days and hours, and what continues them."""

from datetime import date, datetime

import numpy as np
import pytest

from flaxdl.data.regular_times import places_of

pytestmark = pytest.mark.quick


def grid(cells):
    places, times = places_of(cells, range(2, len(cells) + 2), name="column 'time' of a.csv")
    return places.tolist(), times.after(3)


@pytest.mark.parametrize(
    ("cells", "places", "following"),
    [
        (["1999", "2000", "2001"], [0, 1, 2], ["2002", "2003", "2004"]),
        ([0.0, 0.1, 0.2, 0.3], [0, 1, 2, 3], ["0.4", "0.5", "0.6"]),
        (["3", "1", "2"], [2, 0, 1], ["4", "5", "6"]),
        ([1, 2, 5, 6], [0, 1, 4, 5], ["7", "8", "9"]),
        (["2024-02-28", "2024-02-29"], [0, 1], ["2024-03-01", "2024-03-02", "2024-03-03"]),
        (["1999-11", "1999-12"], [0, 1], ["2000-01", "2000-02", "2000-03"]),
        (
            ["2024-01-15", "2024-02-15", "2024-03-15"],
            [0, 1, 2],
            ["2024-04-15", "2024-05-15", "2024-06-15"],
        ),
        (
            ["2023-10-31", "2023-11-30", "2024-01-31"],  # December is missing
            [0, 1, 3],
            ["2024-02-29", "2024-03-31", "2024-04-30"],
        ),
        (
            ["2000-01-01", "2004-01-01", "2008-01-01"],
            [0, 1, 2],
            ["2012-01-01", "2016-01-01", "2020-01-01"],
        ),
        (
            ["2024-01-01 22:00", "2024-01-01T23:00"],
            [0, 1],
            ["2024-01-02 00:00:00", "2024-01-02 01:00:00", "2024-01-02 02:00:00"],
        ),
        (
            ["2024-03-31T00:00+01:00", "2024-03-31T00:00Z"],
            [0, 1],
            [f"2024-03-31 0{hour}:00:00+00:00" for hour in (1, 2, 3)],
        ),
        (
            [datetime(2024, 1, 1), date(2024, 1, 8)],
            [0, 1],
            ["2024-01-15", "2024-01-22", "2024-01-29"],
        ),
    ],
)
def test_places_and_what_follows(cells, places, following):
    assert grid(cells) == (places, following)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["31.01.2024"], r"must have numbers, .* got '31.01.2024' in line 2"),
        (["nan"], "must have numbers, .* got 'nan' in line 2"),
        (["2024", "2024-01-01"], "only numbers or only dates, got '2024' and '2024-01-01'"),
        (["1", "2", "3", "2"], "occur once in .*, got '2' in lines 3 and 5; tables with several"),
        (
            ["1", "2", "3", "4.4"],
            r"regular times, but '4.4' in line 5 is 3.4 steps",
        ),
        (["1", "2", "3", "999"], r"regular times, but '999' in line 5 is 998 steps"),
    ],
)
def test_irregular_times_are_named(cells, message):
    with pytest.raises(ValueError, match=message):
        grid(cells)


def test_one_row_has_a_step():
    assert grid(["7"]) == ([0], ["8", "9", "10"])


def test_many_hours_have_no_rounding_errors():
    start = np.datetime64("1970-01-01T00")
    cells = [str(start + np.timedelta64(hour, "h")) + ":00" for hour in range(0, 500_000, 1237)]
    assert grid(cells)[0] == list(range(len(cells)))

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
        (  # the 30th, of which the last one happens to end its month
            ["2024-03-30", "2024-04-30", "2024-05-30", "2024-06-30"],
            [0, 1, 2, 3],
            ["2024-07-30", "2024-08-30", "2024-09-30"],
        ),
        (
            ["2022-11-28", "2022-12-28", "2023-01-28", "2023-02-28"],
            [0, 1, 2, 3],
            ["2023-03-28", "2023-04-28", "2023-05-28"],
        ),
        (
            ["2023-06-30", "2023-09-30"],
            [0, 1],
            ["2023-12-31", "2024-03-31", "2024-06-30"],
        ),
        (
            [*(str(month) for month in range(202301, 202313)), "202402"],  # January is missing
            [*range(12), 13],
            ["202403", "202404", "202405"],
        ),
        ([202411, 202412], [0, 1], ["202501", "202502", "202503"]),
        ([202411.0, 202412.0], [0, 1], ["202501", "202502", "202503"]),
        (["20240131", "20240201"], [0, 1], ["20240202", "20240203", "20240204"]),
        (["20240131", "20240229"], [0, 1], ["20240331", "20240430", "20240531"]),
        (["202312", "202313"], [0, 1], ["202314", "202315", "202316"]),  # numbers
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
        (["2024", "2024-01-01"], "numbers or only dates, .* got '2024' and '2024-01-01'"),
        (["20240131", "2024-02-01"], "numbers or only dates, .* got '20240131' and '2024-02-01'"),
        (
            ["2024-01-01T00:00", "2024-01-01T01:00Z"],
            "all with a time zone or all without, got '2024-01-01T00:00' and '2024-01-01T01:00Z'",
        ),
        (["2024-01"], "must have two dates or more, .* got '2024-01'"),
        (["0", "1e-320", "2"], "regular times, but '2' in line 4 is inf steps"),
        (["-1e308", "1e308"], "regular times, but '1e308' in line 3 is nan steps"),
        (["0", "0.06", *"12345"], "regular times, but '0.06' in line 3 is 0.06 steps"),
        (["0", "0.04", *"12345"], "regular times, but '0.04' in line 3 is 0.04 steps"),
        (["0", "0.005", *"12345"], "regular times, but '0.005' in line 3 is 0.005 steps"),
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


def test_one_number_has_a_step():
    assert grid(["7"]) == ([0], ["8", "9", "10"])


@pytest.mark.parametrize("years", [1, 60])
def test_rounded_decimal_years_are_months(years):
    exact = 1958 + np.arange(12 * years + 3) / 12
    kept = [n for n in range(12 * years) if n != 4]  # a month is missing
    places, times = grid([f"{exact[n]:.3f}" for n in kept])
    assert places == kept
    np.testing.assert_allclose(np.array(times, float), exact[12 * years :], atol=1.5e-3)


@pytest.mark.parametrize("cells", [["9999-11", "9999-12"], ["9999-12-30", "9999-12-31"]])
def test_dates_after_the_last_year_are_named(cells):
    with pytest.raises(ValueError, match="dates must be at most in the year 9999, but 3 steps"):
        grid(cells)


def test_many_hours_have_no_rounding_errors():
    start = np.datetime64("1970-01-01T00")
    cells = [str(start + np.timedelta64(hour, "h")) + ":00" for hour in range(0, 500_000, 1237)]
    assert grid(cells)[0] == list(range(len(cells)))

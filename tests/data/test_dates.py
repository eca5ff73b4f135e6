from datetime import date

import numpy as np
import pytest

from flaxdl.data import Dates
from flaxdl.data.dates import STYLES, format_date


def test_styles():
    assert [format_date(date(1985, 5, 3), style) for style in STYLES] == [
        "3 May 1985",
        "3 May 1985",
        "May 3, 1985",
        "May 3rd 1985",
        "the 3rd of May, 1985",
        "Friday, 3 May 1985",
        "Friday, May 3rd, 1985",
        "1985, 3 May",
        "3.5.1985",
        "05/03/1985",
    ]


def test_ordinals():
    days = [
        format_date(date(2001, 9, day), "{dth}") for day in (1, 2, 3, 4, 11, 12, 13, 21, 22, 30)
    ]
    assert days == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "30th"]


def test_no_date_is_in_two_splits():
    splits = Dates(train=3000, test=500).load(seed=0)
    parts = [set(part.arrays()["label"]) for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [2700, 300, 500]
    assert len(set.union(*parts)) == 3500


def test_dates_are_the_same_each_time_and_the_seed_holds_out():
    first, again, other = (Dates(train=300, test=50).load(seed) for seed in (0, 0, 1))
    for name in ("inputs", "label"):
        np.testing.assert_array_equal(first.train.arrays()[name], again.train.arrays()[name])
        np.testing.assert_array_equal(first.test.arrays()[name], other.test.arrays()[name])
    assert set(first.validation.arrays()["label"]) != set(other.validation.arrays()["label"])


@pytest.mark.parametrize(("train", "test"), [(73_000, 50), (0, 10), (10, 0)])
def test_more_dates_than_days_are_refused(train, test):
    with pytest.raises(ValueError, match=f"at most 73,049 days, got {train} and {test}"):
        Dates(train=train, test=test).load(seed=0)

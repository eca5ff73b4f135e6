from collections import Counter

import numpy as np
import pytest

from flaxdl.data import ReversedStrings


def test_strings_are_reversed_and_in_one_split_only():
    splits = ReversedStrings(train=3600, test=720, validation_fraction=0.1).load(seed=0)
    parts = [part.arrays() for part in (splits.train, splits.validation, splits.test)]
    assert [len(part["inputs"]) for part in parts] == [3240, 360, 720]
    strings = [string for part in parts for string in part["inputs"]]
    assert len(set(strings)) == 4320
    assert [string[::-1] for string in strings] == [s for part in parts for s in part["label"]]


def test_lengths_and_letters_are_uniform():
    strings = ReversedStrings(train=3600, test=720).load(seed=0).train.arrays()["inputs"]
    lengths = Counter(map(len, strings))
    assert set(lengths) == set(range(5, 41))
    assert min(lengths.values()) > 60  # 95 expected
    letters = Counter("".join(strings))
    assert len(letters) == 26
    assert max(letters.values()) < 1.1 * min(letters.values())


def test_strings_are_the_same_each_time_and_the_seed_holds_out():
    first, again, other = (ReversedStrings(300, 50).load(seed) for seed in (0, 0, 1))
    for name in ("inputs", "label"):
        np.testing.assert_array_equal(first.train.arrays()[name], again.train.arrays()[name])
        np.testing.assert_array_equal(first.test.arrays()[name], other.test.arrays()[name])
    assert set(first.validation.arrays()["label"]) != set(other.validation.arrays()["label"])


@pytest.mark.parametrize(("train", "test"), [(0, 10), (10, 0), (-1, 10)])
def test_no_strings_are_refused(train, test):
    with pytest.raises(ValueError, match=f"must be positive, got {train} and {test}"):
        ReversedStrings(train=train, test=test).load(seed=0)

from pathlib import Path

import numpy as np
import pytest

from flaxdl.data import Documents, Text


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("".join(chr(ord("a") + i % 26) for i in range(1000)), encoding="utf-8")
    return str(path)


def test_parts_follow_each_other_and_windows_overlap_by_one(story):
    splits = Documents(story, window=11, validation_fraction=0.1, test_fraction=0.2).load(seed=0)
    text = Path(story).read_text()
    for dataset, start, end in [
        (splits.train, 0, 700),
        (splits.validation, 700, 800),
        (splits.test, 800, 1000),
    ]:
        windows = list(dataset.arrays()["inputs"])
        assert len(windows) == (end - start - 1) // 10
        assert (
            "".join(window[1:] for window in windows) == text[start + 1 : end][: 10 * len(windows)]
        )
        assert {len(window) for window in windows} == {11}
    assert splits.classes is None


def test_the_documentation_of_python_is_the_default():
    splits = Documents(window=128).load(seed=0)
    counts = [len(part) for part in (splits.train, splits.validation, splits.test)]
    assert sum(counts) > 2000
    assert counts[1] == pytest.approx(counts[2], abs=1)
    assert any("statement" in window for window in splits.train.arrays()["inputs"])


def test_windows_become_tokens_without_padding(story):
    train = Documents(story, window=11).load(seed=0).train
    tokens = Text("characters", max_length=11).fit(train).apply(train).arrays()
    np.testing.assert_array_equal(tokens["lengths"], 11)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "absent.txt"}, "absent.txt cannot be read as a text in UTF-8"),
        ({"window": 60}, "a window of 60 characters, got 50 in .*story.txt"),
        ({"window": 1}, "window must be at least 2, got 1"),
        ({"test_fraction": 0.5}, "test_fraction must be above 0 and below 0.5, got 0.5"),
    ],
)
def test_what_cannot_be_cut_is_named(story, settings, message):
    with pytest.raises(ValueError, match=message):
        Documents(**({"path": story} | settings)).load(seed=0)

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
        ({"path": "absent.txt"}, "absent.txt cannot be read: No such file or directory"),
        ({"window": 60}, "a window of 60 characters, got 50 in .*story.txt"),
        ({"window": 1}, "window must be at least 2, got 1"),
        ({"test_fraction": 0.5}, "test_fraction must be above 0 and below 0.5, got 0.5"),
    ],
)
def test_what_cannot_be_cut_is_named(story, settings, message):
    with pytest.raises(ValueError, match=message):
        Documents(**({"path": story} | settings)).load(seed=0)


def test_encodings_and_line_endings(tmp_path, monkeypatch):
    text = "".join(f"{'é' if i % 3 else ''} line {i}\n" for i in range(100))
    path = tmp_path / "t.txt"
    monkeypatch.setenv("HOME", str(tmp_path))

    def windows(**settings):
        splits = Documents("~/t.txt", window=20, **settings).load(seed=0)
        return list(splits.train.arrays()["inputs"])

    path.write_text(text, encoding="utf-8")
    expected = windows()
    for content, settings in (
        (text.encode("utf-8-sig"), {}),
        (text.encode("utf-16"), {}),
        (text.replace("\n", "\r\n").encode("cp1252"), {"encoding": "cp1252"}),
    ):
        path.write_bytes(content)
        assert windows(**settings) == expected
    with pytest.raises(ValueError, match='t.txt is not in UTF-8: .* set encoding="cp1252"'):
        windows()
    path.write_bytes(b"%PDF-1.7\n")
    with pytest.raises(ValueError, match=r"t.txt is a PDF document; save its text"):
        windows()

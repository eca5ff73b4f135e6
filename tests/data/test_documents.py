from pathlib import Path

import numpy as np
import pytest

from flaxdl.data import ArrayDataset, Documents, Text
from flaxdl.data.vocabulary import tokens_before
from flaxdl.errors import UserError


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


def test_a_burn_in_predicts_each_character_once(story):
    source = Documents(story, window=11, validation_fraction=0.1, test_fraction=0.2, burn_in=4)
    splits, text = source.load(seed=0), Path(story).read_text()
    for dataset, start, end in [
        (splits.train, 0, 700),
        (splits.validation, 700, 800),
        (splits.test, 800, 1000),
    ]:
        arrays = dataset.arrays()
        assert len(dataset) == (end - start - 11) // 7 + 1
        np.testing.assert_array_equal(arrays["burn_in"], [1] + [4] * (len(dataset) - 1))
        predicted = [w[b:] for w, b in zip(arrays["inputs"], arrays["burn_in"], strict=True)]
        assert "".join(predicted) == text[start + 1 : start + 11 + 7 * (len(dataset) - 1)]


def test_without_a_burn_in_the_examples_are_those_of_earlier_versions(story):
    train = Documents(story, window=11).load(seed=0).train
    assert list(train.arrays()) == ["inputs"]


def test_a_burn_in_is_counted_in_tokens(tmp_path):
    """Windows of 12 characters, of which 6 are context: a token that starts in it is context."""
    path = tmp_path / "words.txt"
    path.write_text("one two three, " * 40)
    train = Documents(str(path), window=12, burn_in=6).load(seed=0).train
    windows = list(train.arrays()["inputs"][:3])
    assert windows == ["one two thre", "o three, one", "e, one two t"]
    characters = Text("characters", max_length=12).fit(train).apply(train).arrays()
    np.testing.assert_array_equal(characters["burn_in"][:3], [1, 6, 6])
    # one | two thre; o three , | one (a comma is a token); e , one | two t
    words = Text("words", max_length=12).fit(train).apply(train).arrays()
    np.testing.assert_array_equal(words["burn_in"][:3], [1, 2, 3])


def test_a_burn_in_that_leaves_nothing_to_predict_is_named(story):
    train = Documents(story, window=30, burn_in=12).load(seed=0).train
    message = "the burn-in leaves no token .* max_length = 10 tokens; .*--transform.max-length"
    fitted = Text("characters", max_length=10).fit(train)
    with pytest.raises(UserError, match=message):
        fitted.apply(train)


@pytest.mark.parametrize("windows", [0, 1, 2])
def test_a_burn_in_asks_for_a_target_only_where_there_are_texts(story, windows):
    train = Documents(story, window=30, burn_in=12).load(seed=0).train
    few = ArrayDataset({name: values[:windows] for name, values in train.arrays().items()})
    encoded = Text("characters", max_length=30).fit(train).apply(few).arrays()
    np.testing.assert_array_equal(encoded["burn_in"], [1, 12][:windows])


def test_special_tokens_before_a_text_belong_to_the_burn_in():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    found = tokens_before(words, ["a b a b"] * 4, np.array([0, 1, 4, 7]))
    np.testing.assert_array_equal(found, [1, 2, 3, 6])


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
        ({"window": 60}, "one window of 60 characters, got a split of 50 from .*story.txt"),
        ({"window": 1}, "window must be at least 2, got 1"),
        ({"burn_in": 0}, "burn_in must be at least 1 and below window = 256, got 0"),
        ({"window": 9, "burn_in": 9}, "burn_in must be at least 1 and below window = 9, got 9"),
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
    with pytest.raises(ValueError, match='t.txt is not valid UTF-8: .* set encoding="cp1252"'):
        windows()
    path.write_bytes(b"%PDF-1.7\n")
    with pytest.raises(ValueError, match=r"t.txt is a PDF document; save its text"):
        windows()

"""Pairs of segments for next-sentence prediction: what follows what, splits, seeds, masks."""

import numpy as np
import pytest

from flaxdl.data import MaskedText, NextSentencePairs
from flaxdl.data.next_sentence_pairs import cut
from flaxdl.errors import UserError

WORDS = [f"w{number:04}" for number in range(2000)]  # each once, so that a word tells its place


@pytest.fixture
def numbered(tmp_path):
    path = tmp_path / "numbered.txt"
    path.write_text(" ".join(WORDS))
    return NextSentencePairs(
        str(path), segment_length=30, validation_fraction=0.1, test_fraction=0.2
    )


def columns(dataset):
    arrays = dataset.arrays()
    return arrays["inputs"], arrays["pair"], arrays["next_sentence_label"]


def test_the_label_tells_whether_the_second_segment_follows(numbered):
    text = " ".join(WORDS)  # of 11,999 characters
    splits = numbered.load(seed=0)
    for dataset, part in [
        (splits.train, text[:8399]),
        (splits.validation, text[8399:9599]),
        (splits.test, text[9599:]),
    ]:
        segments = cut(part, 30)
        first, second, label = columns(dataset)
        assert list(first) == segments[:-1]
        for number, (segment, is_random) in enumerate(zip(second, label, strict=True)):
            assert (segment == segments[number + 1]) == (not is_random)
            assert segment in segments
            assert segment != segments[number]
        assert label.sum() == len(label) // 2
    assert splits.classes is None


def test_pairs_depend_on_the_seed_in_training_only(numbered):
    zero, again, one = (numbered.load(seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(columns(zero.train), columns(again.train))
    assert (columns(zero.train)[2] != columns(one.train)[2]).any()
    np.testing.assert_array_equal(columns(zero.train)[0], columns(one.train)[0])
    for name in ("validation", "test"):
        ours, theirs = (columns(getattr(splits, name)) for splits in (zero, one))
        np.testing.assert_array_equal(ours, theirs)


def test_a_repeated_segment_is_not_random_where_it_follows(tmp_path):
    """Of the three different segments, only one neither is the first nor follows it."""
    path = tmp_path / "repeated.txt"
    path.write_text("one two red " * 200)
    splits = NextSentencePairs(str(path), segment_length=3).load(seed=0)
    first, second, label = columns(splits.train)
    following = {"one": "two", "two": "red", "red": "one"}
    remaining = {"one": "red", "two": "one", "red": "two"}
    for a, b, is_random in zip(first, second, label, strict=True):
        assert b == (remaining if is_random else following)[a]


def test_segments_are_whole_words_unless_a_word_is_too_long():
    assert cut(" ".join(WORDS[:7]), 18) == ["w0000 w0001 w0002", "w0003 w0004 w0005", "w0006"]
    assert cut("  a  bcd\nef ghijklmno p ", 4) == ["a", "bcd", "ef", "ghij", "klmn", "o p"]


def test_both_segments_are_masked_between_special_tokens(numbered):
    train = numbered.load(seed=0).train
    fitted = MaskedText("characters", max_length=63).fit(train)
    dataset = fitted.apply(train)
    batch = fitted.prepare(dataset.gather(np.arange(len(dataset))), {})
    first, second, label = columns(train)
    np.testing.assert_array_equal(batch["next_sentence_label"], label)
    tokens = {token: fitted.vocabulary.token_to_id(token) for token in ("[CLS]", "[SEP]")}
    for row in range(0, len(dataset), 50):
        size, other = len(first[row]) + 2, len(second[row]) + 1
        ids = fitted.vocabulary.encode(first[row], second[row]).ids
        np.testing.assert_array_equal(batch["label"][row, : size + other], ids)
        assert [ids[0], ids[size - 1], ids[-1]] == [tokens[t] for t in ("[CLS]", "[SEP]", "[SEP]")]
        types = np.repeat([0, 1, 0], [size, other, 63 - size - other])
        np.testing.assert_array_equal(batch["token_types"][row], types)
    special = np.isin(batch["label"], [0, *tokens.values()])
    assert not batch["chosen"][special].any()
    for part in (0, 1):
        chosen = batch["chosen"][~special & (batch["token_types"] == part)]
        assert chosen.mean() == pytest.approx(0.15, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segment_length": 1}, "segment_length must be at least 2, got 1"),
        ({"segment_length": 400}, "at least 3 different segments of up to 400 .*with [12] from"),
        ({"test_fraction": 0.5}, "test_fraction must be above 0 and below 0.5, got 0.5"),
        ({"path": "absent.txt"}, "absent.txt cannot be read: No such file or directory"),
        ({"encoding": "utf-99"}, "utf-99"),
    ],
)
def test_what_cannot_be_cut_is_named(numbered, settings, message):
    with pytest.raises(UserError, match=message):
        NextSentencePairs(**{"path": numbered.path, **settings}).load(seed=0)


def test_the_documentation_of_python_is_the_default():
    splits = NextSentencePairs().load(seed=0)
    assert len(splits.train) > 3000
    assert any("statement" in segment for segment in columns(splits.train)[0])

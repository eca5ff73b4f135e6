import numpy as np
import pytest

from flaxdl.data import ArrayDataset, TextPairs


def dataset(*pairs):
    inputs, label = (np.array(side, dtype=object) for side in zip(*pairs, strict=True))
    return ArrayDataset({"inputs": inputs, "label": label})


@pytest.fixture
def pairs():
    return TextPairs(max_length=4, max_target_length=5).fit(dataset(("aaaa", "bbb"), ("a", "cc")))


def test_the_decoder_reads_what_it_has_to_write_one_token_later(pairs):
    assert pairs.vocabulary.get_vocab() == {
        "<pad>": 0, "<unk>": 1, "<start>": 2, "<end>": 3, "a": 4, "b": 5, "c": 6,
    }  # fmt: skip
    batch = pairs.apply(dataset(("ab", "ccc"), ("a?b", "b"))).arrays()
    np.testing.assert_array_equal(batch["inputs"], [[4, 5, 0, 0], [4, 1, 5, 0]])
    np.testing.assert_array_equal(batch["lengths"], [2, 3])
    np.testing.assert_array_equal(batch["targets"], [[2, 6, 6, 6, 0], [2, 5, 0, 0, 0]])
    np.testing.assert_array_equal(batch["label"], [[6, 6, 6, 3, 0], [5, 3, 0, 0, 0]])
    np.testing.assert_array_equal(batch["target_lengths"], [4, 2])
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    assert pairs.decode(batch["label"]) == ["ccc", "b"]
    assert pairs.vocab_size == 7


def test_a_saved_vocabulary_comes_back(pairs, tmp_path):
    pairs.save(tmp_path)
    restored = TextPairs(max_length=4, max_target_length=5).restore(tmp_path)
    assert restored.vocabulary.to_str() == pairs.vocabulary.to_str()
    read = restored.read(["cab"], {"inputs": (4,)})
    np.testing.assert_array_equal(read["inputs"], [[6, 4, 5, 0]])
    assert read.keys() == {"inputs", "lengths"}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("aaaaa", "b"), "inputs must have between 1 and 4 .* got 'aaaaa' with 5; .*max-length"),
        (("a", "bbbbb"), "label must have between 1 and 4 .* got 'bbbbb' .*max-target-length"),
        (("", "b"), "inputs must have between 1 and 4 characters, got '' with 0"),
    ],
)
def test_nothing_is_cut_off(pairs, pair, message):
    with pytest.raises(ValueError, match=message):
        pairs.apply(dataset(pair))

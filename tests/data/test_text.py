import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxdl.data import ArrayDataset, Splits, Text
from flaxdl.data.vocabulary import encode_batch

TEXTS = ["banana", "bán", "anna\nb"]


def dataset(texts=TEXTS):
    return ArrayDataset(
        {
            "inputs": np.array(texts, dtype=object),
            "label": np.arange(len(texts), dtype=np.int32),
        }
    )


def test_characters_are_numbered_by_frequency():
    text = Text(max_length=8).fit(dataset(["aaaaa", "bbbb", "nnn\n\n"]))
    assert text.vocab_size == 6
    assert text.vocabulary.get_vocab() == {"<pad>": 0, "<unk>": 1, "a": 2, "b": 3, "n": 4, "\n": 5}
    np.testing.assert_array_equal(text.encode(["ban"])["inputs"], [[3, 2, 4, 0, 0, 0, 0, 0]])
    encoded = text.encode(["ban", "b"])
    np.testing.assert_array_equal(encoded["lengths"], [3, 1])
    assert encoded["inputs"].dtype == encoded["lengths"].dtype == np.int32


def test_apply_keeps_labels_and_encodes_every_split():
    text = Text(max_length=8).fit(dataset())
    splits = Splits(dataset(), None, dataset(["nab"]), classes=None).map(text.apply)
    batch = splits.train.gather(np.array([2, 0]))
    np.testing.assert_array_equal(batch["label"], [2, 0])
    np.testing.assert_array_equal(batch["lengths"], [6, 6])
    assert splits.test.arrays()["inputs"].shape == (1, 8)
    assert text.decode(batch["inputs"]) == ["anna\nb", "banana"]


def test_unknown_characters_and_truncation():
    text = Text(max_length=4).fit(dataset())
    encoded = text.read(["b世n", "bananas"], {"inputs": (4,)})
    b, n = (text.vocabulary.token_to_id(character) for character in "bn")
    np.testing.assert_array_equal(encoded["inputs"][0], [b, 1, n, 0])
    np.testing.assert_array_equal(encoded["lengths"], [3, 4])
    assert text.decode(encoded["inputs"])[1] == "bana"


def test_both_spellings_of_an_accent_are_one():
    text = Text(max_length=8).fit(dataset())
    np.testing.assert_array_equal(
        text.encode(["bán"])["inputs"], text.encode([unicodedata.normalize("NFD", "bán")])["inputs"]
    )


def test_words_are_limited_to_the_most_frequent():
    texts = ["the cat saw the dog", "The cat sat"]
    text = Text("words", max_length=6, max_vocabulary=4, lowercase=True).fit(dataset(texts))
    assert set(text.vocabulary.get_vocab()) == {"<pad>", "<unk>", "the", "cat"}
    the, cat = (text.vocabulary.token_to_id(word) for word in ("the", "cat"))
    np.testing.assert_array_equal(
        text.encode(["The  dog the CAT"])["inputs"], [[the, 1, the, cat, 0, 0]]
    )


def test_the_vocabulary_is_learnt_the_same_every_time():
    fitted = [Text().fit(dataset()).vocabulary.to_str() for _ in range(3)]
    assert len(set(fitted)) == 1


def test_a_saved_tokenizer_comes_back(tmp_path):
    text = Text(max_length=8).fit(dataset())
    text.save(tmp_path)
    restored = Text(max_length=8).restore(tmp_path)
    assert restored.vocabulary.to_str() == text.vocabulary.to_str()
    from_file = Text(str(tmp_path / "tokenizer.json"), max_length=3).fit(dataset(["other"]))
    np.testing.assert_array_equal(
        from_file.encode(["banana"])["inputs"], text.encode(["banana"])["inputs"][:, :3]
    )


@given(st.lists(st.text("abn", min_size=1, max_size=8), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_decoding_undoes_encoding(texts):
    text = Text(max_length=8).fit(dataset())
    assert text.decode(text.encode(texts)["inputs"]) == texts


def test_texts_without_tokens_are_refused():
    with pytest.raises(
        ValueError, match=r"each text must have at least one token, but text 2 of \d+ has none: ''"
    ):
        Text().fit(dataset()).encode(["a", ""])


def test_texts_that_are_cut_are_told(caplog):
    text = Text(max_length=4).fit(dataset())
    assert text.encode(["ban", "bana", "banan", "banana"])["lengths"].tolist() == [3, 4, 4, 4]
    assert caplog.messages == ["2 of 4 texts are longer than max_length = 4 and are truncated"]
    text.encode(["bana"])
    assert len(caplog.messages) == 1


def test_many_texts_are_encoded_in_chunks(monkeypatch, caplog):
    counts = []

    def counted(vocabulary, rows):
        counts.append(len(rows))
        return encode_batch(vocabulary, rows)

    monkeypatch.setattr("flaxdl.data.text.encode_batch", counted)
    texts = ["abn"[: 1 + number % 3] * (1 + number % 4) for number in range(2500)]
    text = Text(max_length=8).fit(dataset())
    batch = text.encode(texts)
    assert counts == [1024, 1024, 452]
    assert text.decode(batch["inputs"]) == [one[:8] for one in texts]
    np.testing.assert_array_equal(batch["lengths"], [min(len(one), 8) for one in texts])
    cut = sum(len(one) > 8 for one in texts)
    assert caplog.messages == [
        f"{cut:,} of 2,500 texts are longer than max_length = 8 and are truncated"
    ]
    pairs = text.encode(texts[::-1], texts)
    np.testing.assert_array_equal(
        pairs["inputs"][1500], text.encode([texts[999]], [texts[1500]])["inputs"][0]
    )
    with pytest.raises(ValueError, match=r"text 2001 of 2500 has none: ''"):
        text.encode([*texts[:2000], "", *texts[2001:]])
    with pytest.raises(ValueError, match="as many texts as the first texts, got 1 and 2"):
        text.encode(["a", "b"], ["a"])


def test_unknown_and_broken_tokenizers_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer must be 'characters', .* got 'letters'"):
        Text("letters").fit(dataset())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        Text(str(tmp_path / "tokenizer.json")).fit(dataset())
    with pytest.raises(ValueError, match=r"absent.tokenizer\.json"):
        Text().restore(tmp_path / "absent")

"""Masked texts: fractions of masks, whole words, and masks of evaluation that are fixed."""

import dataclasses
import math
from collections import Counter
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxdl.data import ArrayDataset, MaskedText, Text
from flaxdl.data.masked_text import mask_tokens, text_numbers
from flaxdl.errors import UserError

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##believ", "##able", "cats", "sat"]
TEXTS = ["unbelievable cats sat", "cats sat", "sat zebra unable", "cats unbelievable"]


HALF = partial(
    mask_tokens, fraction=0.5, mask_token=4, replacements=np.arange(5, 9, dtype=np.int32)
)
COMPILED = jax.jit(HALF)


def dataset(texts, **fields):
    return ArrayDataset({"inputs": np.array(texts, dtype=object), **fields})


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n")
    return str(path)


@pytest.fixture
def characters():
    """1,000 texts of 1 to 30 letters, masked once."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefghij"), size)) for size in rng.integers(1, 31, 1000)]
    text = MaskedText("characters", max_length=32).fit(dataset(texts))
    return text, text.apply(dataset(texts)).arrays()


def assert_fraction(count, total, probability):
    """Within 4.5 standard deviations of the binomial distribution."""
    deviation = math.sqrt(total * probability * (1 - probability))
    assert abs(count - total * probability) < 4.5 * deviation


def assert_bert_statistics(text, batch):
    tokens, inputs, chosen = (np.asarray(batch[name]) for name in ("label", "inputs", "chosen"))
    special = {text.vocabulary.token_to_id(x) for x in ("<pad>", "<unk>", "[CLS]", "[SEP]")}
    special.add(mask := text.vocabulary.token_to_id("[MASK]"))
    is_ordinary = ~np.isin(tokens, list(special))
    is_real = np.arange(tokens.shape[1]) < batch["lengths"][:, None]
    assert not (chosen & ~is_ordinary).any()
    assert not (chosen & ~is_real).any()
    np.testing.assert_array_equal(inputs[~chosen], tokens[~chosen])
    assert_fraction(chosen.sum(), is_ordinary.sum(), 0.15)
    count = chosen.sum()
    is_mask = inputs[chosen] == mask
    drawn = inputs[chosen][~is_mask]
    assert not np.isin(drawn, list(special)).any()
    ordinary = len(text.vocabulary.get_vocab()) - len(special)
    same = (inputs[chosen] == tokens[chosen]).sum()
    assert_fraction(is_mask.sum(), count, 0.8)
    assert_fraction(same, count, 0.1 + 0.1 / ordinary)
    changed = Counter(drawn[drawn != tokens[chosen][~is_mask]].tolist())
    assert len(changed) == ordinary
    for times in changed.values():
        assert_fraction(times, changed.total(), 1 / ordinary)


@pytest.mark.quick
def test_evaluation_masks_as_bert(characters):
    text, arrays = characters
    batch = text.prepare(arrays, {})
    assert_bert_statistics(text, batch)
    assert {name: str(x.dtype) for name, x in batch.items()} == {
        "inputs": "int32",
        "lengths": "int32",
        "label": "int32",
        "chosen": "bool",
    }


def test_training_masks_as_bert_and_differently_in_each_step(characters):
    text, arrays = characters
    batch = text.prepare(arrays, {})
    augment = jax.jit(text.augment_batch)
    found = [augment(batch, jax.random.key(seed)) for seed in (0, 1, 0)]
    assert_bert_statistics(text, found[0])
    assert found[0].keys() == batch.keys()
    assert {str(x.dtype) for x in found[0].values()} == {"int32", "bool"}
    np.testing.assert_array_equal(found[0]["inputs"], found[2]["inputs"])
    np.testing.assert_array_equal(found[0]["label"], found[1]["label"])
    both = found[0]["chosen"] & found[1]["chosen"]
    assert 0.1 < both.sum() / found[0]["chosen"].sum() < 0.2  # independent: 15 %


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.booleans())
def test_numpy_and_jax_mask_the_same(seed, has_words):
    rng, length = np.random.default_rng(seed), 7
    tokens = rng.integers(0, 9, (3, length), dtype=np.int32)
    numbers = rng.random((3, 3, length), np.float32)
    options = {
        "candidates": rng.random((3, length)) < 0.8,
        "words": rng.integers(0, length, (3, length), dtype=np.int32) if has_words else None,
    }
    ours = HALF(tokens, numbers, **options)
    theirs = COMPILED(tokens, numbers, **options)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    for row in range(3):  # the definition, one token at a time
        for t in range(length):
            choice, kind, replacement = numbers[:, row, t]
            if has_words:
                choice = numbers[0, row, options["words"][row, t]]
            expected = tokens[row, t]
            if chosen := options["candidates"][row, t] and choice < 0.5:
                if kind < 0.8:
                    expected = 4
                elif kind < 0.9:
                    expected = 5 + int(replacement * 4)
            assert ours[1][row, t] == chosen
            assert ours[0][row, t] == expected


def test_the_masks_of_a_text_do_not_depend_on_its_batch(characters):
    text, arrays = characters
    whole = text.prepare(arrays, {})
    rows = np.array([7, 3, 500])
    part = {name: array[rows, ...] for name, array in arrays.items()}
    longest = part["lengths"].max()
    cut = part | {"inputs": part["inputs"][:, :longest]}
    for name, array in text.prepare(cut, {}).items():
        np.testing.assert_array_equal(array, whole[name][rows][..., : array.shape[-1]])


def test_numbers_of_texts_are_uniform_and_independent():
    tokens = np.arange(4000, dtype=np.int32).reshape(400, 10) % 7
    lengths = np.full(400, 10)
    tokens[:, 0] = np.arange(400)  # texts that differ in one token
    numbers = text_numbers(tokens, lengths)
    assert numbers.shape == (3, 400, 10)
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    for count in counts:
        assert_fraction(count, numbers.size, 0.1)
    correlations = np.corrcoef(numbers.transpose(0, 2, 1).reshape(30, 400)) - np.eye(30)
    assert np.abs(correlations).max() < 5 / math.sqrt(400)
    assert len(np.unique(numbers)) == numbers.size
    neighbors = numbers[:, 1:] - numbers[:, :-1]
    assert np.abs(neighbors.mean()) < 0.02


def test_whole_words_are_chosen_together(vocabulary):
    text = MaskedText(vocabulary, max_length=16, whole_words=True).fit(dataset(TEXTS))
    arrays = text.apply(dataset(TEXTS * 500)).arrays()
    np.testing.assert_array_equal(arrays["words"][0, :7], [0, 1, 1, 1, 2, 3, 4])
    batch = jax.jit(text.augment_batch)(text.prepare(arrays, {}), jax.random.key(0))
    chosen, words = np.asarray(batch["chosen"]), arrays["words"]
    unknown = text.vocabulary.token_to_id("[UNK]")
    assert (arrays["inputs"] == unknown).sum() == 500  # zebra
    is_candidate = arrays["inputs"] > 4
    picked = total = 0
    for row in range(len(chosen)):
        for word in np.unique(words[row][is_candidate[row]]):
            found = chosen[row][(words[row] == word) & is_candidate[row]]
            assert found.all() or not found.any()
            picked, total = picked + found[0], total + 1
    assert_fraction(picked, total, 0.15)
    assert not chosen[~is_candidate].any()
    # Pieces are masked independently: 80 % each.
    kinds = np.asarray(batch["inputs"])[:, 1:4][chosen[:, 1:4].all(1) & (words[:, 3] == 1)]
    assert 0 < (kinds == 4).all(1).mean() < 0.8


def test_words_of_pairs_and_of_buckets(vocabulary):
    text = MaskedText(vocabulary, max_length=16, whole_words=True, bucket_lengths=(8,))
    pairs = dataset(["cats sat"], pair=np.array(["unable sat"], dtype=object))
    arrays = text.fit(pairs).apply(pairs).batch(np.array([0]), np.array([0]))
    # [CLS] cats sat [SEP] un ##able sat [SEP]
    np.testing.assert_array_equal(arrays["words"], [[0, 1, 2, 3, 4, 4, 5, 6]])
    np.testing.assert_array_equal(arrays["token_types"], [[0, 0, 0, 0, 1, 1, 1, 1]])


def test_context_is_not_chosen():
    texts = ["abcdefgh"] * 200
    data = dataset(texts, burn_in=np.full(200, 5, np.int32))
    text = MaskedText("characters", max_length=10, mask_fraction=0.5).fit(data)
    batch = text.prepare(text.apply(data).arrays(), {})
    drawn = jax.jit(text.augment_batch)(batch, jax.random.key(0))
    np.testing.assert_array_equal(batch["burn_in"], 6)  # five characters after [CLS]
    for chosen in (batch["chosen"], np.asarray(drawn["chosen"])):
        assert not chosen[:, :6].any()
    assert_fraction(drawn["chosen"].sum(), 200 * 3, 0.5)


def test_a_learned_vocabulary_has_special_tokens_and_is_stored(tmp_path):
    data = dataset(["bab", "b"])
    text = MaskedText("characters", max_length=8).fit(data)
    assert text.vocabulary.get_vocab() == {
        "<pad>": 0,
        "<unk>": 1,
        "[CLS]": 2,
        "[SEP]": 3,
        "[MASK]": 4,
        "b": 5,
        "a": 6,
    }
    encoded = text.encode(["ab"])
    np.testing.assert_array_equal(encoded["inputs"], [[2, 6, 5, 3, 0, 0, 0, 0]])
    assert text.decode(encoded["inputs"]) == ["ab"]
    text.save(tmp_path)
    unfitted = MaskedText("characters", max_length=8)
    restored = unfitted.restore(tmp_path)
    assert restored == text
    batches = [one.prepare(one.apply(data).arrays(), {}) for one in (text, restored)]
    jax.tree.map(np.testing.assert_array_equal, *batches)
    plain = Text("characters", max_length=8)
    assert plain.fit(data).vocabulary.token_to_id("[MASK]") is None
    reused = dataclasses.replace(plain, tokenizer=str(tmp_path)).fit(data)
    np.testing.assert_array_equal(reused.encode(["ab"])["inputs"], encoded["inputs"])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0, math.nan, "a", True])
def test_a_wrong_fraction_is_named(fraction):
    with pytest.raises(UserError, match="mask_fraction must be a number above 0 and below 1, got"):
        MaskedText(mask_fraction=fraction)


def test_whole_words_is_a_truth_value():
    with pytest.raises(UserError, match="whole_words must be True or False, got 1"):
        MaskedText(whole_words=1)


@pytest.mark.parametrize("kind", ["characters", "words"])
def test_whole_words_need_pieces(kind):
    message = f"whole_words needs a pretrained tokenizer, .* got the learned vocabulary '{kind}'"
    with pytest.raises(UserError, match=message):
        MaskedText(kind, whole_words=True).fit(dataset(TEXTS))


def test_a_tokenizer_without_a_mask_is_named(tmp_path):
    data = dataset(["ab"])
    Text("characters").fit(data).save(tmp_path)
    message = rf"needs a tokenizer with the token \[MASK\], but '{tmp_path}' has none"
    with pytest.raises(UserError, match=message):
        MaskedText(str(tmp_path)).fit(data)

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxdl.data import ArrayDataset, Text, evaluation_batches, take_fraction, training_batches
from flaxdl.data.text import TokenDataset

SIZES = (4, 8, 16)


def tokens(lengths):
    """Texts of the given lengths; the label is the number of the text."""
    lengths = np.array(lengths, np.int32)
    inputs = np.where(np.arange(SIZES[-1]) < lengths[:, None], 7, 0).astype(np.int32)
    label = np.arange(len(lengths), dtype=np.int32)
    arrays = {"inputs": inputs, "lengths": lengths, "token_types": inputs, "label": label}
    return TokenDataset(arrays, sizes=SIZES)


def some(count, seed=0):
    return tokens(np.random.default_rng(seed).geometric(0.2, count).clip(1, SIZES[-1]))


def take(count, dataset, **settings):
    stream = training_batches(dataset, Text(), **{"batch_size": 8, "seed": 3} | settings)
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches


def assert_trimmed(batch, longest=None):
    """The batch has the smallest size that holds its longest text."""
    longest = longest or batch["lengths"].max()
    size = min(size for size in SIZES if size >= longest)
    assert batch["inputs"].shape == batch["token_types"].shape == (len(batch["label"]), size)
    np.testing.assert_array_equal((batch["inputs"] > 0).sum(1), batch["lengths"])


@given(st.lists(st.integers(1, SIZES[-1]), min_size=8, max_size=60), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_batches_hold_each_text_once_and_whole(lengths, batch_size):
    dataset = tokens(lengths)
    steps = len(lengths) // batch_size
    batches = take(2 * steps, dataset, batch_size=batch_size)
    for epoch in (batches[:steps], batches[steps:]):
        seen = np.concatenate([batch["label"] for batch in epoch])
        assert len(set(seen)) == steps * batch_size
    evaluated = list(evaluation_batches(dataset, Text(), batch_size=batch_size))
    counted = np.concatenate([batch["label"][batch["weight"] > 0] for batch in evaluated])
    assert sorted(counted) == list(range(len(lengths)))
    for batch in batches + evaluated:
        assert_trimmed(batch)
        np.testing.assert_array_equal(batch["lengths"], np.array(lengths)[batch["label"]])


@pytest.mark.parametrize("processes", [2, 4])
def test_every_process_has_the_same_shapes(processes):
    dataset = some(83)
    alone = take(12, dataset)
    rows = np.split(np.arange(8), processes)
    shares = [take(12, dataset, rows=part) for part in rows]
    for step, batch in enumerate(alone):
        for name, array in batch.items():
            joined = np.concatenate([share[step][name] for share in shares])
            np.testing.assert_array_equal(joined, array)
        for share in shares:
            assert_trimmed(share[step], longest=batch["lengths"].max())
    evaluated = [
        list(evaluation_batches(dataset, Text(), batch_size=8, rows=part)) for part in rows
    ]
    for batches in zip(*evaluated, strict=True):
        assert len({batch["inputs"].shape for batch in batches}) == 1


@pytest.mark.parametrize("start", [1, 9, 10, 13])
def test_a_resumed_stream_is_the_tail_of_the_whole(start):
    whole = take(16, some(83))
    for batch, other in zip(
        take(16 - start, some(83), start_step=start), whole[start:], strict=True
    ):
        np.testing.assert_array_equal(batch["label"], other["label"])


def test_seeds_and_epochs_differ_and_long_texts_come_at_any_time():
    dataset = some(800)
    orders = [np.concatenate([b["label"] for b in take(100, dataset, seed=s)]) for s in (1, 1, 2)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    batches = take(200, dataset)
    assert [b["label"][0] for b in batches[:100]] != [b["label"][0] for b in batches[100:]]
    widths = np.array([batch["inputs"].shape[1] for batch in batches])
    assert set(widths) == set(SIZES)
    assert abs(np.corrcoef(widths[:100], np.arange(100))[0, 1]) < 0.3


def test_parts_of_the_data_keep_their_lengths():
    dataset = take_fraction(some(200), 0.5, seed=0)
    np.testing.assert_array_equal(dataset.lengths(), dataset.arrays()["lengths"])
    for batch in take(12, dataset):
        assert_trimmed(batch)
    assert pickle.loads(pickle.dumps(dataset)).lengths().sum() == dataset.lengths().sum()


def test_text_makes_such_batches():
    texts = np.array(["a" * (1 + number % 12) for number in range(60)], object)
    raw = ArrayDataset({"inputs": texts, "label": np.zeros(60, np.int32)})
    text = Text(max_length=16, bucket_lengths=(4, 8)).fit(raw)
    batches = take(7, text.apply(raw))
    assert {batch["inputs"].shape[1] for batch in batches} == {4, 8, 16}
    assert text.apply(raw).gather(np.arange(3))["inputs"].shape == (3, 16)
    plain = Text(max_length=16).fit(raw).apply(raw)
    assert {batch["inputs"].shape[1] for batch in take(7, plain)} == {16}


def test_little_is_wasted():
    dataset = some(2000)
    plain = 1 - dataset.lengths().mean() / SIZES[-1]
    batches = take(250, dataset)
    real = sum(batch["lengths"].sum() for batch in batches)
    wasted = 1 - real / sum(batch["inputs"].size for batch in batches)
    assert plain > 0.65
    assert wasted < 0.35


@pytest.mark.parametrize("lengths", [(8, 4), (4, 4), (0, 4), (4, 64), (100,)])
def test_lengths_grow_up_to_the_longest(lengths):
    with pytest.raises(
        ValueError, match=r"bucket_lengths must be increasing, at least 1 and below max_length"
    ):
        Text(bucket_lengths=lengths)

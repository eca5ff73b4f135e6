"""Balanced sampling: how often each example is drawn, and the same order after resuming."""

import itertools

import numpy as np
import pytest
from helpers.small_runs import small_config

from flaxdl.data import ArrayDataset, Transform, training_batches
from flaxdl.data.balanced_sampling import balanced_labels, balanced_order
from flaxdl.data.text import TokenDataset
from flaxdl.errors import UserError
from flaxdl.runs.setup import set_up

pytestmark = pytest.mark.quick

# 60 examples of class 0, 25 of class 2, 3 of class 3 and 2 of class 4; none of class 1.
CLASSES = np.random.default_rng(0).permutation(np.repeat([0, 2, 3, 4], [60, 25, 3, 2]))
DATASET = ArrayDataset({"inputs": np.arange(90), "label": CLASSES.astype(np.int32)})


def first(count, *args, **settings):
    stream = training_batches(*args, **settings)
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches


def drawn(start, count, **settings):
    settings = {"batch_size": 8, "seed": 3, "classes": CLASSES} | settings
    return first(count, DATASET, Transform(), start_step=start, **settings)


@pytest.mark.parametrize("count", [1, 3, 90, 91, 400])
def test_classes_and_their_examples_are_drawn_equally_often(count):
    order = balanced_order(CLASSES, count, np.random.default_rng(1))
    assert order.shape == (count,)
    of_classes = np.bincount(CLASSES[order], minlength=5)[[0, 2, 3, 4]]
    assert of_classes.max() - of_classes.min() == (count % 4 > 0)
    times = np.bincount(order, minlength=90)
    for number in (0, 2, 3, 4):
        assert np.ptp(times[number == CLASSES]) <= 1


def test_the_remainder_does_not_favor_a_class():
    rng = np.random.default_rng(0)
    counts = sum(np.bincount(CLASSES[balanced_order(CLASSES, 5, rng)]) for _ in range(400))
    np.testing.assert_allclose(counts[[0, 2, 3, 4]], 500, atol=50)


def test_an_epoch_has_the_same_number_of_steps_and_is_balanced_as_a_whole():
    batches = drawn(0, 22)  # two epochs of 11 steps
    epochs = [np.concatenate([b["inputs"] for b in batches[e : e + 11]]) for e in (0, 11)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.bincount(CLASSES[epoch])[[0, 2, 3, 4]], 22)
    assert not np.array_equal(*epochs)
    assert len(set(np.concatenate(epochs)[CLASSES[np.concatenate(epochs)] == 0])) > 22


@pytest.mark.parametrize("start", [1, 7, 12])
@pytest.mark.parametrize("copies", [1, 4])
def test_the_order_is_the_same_after_resuming(start, copies):
    whole = drawn(0, 16, copies=copies)
    for batch, expected in zip(drawn(start, 16 - start, copies=copies), whole[start:], strict=True):
        np.testing.assert_array_equal(batch["inputs"], expected["inputs"])


def test_processes_share_the_batches():
    whole = drawn(0, 3)
    for rows in (np.arange(4), np.arange(4, 8)):
        for batch, part in zip(whole, drawn(0, 3, rows=rows), strict=True):
            np.testing.assert_array_equal(part["inputs"], batch["inputs"][rows])


def test_examples_are_batched_by_length_as_without():
    lengths = np.where(CLASSES == 0, 5, 2)
    tokens = np.ones((90, 8), np.int32)
    arrays = {"inputs": tokens, "lengths": lengths, "label": CLASSES}
    dataset = TokenDataset(arrays, sizes=(2, 8))
    batches = first(11, dataset, Transform(), batch_size=8, seed=0, classes=CLASSES)
    counts = sum(np.bincount(b["label"], minlength=5) for b in batches)
    np.testing.assert_array_equal(counts, [22, 0, 22, 22, 22])
    assert {b["inputs"].shape[1] for b in batches} == {2, 8}


class Unread(ArrayDataset):
    def labels(self):
        return None


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Unread({"inputs": np.arange(3)}), "known without reading every example"),
        (
            ArrayDataset({"inputs": np.arange(3), "label": np.ones((3, 2))}),
            r"one integer class number per example as label, got float64 \[3, 2\]",
        ),
    ],
)
def test_labels_that_cannot_be_balanced_are_refused(dataset, message):
    with pytest.raises(UserError, match=message):
        balanced_labels(dataset)


def test_a_config_asks_for_it():
    setup = set_up(small_config(balanced_sampling=True))
    stream = setup.training_batches()
    batches = [next(stream)["label"] for _ in range(setup.steps_per_epoch)]
    stream.close()
    np.testing.assert_array_equal(np.bincount(np.concatenate(batches)), [16] * 4)


def test_without_it_the_order_is_what_it_was():
    stream = training_batches(DATASET, Transform(), batch_size=8, seed=3)
    found = np.concatenate([next(stream)["inputs"] for _ in range(11)])
    stream.close()
    np.testing.assert_array_equal(found, np.random.default_rng((3, 0, 0)).permutation(90)[:88])

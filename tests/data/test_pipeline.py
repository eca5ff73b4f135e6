import itertools
import threading
import time

import numpy as np
import pytest

from flaxdl.data import (
    ArrayDataset,
    Images,
    Transform,
    TrivialAugmentWide,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from flaxdl.data.pipeline import evaluation_order

pytestmark = pytest.mark.quick

AUGMENT = Images(crop_padding=2, flip=True, rotation=15.0)


def images(count):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return ArrayDataset({"inputs": pixels, "label": np.arange(count, dtype=np.int32)})


def first(count, *args, **kwargs):
    stream = training_batches(*args, **kwargs)
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_an_epoch_shows_every_example_once_and_drops_the_rest():
    batches = first(6, images(23), Transform(), batch_size=7, seed=5)  # two epochs of 3 steps
    epochs = [np.concatenate([b["label"] for b in batches[e : e + 3]]) for e in (0, 3)]
    for epoch in epochs:
        assert len(set(epoch)) == 21
    assert list(epochs[0]) != list(epochs[1])


def test_the_order_is_the_permutation_of_seed_and_epoch():
    batches = first(4, images(8), Transform(), batch_size=4, seed=9)
    labels = np.concatenate([batch["label"] for batch in batches])
    orders = [np.random.default_rng((9, epoch, 0)).permutation(8) for epoch in (0, 1)]
    np.testing.assert_array_equal(labels, np.concatenate(orders))


class OfLengths(ArrayDataset):
    """Examples that are evaluated by length."""

    def lengths(self):
        return np.array([3, 1, 2, 1, 3])


def test_the_order_of_evaluation_is_known():
    dataset = OfLengths({"inputs": np.arange(5), "label": np.arange(5)})
    batches = list(evaluation_batches(dataset, Transform(), batch_size=2))
    found = np.concatenate([batch["inputs"][batch["weight"] > 0] for batch in batches])
    np.testing.assert_array_equal(found, [1, 3, 2, 0, 4])
    np.testing.assert_array_equal(evaluation_order(dataset), found)
    np.testing.assert_array_equal(evaluation_order(images(3)), [0, 1, 2])


def test_the_first_batches_come_over_and_over_with_the_same_draws():
    settings = {"batch_size": 4, "seed": 9}
    endless = first(3, images(8), AUGMENT, **settings)  # an epoch is two steps
    repeated = first(7, images(8), AUGMENT, repeat=3, **settings)
    assert_same(repeated, [*endless, *endless, endless[0]])
    assert_same(first(2, images(8), AUGMENT, repeat=3, start_step=4, **settings), endless[1:])


def test_batches_have_fixed_shapes_and_weight_one():
    for batch in first(5, images(23), AUGMENT, batch_size=7, seed=5):
        assert batch["inputs"].shape == (7, 6, 6, 3)
        assert batch["inputs"].dtype == np.uint8
        assert batch["weight"].dtype == np.float32
        np.testing.assert_array_equal(batch["weight"], np.ones(7))


def test_the_same_seed_gives_the_same_stream_and_another_another():
    runs = [first(4, images(20), AUGMENT, batch_size=8, seed=seed) for seed in (1, 1, 2)]
    assert_same(runs[0], runs[1])
    assert not np.array_equal(runs[0][0]["label"], runs[2][0]["label"])


@pytest.mark.parametrize("start", [1, 2, 3, 7])
def test_a_resumed_stream_is_the_tail_of_the_whole(start):
    whole = first(9, images(20), AUGMENT, batch_size=8, seed=1)
    assert_same(
        first(9 - start, images(20), AUGMENT, batch_size=8, seed=1, start_step=start), whole[start:]
    )


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_shares_of_all_processes_are_the_batch_of_one(processes):
    alone = first(4, images(20), AUGMENT, batch_size=8, seed=1)
    # Every n-th row, as the devices of a process may lie anywhere in the mesh.
    for rows in np.arange(8).reshape(-1, processes).T:
        share = first(4, images(20), AUGMENT, batch_size=8, seed=1, rows=rows)
        for ours, batch in zip(share, alone, strict=True):
            for name, array in batch.items():
                np.testing.assert_array_equal(ours[name], array[rows])


def test_epochs_are_augmented_differently():
    one = ArrayDataset({"inputs": images(1).arrays()["inputs"]})
    batches = first(8, one, AUGMENT, batch_size=1, seed=0)
    assert len({batch["inputs"].tobytes() for batch in batches}) == 8


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 7, 8, 17])
def test_evaluation_counts_every_example_exactly_once(processes, count):
    dataset = images(count)
    streams = [
        list(evaluation_batches(dataset, Transform(), batch_size=8, rows=rows))
        for rows in np.split(np.arange(8), processes)
    ]
    seen = []
    for shares in zip(*streams, strict=True):
        label = np.concatenate([share["label"] for share in shares])
        weight = np.concatenate([share["weight"] for share in shares])
        assert label.shape == weight.shape == (8,)
        assert set(weight) <= {0, 1}
        seen += list(label[weight == 1])
    assert seen == list(range(count))


def test_closing_the_stream_ends_its_threads():
    before = set(threading.enumerate())
    stream = training_batches(images(20), AUGMENT, batch_size=4, seed=0)
    next(stream)
    started = set(threading.enumerate()) - before
    assert started
    stream.close()
    for thread in started:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_batches_are_prepared_ahead():
    gathered = []

    class Watched(ArrayDataset):
        def gather(self, indices):
            gathered.append(len(indices))
            return super().gather(indices)

    stream = training_batches(Watched(images(20).arrays()), Transform(), batch_size=4, seed=0)
    next(stream)
    deadline = time.monotonic() + 5
    while len(gathered) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    stream.close()
    assert len(gathered) >= 3


def test_an_error_while_a_batch_is_made_reaches_the_caller():
    class Broken(ArrayDataset):
        def gather(self, indices):
            raise ValueError("labels must be in 0..9")

    with pytest.raises(ValueError, match=r"labels must be in 0\.\.9"):
        next(training_batches(Broken({"inputs": np.zeros(4)}), Transform(), batch_size=2, seed=0))


def test_steps_per_epoch():
    assert [steps_per_epoch(n, 4) for n in (4, 7, 8)] == [1, 1, 2]
    for batch_size in (0, 11):
        with pytest.raises(
            ValueError, match=rf"batch_size .* 10, .* training examples, got {batch_size}"
        ):
            steps_per_epoch(10, batch_size)


def test_an_empty_evaluation_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluation_batches(images(20), Transform(), batch_size=0)


def test_gathering_small_images_is_fast():
    pixels = np.zeros((20_000, 32, 32, 3), np.uint8)
    dataset = ArrayDataset({"inputs": pixels, "label": np.zeros(20_000, np.int32)})
    order = np.random.default_rng(0).permutation(20_000)
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        for step in range(0, 20_000, 250):
            dataset.gather(order[step : step + 250])
        rates.append(20_000 / (time.perf_counter() - start))
    assert max(rates) > 300_000  # examples a second; 3 million on an idle core


def test_inputs_without_weight_are_finite():
    inputs = np.arange(12, dtype=np.float32).reshape(6, 2)
    inputs[2] = np.nan, -np.inf
    weight = np.array([1, 1, 0, 1, 0, 1], np.float32)
    dataset = ArrayDataset({"inputs": inputs, "weight": weight})
    (batch,) = evaluation_batches(dataset, Transform(), batch_size=6)
    np.testing.assert_array_equal(batch["inputs"][2], [0, 0])
    np.testing.assert_array_equal(np.delete(batch["inputs"], 2, 0), np.delete(inputs, 2, 0))
    np.testing.assert_array_equal(batch["weight"], weight)
    assert np.isnan(inputs[2, 0])  # the dataset's own array is as it was


def test_weights_of_examples_count_in_training_only():
    weight = np.array([0, 0.5, 1, 3, 0.5, 2], np.float32)
    dataset = ArrayDataset({"inputs": np.arange(6), "weight": weight})
    (batch,) = first(1, dataset, Transform(), batch_size=6, seed=0)
    np.testing.assert_array_equal(batch["weight"], weight[batch["inputs"]])
    batches = list(evaluation_batches(dataset, Transform(), batch_size=4))
    found = np.concatenate([batch["weight"] for batch in batches])
    np.testing.assert_array_equal(found, [0, 1, 1, 1, 1, 1, 0, 0])


def sampled_by_torchvision(order, replicas, copies):
    """The global batches' order of the `RASampler` in torchvision's references/classification."""
    indices = [index for index in order for _ in range(copies)]
    count = -(-len(order) * copies // replicas)
    indices += indices[: count * replicas - len(indices)]
    selected = len(order) // 256 * 256 // replicas
    return [indices[rank::replicas][:selected] for rank in range(replicas)]


@pytest.mark.parametrize(
    ("batch_size", "copies", "replicas"), [(32, 4, 8), (64, 2, 4), (128, 4, 1)]
)
def test_repeated_augmentation_draws_the_examples_of_torchvisions_sampler(
    batch_size, copies, replicas
):
    per_epoch, share = 600 // batch_size, batch_size // replicas
    settings = {"batch_size": batch_size, "seed": 9, "copies": copies}
    batches = first(2 * per_epoch, images(600), Transform(), **settings)
    for epoch in (0, 1):
        order = np.random.default_rng((9, epoch, 0)).permutation(600)
        ranks = sampled_by_torchvision(order, replicas, copies)
        for step in range(512 // batch_size):  # the sampler leaves out what does not fill 256
            theirs = np.concatenate([rank[step * share :][:share] for rank in ranks])
            ours = batches[epoch * per_epoch + step]["label"]
            np.testing.assert_array_equal(sorted(ours), sorted(theirs))


def test_copies_of_an_example_are_in_one_batch_on_different_devices_and_augmented_differently():
    batches = first(6, images(50), AUGMENT, batch_size=16, seed=2, copies=4)  # three steps an epoch
    for batch in batches:
        np.testing.assert_array_equal(batch["label"], np.tile(batch["label"][:4], 4))
        assert len(set(batch["label"])) == 4
        assert len({image.tobytes() for image in batch["inputs"]}) > 12
        np.testing.assert_array_equal(batch["weight"], np.ones(16))
    epochs = [np.concatenate([b["label"][:4] for b in batches[e : e + 3]]) for e in (0, 3)]
    assert [len(set(epoch)) for epoch in epochs] == [12, 12]
    assert set(epochs[0]) != set(epochs[1])


@pytest.mark.parametrize("start", [1, 2, 3, 7])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_repeated_augmentation_is_the_same_after_resuming_and_in_several_processes(
    start, processes
):
    augment = Images(crop_padding=1, flip=True, augment=TrivialAugmentWide())
    settings = {"batch_size": 8, "seed": 1, "copies": 2}
    whole = first(9, images(20), augment, **settings)[start:]
    for rows in np.arange(8).reshape(-1, processes).T:
        part = first(9 - start, images(20), augment, **settings, start_step=start, rows=rows)
        assert_same(part, [{name: x[rows] for name, x in batch.items()} for batch in whole])


def test_copies_are_read_once():
    gathered = []

    class Watched(ArrayDataset):
        def gather(self, indices):
            gathered.append(list(indices))
            return super().gather(indices)

    dataset = Watched(images(32).arrays())
    for rows, examples in ((np.arange(16), 4), (np.arange(3), 3), (np.array([0, 5, 8]), 2)):
        gathered.clear()
        (batch,) = first(1, dataset, AUGMENT, batch_size=16, seed=0, copies=4, rows=rows)
        assert len(gathered[0]) == examples
        assert len(batch["label"]) == len(rows)


def test_copies_have_the_length_of_their_example():
    lengths = np.random.default_rng(0).integers(1, 9, 64)

    class Texts(ArrayDataset):
        def lengths(self):
            return lengths

    dataset = Texts({"inputs": lengths, "label": np.arange(64)})
    batches = first(8, dataset, Transform(), batch_size=8, seed=0, copies=2)
    for batch in batches:
        np.testing.assert_array_equal(batch["label"][:4], batch["label"][4:])
        np.testing.assert_array_equal(batch["inputs"], lengths[batch["label"]])
    assert len({label for batch in batches for label in batch["label"]}) == 32


@pytest.mark.parametrize("copies", [0, 3])
def test_copies_that_do_not_fill_a_batch_are_named(copies):
    with pytest.raises(ValueError, match=f"copies must divide batch_size 8, got {copies}"):
        training_batches(images(20), Transform(), batch_size=8, seed=0, copies=copies)

"""Images in Parquet files: labels, order, cache, broken images, and runs that resume exactly."""

import io
import json
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pyarrow
import pytest
from helpers.small_runs import interrupt_at
from PIL import Image
from pyarrow import parquet

import flaxdl
from flaxdl import Config
from flaxdl.data import ImageParquet, Images, Transform, evaluation_batches, training_batches
from flaxdl.data.balanced_sampling import balanced_labels
from flaxdl.data.dataset import Subset
from flaxdl.data.parquet_images import read_images
from flaxdl.data.shuffling import CACHED_GROUPS, WINDOW_GROUPS, windowed_order
from flaxdl.errors import UserError
from flaxdl.models import SimpleCNN
from flaxdl.training import Interrupted

CLASSES = ["dark", "light"]


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, labels, *, seed=0, names=CLASSES, group=4, broken=(), image="image"):
    """A file of small images whose brightness is their label."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, label in enumerate(labels):
        low = 0 if label in (0, "dark") else 128
        pixels = rng.integers(low, low + 128, (8, 8, 3)).astype(np.uint8)
        content = b"no image" if number in broken else encoded(pixels)
        rows.append({"bytes": content, "path": f"{number}.png"})
    table = pyarrow.table({image: rows, "label": labels})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        metadata = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": metadata})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=group)


def labels_of(count, seed=1):
    return np.random.default_rng(seed).integers(0, 2, count).tolist()


@pytest.fixture
def folder(tmp_path):
    """Files named as on the hub, with 45, 9 and 7 images."""
    data = tmp_path / "data"
    write(data / "train-00000-of-00002.parquet", labels_of(30))
    write(data / "train-00001-of-00002.parquet", labels_of(15, seed=2), seed=1)
    write(data / "validation-00000-of-00001.parquet", labels_of(9, seed=3), seed=2)
    write(data / "test-00000-of-00001.parquet", labels_of(7, seed=4), seed=3)
    return data


def load(path, **options):
    return ImageParquet(str(path), **options).load(seed=0)


def test_files_are_split_by_name_and_classes_are_named(folder):
    splits = load(folder)
    assert splits.classes == ("dark", "light")
    assert [len(x) for x in (splits.train, splits.validation, splits.test)] == [45, 9, 7]
    expected = labels_of(30) + labels_of(15, seed=2)
    np.testing.assert_array_equal(splits.train.labels(), expected)
    batch = splits.train.gather(np.arange(45))
    means = [image.mean() > 127 for image in batch["inputs"]]
    np.testing.assert_array_equal(means, expected)
    assert splits.train.example_name(0) == "train-00000-of-00002.parquet:0"
    assert splits.train.example_name(30 + 14) == "train-00001-of-00002.parquet:14"


def test_files_are_split_by_folder(tmp_path):
    for name, count in (("train", 20), ("dev", 6), ("Testing", 5)):
        write(tmp_path / "default" / name / "0000.parquet", labels_of(count))
    splits = load(tmp_path)
    assert [len(x) for x in (splits.train, splits.validation, splits.test)] == [20, 6, 5]


def test_a_single_file_is_for_training_and_part_of_it_is_held_out(tmp_path):
    write(tmp_path / "test.parquet", ["light", "dark"] * 10, names=None)
    splits = load(tmp_path / "test.parquet", validation_fraction=0.2)
    assert (len(splits.train), len(splits.validation), splits.test) == (16, 4, None)
    assert splits.classes == ("dark", "light")
    kept = {splits.train.example_name(i) for i in range(16)}
    assert kept.isdisjoint(splits.validation.example_name(i) for i in range(4))


def test_bytes_need_no_struct(tmp_path):
    contents = [encoded(np.full((4, 6, 3), shade, np.uint8)) for shade in (10, 200, 90)]
    table = pyarrow.table({"jpg": contents, "cls": ["a", "b", "a"]})
    parquet.write_table(table, tmp_path / "x.parquet")
    splits = load(tmp_path, image="jpg", label="cls", validation_fraction=0.0, channels=1)
    batch = splits.train.gather(np.array([2, 1]))
    assert [image.shape for image in batch["inputs"]] == [(4, 6, 1)] * 2
    assert [int(image[0, 0, 0]) for image in batch["inputs"]] == [90, 200]


def test_an_epoch_mixes_windows_of_row_groups():
    groups = np.repeat(np.arange(40), 5)
    order = windowed_order(groups, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(order), np.arange(200))
    windows = [order[start : start + 5 * WINDOW_GROUPS] for start in range(0, 200, 80)]
    members = [set(groups[window]) for window in windows]
    assert [len(one) for one in members] == [16, 16, 8]
    assert not members[0] & members[1]  # each group is read in one window
    assert len(set(groups[windows[0][:16]])) > 8  # and mixed with the others there
    assert members[0] != set(range(16))  # windows are not those of the file
    again = windowed_order(groups, np.random.default_rng(0))
    np.testing.assert_array_equal(order, again)
    assert (order != windowed_order(groups, np.random.default_rng(1))).any()


def test_each_group_is_read_once_an_epoch_by_many_threads(tmp_path, monkeypatch):
    write(tmp_path / "train.parquet", labels_of(400), group=10)  # 40 groups
    train = load(tmp_path, validation_fraction=0.0).train
    reads = []

    def count(group, column):
        reads.append(group.number)
        return read_images(group, column)

    monkeypatch.setattr("flaxdl.data.parquet_images.read_images", count)
    order = windowed_order(train.read_groups(), np.random.default_rng(0))
    batches = []
    with ThreadPoolExecutor(16) as threads:  # as many as prepare batches
        # Batches are prepared a bounded number ahead, so that no thread falls far behind.
        for ahead in np.split(order.reshape(-1, 4), 5):
            batches += threads.map(train.gather, ahead)
    assert sorted(reads) == list(range(40))
    assert np.concatenate([batch["label"] for batch in batches]).sum() == train.labels().sum()


def test_rows_are_split_between_processes_without_overlap_or_loss(folder):
    train = load(folder).train
    whole = training_batches(train, Transform(), batch_size=6, seed=3)
    halves = [
        training_batches(train, Transform(), batch_size=6, seed=3, rows=rows)
        for rows in (np.arange(0, 3), np.arange(3, 6))
    ]
    for _ in range(9):  # past the end of an epoch
        batch, (first, second) = next(whole), map(next, halves)
        for place in range(6):
            part = (first, second)[place // 3]
            np.testing.assert_array_equal(batch["inputs"][place], part["inputs"][place % 3])
    for batches in (whole, *halves):
        batches.close()


def test_evaluation_counts_each_image_once(folder):
    test = load(folder).test
    batches = list(evaluation_batches(test, Transform(), batch_size=4))
    weights = np.concatenate([batch["weight"] for batch in batches])
    assert weights.sum() == 7


def test_a_copy_in_another_process_reads_for_itself(folder):
    train = load(folder).train
    before = train.gather(np.array([3]))["inputs"][0]
    copy = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(copy.gather(np.array([3]))["inputs"][0], before)
    assert copy.fingerprint == train.fingerprint


def test_at_most_two_windows_are_kept_for_all_splits(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", labels_of(40), group=2)
    splits = load(tmp_path, validation_fraction=0.0)
    splits.train.gather(np.arange(40))
    splits.test.gather(np.arange(40))
    assert splits.train._cache is splits.test._cache
    assert len(splits.train._cache) == CACHED_GROUPS


def test_large_row_groups_are_named(tmp_path, monkeypatch, caplog):
    write(tmp_path / "train.parquet", labels_of(40))
    monkeypatch.setattr("flaxdl.data.image_parquet._MUCH_MEMORY", 100)
    load(tmp_path)
    assert "each process may keep 0.0 GiB of them in memory" in caplog.text


def test_files_without_a_split_are_named(folder, caplog):
    write(folder / "tset.parquet", [0, 1])
    write(folder / "partial-test" / "0001.parquet", [0, 1, 1])
    splits = load(folder)
    assert (len(splits.train), len(splits.test)) == (47, 10)
    assert "1 of 6 files" in caplog.text
    assert "are used for training: tset.parquet" in caplog.text


def test_balanced_sampling_needs_few_groups(tmp_path):
    write(tmp_path / "train.parquet", labels_of(66), group=2)
    train = load(tmp_path, validation_fraction=0.0).train
    with pytest.raises(UserError, match="read in 33 groups, at most 32 of which"):
        balanced_labels(train)
    few = Subset(train, np.arange(60))
    np.testing.assert_array_equal(balanced_labels(few), labels_of(66)[:60])


def test_the_fingerprint_depends_on_labels_and_rows(tmp_path):
    prints = set()
    for number, (labels, group) in enumerate([([0, 1, 1], 3), ([0, 1, 0], 3), ([0, 1, 1], 2)]):
        write(tmp_path / str(number) / "train.parquet", labels, group=group)
        prints.add(load(tmp_path / str(number), validation_fraction=0.0).train.fingerprint)
    assert len(prints) == 3


def test_broken_images_are_replaced_and_counted(tmp_path, caplog):
    write(tmp_path / "train.parquet", [0, 1, 1, 0, 1], broken=(1,))
    train = load(tmp_path, validation_fraction=0.0, max_unreadable=1).train
    batch = train.gather(np.arange(5))
    assert batch["weight"].tolist() == [1, 0, 1, 1, 1]
    np.testing.assert_array_equal(batch["inputs"][1], batch["inputs"][2])
    assert "train.parquet:1 cannot be read as an image" in caplog.text
    strict = load(tmp_path, validation_fraction=0.0, max_unreadable=0).train
    with pytest.raises(UserError, match="1 images cannot be read, more than max_unreadable = 0"):
        strict.gather(np.arange(5))


def test_a_test_split_without_labels_is_left_out(folder, caplog):
    write(folder / "test-00000-of-00001.parquet", [-1] * 5)
    assert load(folder).test is None
    assert "have no labels, only -1; unused" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: load(f, label="klass"), "no column 'klass'; its columns are image, label"),
        (lambda f: load(f, image="label"), "must contain the contents of image files"),
        (lambda f: load(f, label="image"), "must contain class names or class numbers"),
        (lambda f: load(f / "nowhere"), "no such file or folder"),
        (lambda f: load(f, channels=4), "channels must be 1 or 3"),
        (lambda f: load(f, validation_fraction=1.5), "fraction"),
    ],
)
def test_mistakes_are_one_message(folder, change, message):
    with pytest.raises(UserError, match=message):
        change(folder)


def test_files_must_agree_and_be_there(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no .parquet files"):
        load(tmp_path / "empty")
    write(tmp_path / "only" / "test-0.parquet", [0, 1])
    with pytest.raises(UserError, match="no .parquet files for training, only for test"):
        load(tmp_path / "only")
    write(folder / "train-00001-of-00002.parquet", [0, 1], names=["light", "dark"])
    with pytest.raises(UserError, match="the class names of column 'label' must agree"):
        load(folder)
    write(folder / "train-00001-of-00002.parquet", [0, 5])
    with pytest.raises(UserError, match=r"labels must be in 0..1 in .*got 5 at example 31"):
        load(folder)
    write(folder / "train-00001-of-00002.parquet", [0, None])
    with pytest.raises(UserError, match="must have a label in each row, has 1 rows without one"):
        load(folder)
    (folder / "train-00001-of-00002.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read as a Parquet file"):
        load(folder)


def config(folder):
    return Config(
        data=ImageParquet(str(folder)),
        transform=Images(size=8),
        model=SimpleCNN(num_classes=2),
        batch_size=8,
        epochs=2.0,
    )


def test_an_interrupted_run_ends_as_an_uninterrupted_one(folder, tmp_path, monkeypatch):
    whole = flaxdl.train(config(folder), tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, signal.SIGTERM)
        with pytest.raises(Interrupted):
            flaxdl.train(config(folder), tmp_path / "resumed")
    resumed = flaxdl.train(config(folder), tmp_path / "resumed")
    ours, theirs = (jax.tree.leaves(result.variables) for result in (whole, resumed))
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(our, their)
    measured = flaxdl.evaluate(tmp_path / "resumed")
    assert measured == pytest.approx({name: whole.metrics[name] for name in measured})

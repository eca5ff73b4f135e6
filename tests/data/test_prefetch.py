import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
from traceback import FrameSummary

import numpy as np
import pytest
from helpers.deadly import Deadly
from PIL import Image

from flaxdl.config_files import load_config
from flaxdl.data import (
    ImageFolder,
    Images,
    RandAugment,
    Tfds,
    evaluation_batches,
    prefetch,
    training_batches,
)
from flaxdl.data import tfds as tfds_module
from flaxdl.data.dataset import ArrayDataset, RecordDataset, Subset
from flaxdl.data.skipped_examples import SkippedExamples
from flaxdl.data.watchdog import with_watchdog

TRANSFORM = Images(size=8, min_scale=0.3, flip=True, crop_padding=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """48 images of noise, two of which cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(48):
        file = folder / ("cat" if number % 2 else "dog") / f"{number:02}.png"
        file.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (10 + number % 3, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    for number in (12, 33):
        (folder / ("cat" if number % 2 else "dog") / f"{number}.png").write_bytes(b"nothing")
    return folder


def load(photos, **settings):
    source = ImageFolder(str(photos), validation_fraction=0.0, test_fraction=0.0, **settings)
    return source.load(seed=0).train


@pytest.fixture
def in_a_process(monkeypatch):
    monkeypatch.setattr(prefetch, "num_workers", lambda dataset: 1)


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            assert batch[name].dtype == other[name].dtype
            np.testing.assert_array_equal(batch[name], other[name])


def train(dataset, count=9):  # into the second epoch
    stream = training_batches(dataset, TRANSFORM, batch_size=8, seed=1, start_step=2)
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches


def evaluate(dataset):
    return list(evaluation_batches(dataset, TRANSFORM, batch_size=32))


def test_processes_make_the_same_batches_as_threads(photos, monkeypatch, caplog):
    expected = train(load(photos))
    caplog.clear()
    monkeypatch.setattr(prefetch, "num_workers", lambda dataset: 2)
    dataset = load(photos)
    assert_same(train(dataset), expected)
    assert multiprocessing.active_children() == []
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert sorted(message.split(" ")[0][-10:] for message in warnings) == [
        "cat/33.png",
        "dog/12.png",
    ]


def test_two_processes_augment_as_one_does(photos, monkeypatch):
    transform = Images(
        size=8,
        min_scale=0.3,
        flip=True,
        train_size=6,
        augment=RandAugment(interpolation="bilinear", fill=(124, 116, 104)),
    )
    found = []
    for workers in (0, 2):
        monkeypatch.setattr(prefetch, "num_workers", lambda dataset, count=workers: count)
        settings = {"batch_size": 8, "seed": 1, "start_step": 2, "copies": 2}
        stream = training_batches(load(photos), transform, **settings)
        found.append(list(itertools.islice(stream, 6)))
        stream.close()
    assert found[0][0]["inputs"].shape == (8, 6, 6, 3)
    assert_same(found[1], found[0])


def test_an_error_in_a_process_is_the_same_error(photos, in_a_process):
    with pytest.raises(ValueError, match=r"(?s)1 images cannot be read.*0:.*(12|33).png"):
        evaluate(load(photos, max_unreadable=0))
    assert multiprocessing.active_children() == []


class HoldingCode(FrameSummary):
    """A frame as of newer Pythons, which cannot be pickled."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.code = train.__code__


def test_an_error_keeps_its_frames_on_the_way_from_a_process(monkeypatch):
    frame = HoldingCode("users.py", 3, "prepare", line="1 / 0")
    monkeypatch.setattr(prefetch, "frames_of", lambda error: [frame])
    failure = pickle.loads(pickle.dumps(prefetch._Failure(KeyError("a"))))
    assert repr(failure.error) == "KeyError('a')"
    (found,) = failure.cause.frames
    assert (found.filename, found.lineno, found.name, found.line) == tuple(frame)


def test_processes_that_die_or_hang_are_restarted(photos, in_a_process, caplog, monkeypatch):
    monkeypatch.setattr(prefetch, "_HANG_AFTER", 8.0)
    stream = training_batches(load(photos), TRANSFORM, batch_size=8, seed=1, start_step=2)
    batches = list(itertools.islice(stream, 1))
    for number, count in ((signal.SIGKILL, 8), (signal.SIGSTOP, 8)):  # more than lie ready
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, number)
        batches += itertools.islice(stream, count)
    stream.close()
    assert multiprocessing.active_children() == []
    assert_same(batches, train(load(photos), 17))
    assert caplog.text.count("a data worker died; retrying batch ") == 2
    assert caplog.text.count("the data worker seems to hang; restarting it") == 1


def test_a_batch_that_kills_its_process_is_an_error(photos, in_a_process, monkeypatch):
    monkeypatch.setattr(prefetch, "_MAX_DEATHS", 1)
    batches = training_batches(load(photos), Deadly(), batch_size=8, seed=0)
    with pytest.raises(RuntimeError, match="terminated unexpectedly"):
        next(batches)
    assert multiprocessing.active_children() == []


def test_waiting_long_is_warned_about_repeatedly(caplog):
    def slow():
        yield 1
        time.sleep(0.7)
        yield 2

    assert list(with_watchdog(slow(), warn_every=0.2)) == [1, 2]
    warnings = [m for m in caplog.messages if m.startswith("still waiting for a batch after")]
    assert len(warnings) == 3
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]


CONFIG = """
from dataclasses import dataclass
import numpy as np
from flaxdl import Config
from flaxdl.data import Images
from flaxdl.data import Dataset, Source, Splits
from flaxdl.models import LeNet5

class Squares(Dataset):
    decodes_files = True
    def __len__(self):
        return 20
    def gather(self, indices):
        return {"inputs": np.tile(indices[:, None, None, None] ** 2, (1, 2, 2, 1))}

@dataclass(frozen=True)
class Numbers(Source):
    def load(self, seed):
        return Splits(Squares(), None, None, None)

@dataclass(frozen=True)
class Negative(Images):
    def prepare(self, batch, draws):
        return batch | {"inputs": -batch["inputs"]}

config = Config(model=LeNet5(num_classes=2), data=Numbers(), transform=Negative())
"""


def test_what_a_config_file_defines_reaches_the_processes(tmp_path, in_a_process):
    (tmp_path / "config_with_squares.py").write_text(CONFIG)
    config = load_config(tmp_path / "config_with_squares.py")
    batches = list(evaluation_batches(config.data.load(0).train, config.transform, batch_size=5))
    found = np.concatenate([batch["inputs"][:, 0, 0, 0] for batch in batches])
    np.testing.assert_array_equal(found, -(np.arange(20) ** 2))


def test_records_of_files_reach_the_processes(data_dir, in_a_process, monkeypatch):
    source = Tfds("digits", data_dir=data_dir)
    in_memory = source.load(seed=0).validation
    monkeypatch.setattr(tfds_module, "_MEMORY_LIMIT", 0)
    in_files = source.load(seed=0).train  # where classes are unknown, chance alone holds out
    assert isinstance(in_files, Subset)
    assert in_files.decodes_files
    batch = next(iter(evaluation_batches(in_files, Images(), batch_size=16)))
    expected = in_files.gather(np.arange(16))
    np.testing.assert_array_equal(batch["inputs"], expected["inputs"])
    np.testing.assert_array_equal(batch["label"], expected["label"])
    assert in_memory.in_memory


class Many(RecordDataset):
    def __init__(self):
        pass

    def __len__(self):
        return 5000


def test_processes_are_for_many_files_and_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert prefetch.num_workers(Many()) == 8
    assert prefetch.num_workers(Subset(Many(), np.arange(5000))) == 8
    assert prefetch.num_workers(Subset(Many(), np.arange(4000))) == 0
    assert prefetch.num_workers(ArrayDataset({"inputs": np.zeros(5000)})) == 0
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    assert prefetch.num_workers(Many()) == 16
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert prefetch.num_workers(Many()) == 0


def test_a_copy_only_collects(caplog):
    import pickle

    original = SkippedExamples(2, "images")
    original.add("a", "a is broken")
    copy = pickle.loads(pickle.dumps(original))
    caplog.clear()
    copy.add("b", "b is broken")
    assert not caplog.records
    assert copy.pop_reasons() == {"b": "b is broken"}
    assert copy.pop_reasons() == {}
    original.add("b", "b is broken")
    with pytest.raises(ValueError, match="3 images cannot be read, more than max_unreadable = 2"):
        original.add("c", "c is broken")

"""Fingerprints are equal for equal data alone, on any machine."""

from pathlib import Path

import numpy as np
import pytest

from flaxdl.data import ArrayDataset, Dataset, facts, fingerprint
from flaxdl.data.dataset import RecordDataset, Subset
from flaxdl.data.fingerprint import may_be_equal, of_arrays, of_texts
from flaxdl.data.image_dataset import ImageDataset
from flaxdl.data.skipped_examples import SkippedExamples

IMAGES = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
TEXTS = np.array(["a", "bc", "d"], object)


def test_they_are_the_same_everywhere():
    """Stored in every config.json, so a change must raise the version."""
    assert of_arrays({"inputs": IMAGES, "label": np.arange(4, dtype=np.int32)}) == FIXED
    assert of_arrays({"inputs": TEXTS}) == FIXED_TEXTS
    assert of_texts(["a/1.png", "b/2.png"]) == FIXED_NAMES


FIXED = "1:a999f3624f579888"
FIXED_TEXTS = "1:eaffa667e1098f8f"
FIXED_NAMES = "1:4cd3e42f19fb65b3"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (IMAGES, IMAGES[::-1]),
        (IMAGES, IMAGES.astype(np.int8)),
        (IMAGES, IMAGES.reshape(4, 2, 3)),
        (TEXTS, np.array(["ab", "c", "d"], object)),
        (TEXTS, TEXTS[:2]),
        (TEXTS, np.array(["a", "bc", None], object)),
        (np.array([IMAGES, 1], object), np.array([IMAGES + 1, 1], object)),
        (np.array(["a", "b"]), np.array(["a", "c"])),
        (np.array(5), np.array(6)),
        (np.zeros((0, 3)), np.zeros((0, 4))),
    ],
)
def test_other_values_types_or_shapes_have_others(one, other):
    assert of_arrays({"x": one}) == of_arrays({"x": one.copy()})
    assert of_arrays({"x": one}) != of_arrays({"x": other})
    assert of_arrays({"x": one}) != of_arrays({"y": one})


def test_the_order_in_memory_and_of_names_does_not_count():
    assert of_arrays({"x": np.asfortranarray(IMAGES)}) == of_arrays({"x": IMAGES})
    assert of_arrays({"x": IMAGES, "y": TEXTS}) == of_arrays({"y": TEXTS, "x": IMAGES})


def test_blocks_do_not_count_and_large_arrays_are_sampled(monkeypatch):
    whole = of_arrays({"x": IMAGES})
    monkeypatch.setattr(fingerprint, "_BLOCK_BYTES", 7)
    assert of_arrays({"x": IMAGES}) == whole
    monkeypatch.setattr(fingerprint, "_MAX_BYTES", 12)  # every other row
    sampled = of_arrays({"x": IMAGES})
    others = [IMAGES + (np.arange(4) == row)[:, None, None].astype(np.uint8) for row in range(4)]
    assert [of_arrays({"x": other}) == sampled for other in others] == [False, True, False, True]


class Thing:
    pass


@pytest.mark.parametrize(
    "array", [np.array([Thing()], object), np.array([{1}, {2}]), np.zeros(2, [("a", object)])]
)
def test_objects_without_a_stable_text_have_none(array):
    assert of_arrays({"x": array}) is None


def test_what_is_unknown_or_of_another_version_may_be_equal():
    assert may_be_equal("1:a", "1:a")
    assert not may_be_equal("1:a", "1:b")
    assert may_be_equal("1:a", "2:b")
    assert may_be_equal(None, "1:b")


class Generated(Dataset):
    in_memory = True

    def __len__(self):
        return 3

    def gather(self, indices):
        raise AssertionError("examples are not computed for a fingerprint")


def test_of_datasets():
    arrays = ArrayDataset({"inputs": IMAGES})
    assert arrays.fingerprint == of_arrays({"inputs": IMAGES})
    first, other = (Subset(arrays, np.array(indices)).fingerprint for indices in ([0, 1], [0, 2]))
    assert len({arrays.fingerprint, first, other}) == 3
    assert Generated().fingerprint is None
    assert Subset(Generated(), np.arange(2)).fingerprint is None
    records = [RecordDataset([], {"x": "x"}, version=version) for version in ("a", "b", None)]
    assert records[0].fingerprint != records[1].fingerprint
    assert records[2].fingerprint is None


def test_of_files_the_folder_does_not_count():
    def of(folder, *names):
        files = [Path(folder) / name for name in names]
        labels, skipped = np.zeros(len(names), np.int32), SkippedExamples(0, "images")
        return ImageDataset(files, labels, Path(folder), channels=3, skipped=skipped).fingerprint

    assert of("a", "a/1.png", "b/2.png") == of("/data/b", "a/1.png", "b/2.png")
    assert of("a", "a/aa/2.png") != of("a", "a/a/a2.png")
    assert of("a", "a/\udce9.png") != of("a", "a/e.png")  # a name that is not Unicode


def test_facts_of_equal_data_do_not_differ():
    facts_of = {"classes": ["0"], "steps_per_epoch": 1, "example": {}}
    splits = [{"train": {"examples": 3, "fingerprint": f}} for f in ("1:a", "1:b", "2:b", None)]
    found = [
        facts.differences({**facts_of, "splits": s}, {**facts_of, "splits": splits[0]})
        for s in splits
    ]
    assert [len(lines) for lines in found] == [0, 1, 0, 0]

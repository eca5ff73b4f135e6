"""Image folders in which an image may be in the folders of several classes."""

import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from flaxdl.data import ImageFolder
from flaxdl.data.hash_split import split_of
from flaxdl.data.numeric_labels import check_multi_label
from flaxdl.errors import UserError

pytestmark = pytest.mark.quick


def save(path, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 4), level).save(path)


@pytest.fixture
def folder(tmp_path):
    """90 images, 30 of each class; number 7 of the cats is also a dog, 8 a dog and an owl."""
    for place, name in enumerate(("cat", "dog", "owl")):
        for number in range(30 * place, 30 * place + 30):
            save(tmp_path / "pets" / name / f"{number:02}.png", number)
    pets = tmp_path / "pets"
    shutil.copy(pets / "cat" / "07.png", pets / "dog" / "07.png")
    shutil.copy(pets / "cat" / "08.png", pets / "dog" / "other.png")
    shutil.copy(pets / "cat" / "08.png", pets / "owl" / "08.png")
    return pets


def load(folder, **settings):
    return ImageFolder(str(folder), multi_label=True, **settings).load(seed=0)


def whole(folder):
    return load(folder, validation_fraction=0.0, test_fraction=0.0).train


def labels_by_name(dataset):
    names = [dataset.example_name(index) for index in range(len(dataset))]
    return dict(zip(names, dataset.labels().tolist(), strict=True))


def messages(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_copies_are_one_image_with_all_labels(folder, caplog):
    splits = load(folder, validation_fraction=0.0, test_fraction=0.0)
    assert splits.classes == ("cat", "dog", "owl")
    found = labels_by_name(splits.train)
    assert len(found) == 90
    assert splits.train.labels().dtype == np.float32
    assert found["cat/07.png"] == [1, 1, 0]
    assert found["cat/08.png"] == [1, 1, 1]
    for name, label in found.items():
        if name not in ("cat/07.png", "cat/08.png"):
            assert label == [name.startswith(kind) for kind in ("cat", "dog", "owl")]
    batch = splits.train.gather(np.array([7]))
    np.testing.assert_array_equal(batch["label"], [[1, 1, 0]])
    assert batch["inputs"][0][0, 0, 0] == 7
    check_multi_label(splits)
    assert messages(caplog) == []


def test_other_files_of_equal_size_are_other_images(folder):
    sizes = {os.path.getsize(path) for path in folder.glob("*/*.png")}
    assert len(sizes) < 10  # of 93 files, so contents have been compared
    (folder / "cat" / "a.png").write_bytes(b"")  # empty files are no copies of each other
    (folder / "dog" / "b.png").write_bytes(b"")
    found = labels_by_name(whole(folder))
    assert (found["cat/a.png"], found["dog/b.png"]) == ([1, 0, 0], [0, 1, 0])


def test_the_split_does_not_depend_on_the_copies(folder):
    def split_with(*copies):
        for path in folder.glob("*/moved*.png"):
            path.unlink()
        for copy in copies:
            save(folder / copy, 200)
        splits = load(folder, validation_fraction=0.3, test_fraction=0.3)
        (split,) = [
            split
            for split in ("train", "validation", "test")
            if any("moved" in name for name in labels_by_name(getattr(splits, split)))
        ]
        return split

    for number in range(4):
        name = f"moved{number}.png"
        expected = split_of(name, 0.3, 0.3)
        assert split_with(f"owl/{name}") == expected
        assert split_with(f"cat/{name}", f"owl/{name}") == expected
        assert split_with(f"dog/{name}", "cat/moved5.png") == expected  # the first name
    splits = load(folder)
    for split in ("train", "validation", "test"):
        for name in labels_by_name(getattr(splits, split)):
            if name != "cat/08.png":  # also named other.png
                assert split_of(name.partition("/")[2], 0.1, 0.1) == split


def test_split_folders(folder, caplog):
    for name in ("cat", "dog", "owl"):
        (folder / name).rename(folder.parent / name)
        (folder / "train").mkdir(exist_ok=True)
        (folder.parent / name).rename(folder / "train" / name)
    for name in ("dog", "owl"):
        save(folder / "test" / name / "1.png", 201)
    save(folder / "test" / "cat" / "2.png", 202)
    splits = load(folder, validation_fraction=0.2)
    assert labels_by_name(splits.test) == {
        "test/cat/2.png": [1, 0, 0],
        "test/dog/1.png": [0, 1, 1],
    }
    assert len(splits.train) + len(splits.validation) == 90
    for name in labels_by_name(splits.validation):
        if name != "train/cat/08.png":
            assert split_of(name.rpartition("/")[2], 0.2, 0.0) == "validation"
    assert messages(caplog) == []
    save(folder / "val" / "cat" / "1.png", 201)
    with pytest.raises(
        UserError,
        match=r"1 images in .* several splits, .*: val/cat/1.png and test/dog/1.png and test/owl/1",
    ):
        load(folder)


def test_copies_in_one_class_count_once(folder, caplog):
    shutil.copy(folder / "cat" / "07.png", folder / "cat" / "again.png")
    assert len(whole(folder)) == 90
    assert messages(caplog) == [f"{folder}: dropped 1 copies of images in the same class folder"]


def test_a_new_label_changes_the_fingerprint(folder):
    before = whole(folder).fingerprint
    assert whole(folder).fingerprint == before
    shutil.copy(folder / "cat" / "09.png", folder / "owl" / "09.png")
    assert whole(folder).fingerprint != before


def test_without_the_setting_copies_are_examples_of_one_class_each(folder):
    splits = ImageFolder(str(folder), validation_fraction=0.0, test_fraction=0.0).load(seed=0)
    assert len(splits.train) == 93
    np.testing.assert_array_equal(np.bincount(splits.train.labels()), [30, 32, 31])


def test_a_split_without_images_is_refused(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        save(tmp_path / name, ord(name[0]))
    with pytest.raises(UserError, match=r"too few images: none was assigned to the validation spl"):
        load(tmp_path, validation_fraction=0.01, test_fraction=0.0)

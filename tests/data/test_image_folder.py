import hashlib
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from flaxdl.data import ImageFolder, Images, evaluation_batches, training_batches
from flaxdl.data.hash_split import split_of


def save(path, level=0, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path)


@pytest.fixture
def folder(tmp_path):
    """60 images each of three classes, of several sizes; the level is 4 times the number."""
    for name in ("cat", "dog", "owl"):
        for number in range(60):
            save(tmp_path / name / f"{number:02}.png", 4 * number, (5 + number % 3, 4))
    return tmp_path


def names(dataset):
    """Class and name of each file."""
    return {tuple(file.split("/")[-2:]) for file in dataset.files()}


def into_train(folder):
    (folder / "train").mkdir()
    for name in ("cat", "dog", "owl"):
        (folder / name).rename(folder / "train" / name)


def messages(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_images_are_read_when_asked_for(folder):
    splits = ImageFolder(str(folder)).load(seed=0)
    assert splits.classes == ("cat", "dog", "owl")
    batch = splits.train.gather(np.array([5, 0]))
    files = [splits.train.files()[index] for index in (5, 0)]
    for image, file in zip(batch["inputs"], files, strict=True):
        number = int(file[-6:-4])
        np.testing.assert_array_equal(image, np.full((4, 5 + number % 3, 3), 4 * number))
    assert batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["weight"], [1, 1])
    gray = ImageFolder(str(folder), channels=1).load(seed=0).train.gather(np.arange(1))
    assert gray["inputs"][0].shape[-1] == 1
    np.testing.assert_array_equal(np.bincount(splits.train.labels()) > 40, [True] * 3)


def test_a_hash_splits_and_outlives_new_files(folder):
    before = ImageFolder(str(folder)).load(seed=0)
    for split, dataset in vars(before).items():
        if split != "classes":
            for name, file in names(dataset):
                digest = hashlib.sha256(f"{name}/{file}".encode()).digest()
                place = int.from_bytes(digest[:8], "big") / 2**64
                expected = "test" if place < 0.1 else "validation" if place < 0.2 else "train"
                assert split == expected
    for number in range(60, 90):
        save(folder / "cat" / f"{number}.png")
    (folder / "owl" / "07.png").unlink()
    after = ImageFolder(str(folder)).load(seed=5)
    for split in ("train", "validation", "test"):
        old, new = names(getattr(before, split)), names(getattr(after, split))
        assert old - {("owl", "07.png")} == {n for n in new if int(n[1][:2]) < 60}


def test_the_test_split_is_the_same_whatever_is_held_out_for_validation(folder):
    tests = [
        ImageFolder(str(folder), validation_fraction=f).load(seed=0).test.files()
        for f in (0.0, 0.1, 0.4)
    ]
    assert tests[0] == tests[1] == tests[2]
    assert ImageFolder(str(folder), validation_fraction=0.0).load(seed=0).validation is None


@pytest.mark.parametrize("validation", ["val", "valid", "validation", None])
@pytest.mark.parametrize("test", [True, False])
def test_folders_that_are_split_already(folder, validation, test):
    into_train(folder)
    if validation:
        save(folder / validation / "dog" / "a.png")
    if test:
        save(folder / "test" / "owl" / "b.png")
        save(folder / "test" / "cat" / "b.png")
    splits = ImageFolder(str(folder)).load(seed=0)
    assert splits.classes == ("cat", "dog", "owl")
    assert (splits.test is not None) == test
    if test:
        np.testing.assert_array_equal(splits.test.gather(np.arange(2))["label"], [0, 2])
    if validation:
        assert (len(splits.train), names(splits.validation)) == (180, {("dog", "a.png")})
    else:
        assert len(splits.train) + len(splits.validation) == 180
        assert 8 <= len(splits.validation) <= 30


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus"):
        for number in range(30):
            save(tmp_path / name / f"{number}.png")
    assert ImageFolder(str(tmp_path)).load(seed=0).classes == ("bus", "train")


def test_a_bad_image_has_no_weight_and_the_next_one_stands_in(folder, caplog):
    good = ImageFolder(str(folder)).load(seed=0).train
    files = good.files()
    bad, last = 7, len(files) - 1
    for index in (bad, last):
        with open(files[index], "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n and then nothing")
    dataset = ImageFolder(str(folder)).load(seed=0).train
    for _ in range(2):
        batch = dataset.gather(np.array([bad, last, 3]))
        np.testing.assert_array_equal(batch["weight"], [0, 0, 1])
        assert batch["weight"].dtype == np.float32
        for row, standing_in in enumerate((bad + 1, 0, 3)):
            expected = good.gather(np.array([standing_in]))["inputs"][0]
            np.testing.assert_array_equal(batch["inputs"][row], expected)
    found = messages(caplog)
    assert len(found) == 2  # once each
    assert files[bad] in found[0]
    assert files[last] in found[1]


def test_weights_reach_the_batches(folder, caplog):
    files = ImageFolder(str(folder)).load(seed=0).train.files()
    open(files[7], "wb").close()
    dataset = ImageFolder(str(folder)).load(seed=0).train
    transform = Images(size=4, flip=True)
    stream = training_batches(dataset, transform, batch_size=len(dataset), seed=0)
    assert next(stream)["weight"].sum() == len(dataset) - 1
    stream.close()
    batches = list(evaluation_batches(dataset, transform, batch_size=32))
    weight = np.concatenate([batch["weight"] for batch in batches])
    np.testing.assert_array_equal(
        np.flatnonzero(weight == 0), [7, *range(len(dataset), len(weight))]
    )
    assert len(messages(caplog)) == 1


def test_too_many_bad_images_are_listed(folder):
    files = ImageFolder(str(folder)).load(seed=0).train.files()
    bad = files[0], files[1], files[2], files[6]
    for file in bad:
        open(file, "wb").close()
    dataset = ImageFolder(str(folder), max_unreadable=3).load(seed=0).train
    dataset.gather(np.arange(3))
    with pytest.raises(
        ValueError, match="4 images cannot be read, more than max_unreadable = 3"
    ) as e:
        dataset.gather(np.arange(3, 8))
    assert all(file in str(e.value) for file in bad)
    with pytest.raises(ValueError, match="cannot be read"):
        ImageFolder(str(folder), max_unreadable=0).load(seed=0).train.gather(np.arange(1))


def test_what_is_no_image_is_passed_over(folder):
    (folder / "cat" / "notes.txt").write_text("a cat")
    save(folder / "cat" / ".hidden.png")
    save(folder / ".thumbnails" / "small.png")
    (folder / "README").write_text("cats and more")
    Image.new("L", (4, 4)).save(folder / "cat" / "LOUD.JPG", format="JPEG")
    splits = ImageFolder(str(folder), validation_fraction=0.0, test_fraction=0.0).load(seed=0)
    assert len(splits.train) == 181
    assert splits.classes == ("cat", "dog", "owl")


def broken(folder, kind):
    into_train(folder)
    if kind == "unknown class":
        save(folder / "test" / "dogs" / "1.png")
    elif kind == "two validations":
        save(folder / "val" / "dog" / "1.png")
        save(folder / "valid" / "dog" / "1.png")
    elif kind == "empty class":
        (folder / "train" / "ape").mkdir()
        (folder / "train" / "ape" / "a.heic").write_text("")
        (folder / "train" / "ape" / ".DS_Store").write_text("")
    elif kind == "one class":
        shutil.rmtree(folder / "train" / "cat")
        shutil.rmtree(folder / "train" / "dog")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "unknown class",
            r"test has classes that are not in the training folder: dogs; did you mean 'dog'",
        ),
        (
            "two validations",
            r"must have only one folder for the validation split, has val and valid",
        ),
        ("empty class", r"ape contains no images .* only other files \(\.heic: 1\)"),
        ("one class", r"train must contain folders for at least two classes, has only 'owl'"),
    ],
)
def test_folders_at_odds_are_named(folder, kind, message):
    broken(folder, kind)
    with pytest.raises(ValueError, match=message):
        ImageFolder(str(folder)).load(seed=0)


def test_folders_with_nothing_in_them(tmp_path):
    with pytest.raises(ValueError, match="no such folder of images: .*absent"):
        ImageFolder(str(tmp_path / "absent")).load(seed=0)
    save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="1.png is not a folder; give one with a subfolder of im"):
        ImageFolder(str(tmp_path / "1.png")).load(seed=0)
    (tmp_path / "1.png").unlink()
    with pytest.raises(ValueError, match="at least two classes, has none"):
        ImageFolder(str(tmp_path)).load(seed=0)
    for name in ("a", "b"):
        save(tmp_path / name / "1.png")
    with pytest.raises(ValueError, match="has too few images: none was assigned to the valid"):
        ImageFolder(str(tmp_path)).load(seed=0)
    with pytest.raises(ValueError, match=r"2 of 2 classes have .*: a \(1\), b \(1\); add"):
        ImageFolder(str(tmp_path), validation_fraction=0.99, test_fraction=0.0).load(seed=0)


def test_folders_without_permission_are_named(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"/dog cannot be read: Permission denied"):
        ImageFolder(str(folder)).load(seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_fraction": -0.1}, "validation_fraction must be at least 0 .* got -0.1"),
        ({"test_fraction": 1.0}, "test_fraction must be at least 0 and below 1, got 1.0"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "must sum to less than 1"),
        ({"channels": 4}, "channels must be 1 or 3, got 4"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder("photos", **settings)


def test_hashes_divide_in_proportion():
    splits = [split_of(f"name {number}", 0.1, 0.2) for number in range(5000)]
    shares = [splits.count(split) / 5000 for split in ("train", "validation", "test")]
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.02)  # 0.02: 3 standard deviations

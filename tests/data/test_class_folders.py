"""Which files of a folder are images of which class and split, and what is said of the others."""

import io
import os
import re
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from flaxdl.data import ImageFolder
from flaxdl.data.class_folders import find_files
from flaxdl.data.image_folder import IMAGES


def png():
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    return file.getvalue()


PNG = png()


def save(*paths, level=0, **options):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), level).save(path, **options)


def fill(folder, count=4, name=""):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{name}{number}.png").write_bytes(PNG)


@pytest.fixture
def pets(tmp_path):
    fill(tmp_path / "pets" / "cat", 20)
    fill(tmp_path / "pets" / "dog", 20)
    return tmp_path / "pets"


def load(folder, **settings):
    return ImageFolder(str(folder), **settings).load(seed=0)


def load_all(folder):
    """All images as training images."""
    return load(folder, validation_fraction=0.0, test_fraction=0.0)


def counts(splits):
    datasets = (splits.train, splits.validation, splits.test)
    return [0 if dataset is None else len(dataset) for dataset in datasets]


def test_images_are_read_at_any_depth(pets, caplog):
    fill(pets / "cat" / "more", 5)
    fill(pets / "cat" / "more" / "and more", 6)
    fill(pets / "bird" / "2023")  # all of them are deeper
    splits = load_all(pets)
    assert splits.classes == ("bird", "cat", "dog")
    np.testing.assert_array_equal(np.bincount(splits.train.labels()), [4, 31, 20])
    names = [os.path.relpath(file, pets) for file in splits.train.files()]
    assert names == sorted(names, key=lambda name: name.split("/"))
    assert caplog.text == ""


def test_images_deeper_do_not_move_others_to_another_split(pets):
    before = load(pets)
    fill(pets / "cat" / "more", 40)
    after = load(pets)
    for split in ("train", "validation", "test"):
        old, new = (set(getattr(splits, split).files()) for splits in (before, after))
        assert {name for name in new if "more" not in name} == old
        assert {name for name in new if "more" in name}  # they are split as well


def test_links_are_followed_but_nothing_is_read_twice(pets, tmp_path, caplog):
    fill(tmp_path / "elsewhere", 3)
    (pets / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    (pets / "cat" / "again").symlink_to(tmp_path / "elsewhere")
    (pets / "cat" / "loop").symlink_to(pets / "cat")
    (pets / "cat" / "upward").symlink_to(pets)
    save(pets / "cat" / "zoo" / "1.png")
    (pets / "cat" / "zebra").symlink_to(pets / "cat" / "zoo")
    (pets / "dog" / "one.png").symlink_to(pets / "cat" / "0.png")
    (pets / "dog" / "gone.png").symlink_to(tmp_path / "gone.png")
    (pets / "dog" / "self.png").symlink_to(pets / "dog" / "self.png")
    os.mkfifo(pets / "dog" / "pipe.png")
    found = find_files(str(pets / "dog"), IMAGES)
    assert len(found.files) == 21
    assert found.unused == {"broken links": 2, "special files": 1}
    found = find_files(str(pets / "cat"), IMAGES)
    assert {image.name for image in found.files} == {
        *(f"cat/{number}.png" for number in range(20)),
        *(f"cat/again/{number}.png" for number in range(3)),
        "cat/zoo/1.png",
    }
    assert found.unused["links to folders already read"] == 4


@pytest.mark.parametrize(
    "name", ["a.jpe", "a.JFIF", "a.ppm", "a.pgm", "a.jp2", "a.avif", "a.gif", "a.BMP"]
)
def test_images_of_all_suffixes_are_read(pets, name):
    kind = {"jpe": "JPEG", "jfif": "JPEG", "jp2": "JPEG2000", "pgm": "PPM"}
    suffix = name.split(".")[1].lower()
    save(pets / "cat" / name, level=200, format=kind.get(suffix, suffix.upper()))
    train = load_all(pets).train
    (number,) = (i for i, file in enumerate(train.files()) if file.endswith(name))
    batch = train.gather(np.array([number]))
    assert batch["weight"] == 1
    assert abs(int(batch["inputs"][0].mean()) - 200) <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("name", ["cat-0001", "photo.jpg_large"])
def test_only_files_with_an_unknown_suffix_are_looked_into(pets, kind, name, caplog):
    save(pets / "cat" / name, format=kind)
    for other in ("backup.png~", "photo.jpg.part", "raw.nef", "notes.txt"):
        shutil.copy(pets / "cat" / name, pets / "cat" / other)
    assert len(load_all(pets).train) == 41
    for suffix in (".png~", ".part", ".nef", ".txt"):
        assert f"{suffix}: 1" in caplog.text


def test_what_runs_programs_is_never_an_image(pets, caplog):
    for name in ("a.eps", "b.pdf", "c.ps", "d", "e.heic", "f.svg"):
        (pets / "cat" / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    assert len(load_all(pets).train) == 40
    assert "without suffix: 1" in caplog.text


def test_what_is_not_used_is_named_once_for_each_class(pets, caplog):
    for number in range(3):
        (pets / "cat" / f"{number}.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (pets / "cat" / "notes.txt").write_text("a cat")
    (pets / "dog" / "deep" / "er").mkdir(parents=True)
    (pets / "dog" / "deep" / "er" / "x.pdf").write_text("a dog")
    save(pets / "dog" / ".hidden.png", pets / "loose.png")
    (pets / "README").write_text("no data")
    (pets / "empty").mkdir()
    assert load_all(pets).classes == ("cat", "dog")
    (record,) = caplog.records
    assert record.getMessage().split("\n") == [
        f"unused in {pets}:",
        "  cat: .heic: 3, .txt: 1",
        "  dog: .pdf: 1, hidden images: 1",
        "  empty: empty",
        "  images outside class folders: 1",
    ]


def test_long_lists_of_what_is_not_used_are_cut(tmp_path, caplog):
    for number in range(30):
        fill(tmp_path / f"c{number:02}", 1)
        (tmp_path / f"c{number:02}" / "x.txt").write_text("")
    load_all(tmp_path)
    assert caplog.text.count(".txt: 1") == 20
    assert "and 10 more folders" in caplog.text


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("__MACOSX", "pets/._cat.jpg"),
        ("@eaDir", "0.png"),
        ("lost+found", None),
        ("$RECYCLE.BIN", "0.png"),
        ("system volume information", "x.dat"),
        ("__pycache__", "x.pyc"),
        (".ipynb_checkpoints", "0.png"),
    ],
)
@pytest.mark.parametrize("below", ["", "cat"])
def test_folders_of_systems_are_no_data(pets, name, file, below, caplog):
    (pets / below / name).mkdir()
    if file:
        (pets / below / name / file).parent.mkdir(exist_ok=True)
        save(pets / below / name / file, format="PNG")
    for junk in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", ".gitkeep"):
        (pets / "dog" / junk).write_text("x")
    assert (load_all(pets).classes, len(load_all(pets).train)) == (("cat", "dog"), 40)
    assert caplog.text == ""


def make_workdir(folder):
    save(folder / "events" / "x.png", folder / "profile" / "y.png", folder / "learning_rate.png")
    (folder / "checkpoints" / "12").mkdir(parents=True)
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize("place", ["", "run", "runs/one", "cat/run"])
def test_a_workdir_inside_the_data_is_no_data(pets, place, caplog):
    make_workdir(pets / place)
    (pets / "new").mkdir()
    (pets / "new" / ".lock").touch()  # as a run leaves it before it loads its data
    save(pets / "found" / "learning_rate.png")
    assert load_all(pets).classes == ("cat", "dog")
    assert len(load_all(pets).train) == 40
    assert "found: workdirs of runs: 1" in caplog.text


def into(folder, split):
    (folder / split).mkdir()
    for name in ("cat", "dog"):
        (folder / name).rename(folder / split / name)


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "Validation", "testing"),
        ("Training", "dev", "Test"),
        ("TRAIN", "eval", "Testing"),
        ("train", "Valid", "test"),
    ],
)
def test_split_folders_may_have_other_names(pets, train, validation, test, caplog):
    into(pets, train)
    for name, split in (("cat", validation), ("dog", test)):
        fill(pets / split / name, 7, split)
    splits = load(pets)
    assert (splits.classes, counts(splits)) == (("cat", "dog"), [40, 7, 7])
    assert caplog.text == ""


def test_an_empty_class_folder_is_as_if_it_were_missing(pets, caplog):
    into(pets, "train")
    save(pets / "val" / "cat" / "x.png", pets / "test" / "dog" / "deep" / "x.png")
    (pets / "val" / "dog").mkdir()
    (pets / "val" / "bird").mkdir()
    assert counts(load(pets)) == [40, 1, 1]
    (pets / "train" / "bird").mkdir()
    assert load(pets).classes == ("cat", "dog")
    assert "train/bird: empty" in caplog.text
    save(pets / "val" / "bird" / "1.png")
    with pytest.raises(
        ValueError, match="val has classes that are not in the training folder: bird"
    ):
        load(pets)


def test_folders_beside_the_splits_are_named(pets, caplog):
    into(pets, "train")
    save(pets / "val" / "cat" / "x.png")
    fill(pets / "unlabeled", 3)
    (pets / "annotations").mkdir()
    (pets / "annotations" / "1.xml").write_text("")
    fill(pets / "test", 5)
    save(pets / "val" / "loose.png")
    assert counts(load(pets)) == [40, 1, 0]
    for line in (
        "test: no class folders inside",
        "unlabeled: images: 3",
        "annotations: .xml: 1",
        "val: images outside class folders: 1",
    ):
        assert f"  {line}" in caplog.text


def two_trains(pets):
    into(pets, "train")
    fill(pets / "Training" / "cat")


def two_validations(pets):
    into(pets, "train")
    fill(pets / "val" / "cat")
    fill(pets / "dev" / "cat")


def a_class_called_train(pets):
    fill(pets / "train" / "steam")
    fill(pets / "train" / "diesel")


def copies_beside_train(pets):
    shutil.copytree(pets / "cat", pets / "train" / "cat")
    shutil.copytree(pets / "dog", pets / "train" / "dog")


def splits_without_classes(pets):
    shutil.rmtree(pets)
    fill(pets / "train")
    fill(pets / "test")


def a_test_beside_classes(pets):
    fill(pets / "test" / "cat")
    fill(pets / "test" / "dog")


def splits_below_classes(pets):
    for name in ("cat", "dog"):
        fill(pets / name / "train")
        fill(pets / name / "test")


def one_level_too_high(pets):
    into(pets, "images")


def nothing_to_validate_on(pets):
    into(pets, "train")
    fill(pets / "val")


def only_other_kinds(pets):
    (pets / "bird").mkdir()
    (pets / "bird" / "1.heic").write_text("")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (two_trains, "one folder for the train split, has Training and train"),
        (two_validations, "one folder for the validation split, has dev and val"),
        (a_class_called_train, r"train contains folders \(diesel, steam\).* images in cat, dog"),
        (copies_beside_train, r"train contains folders \(cat, dog\).* images in cat, dog"),
        (splits_without_classes, "folders test, train in .* are named like splits, but there"),
        (a_test_beside_classes, r"test contains folders .* as those next to it \(cat, dog\)"),
        (splits_below_classes, "cat contains test, train, which are named like splits"),
        (one_level_too_high, "has only 'images'; images contains the folders cat, dog"),
        (
            nothing_to_validate_on,
            "val has no class folders with images .images outside class folders: 4.",
        ),
        (only_other_kinds, r"bird contains no images .* \(\.heic: 1\); convert them or move"),
    ],
)
def test_what_may_be_meant_otherwise_is_refused(pets, change, message):
    change(pets)
    with pytest.raises(ValueError, match=message):
        load(pets)


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def test_the_form_of_a_name_decides_nothing(tmp_path):
    found = {}
    for form in (NFC, NFD):
        root = tmp_path / str(len(form))
        fill(root / form, 60, form)
        fill(root / "cafe", 60)
        fill(root / "zebra", 60)
        splits = load(root)
        assert splits.classes == ("cafe", "café", "zebra")
        found[form] = splits.identity()
        for facts in found[form]["splits"].values():
            facts.pop("examples_in_0_1_0", None)
        names = [[os.path.basename(f) for f in d.files()] for d in (splits.train, splits.test)]
        found[form]["files"] = [[unicodedata.normalize("NFC", n) for n in of] for of in names]
    assert found[NFC] == found[NFD]


def test_two_forms_of_a_name_are_one_class(tmp_path):
    fill(tmp_path / "train" / NFC, 3)
    fill(tmp_path / "train" / NFD, 2, "x")
    fill(tmp_path / "train" / "b", 3)
    fill(tmp_path / "val" / NFD, 2)
    splits = load(tmp_path)
    assert splits.classes == ("b", NFC)
    np.testing.assert_array_equal(np.bincount(splits.train.labels()), [3, 5])
    np.testing.assert_array_equal(splits.validation.labels(), [1, 1])


def test_names_that_are_not_unicode(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    fill(tmp_path / "dog", 20)
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    for number in range(20):
        shutil.copy(tmp_path / "dog" / "0.png", folder + b"/\xff%d.png" % number)
    shutil.copy(tmp_path / "dog" / "0.png", folder + b"/\xff.txt")
    splits = load(tmp_path)
    assert splits.classes == ("caf\\xe9", "dog")
    "".join(splits.classes).encode()  # can be written
    assert sum(counts(splits)) == 40
    assert splits.train.gather(np.array([0]))["weight"] == 1


def test_a_split_that_is_another_one_is_noticed(pets, caplog):
    into(pets, "train")
    (pets / "test").symlink_to(pets / "train")
    fill(pets / "val" / "cat", 3)
    save(pets / "val" / "cat" / "0.png", level=9)  # another image under the same name
    load(pets)
    assert f"the images in {pets}/test are the same as in {pets}/train" in caplog.text
    assert "pets/val" not in caplog.text


def test_all_classes_without_training_images_are_named(tmp_path):
    for number in range(30):
        fill(tmp_path / f"c{number:02}", 1)
    lost = ["01", "08", "11", "12", "18", "23", "25", "26", "27"]
    listed = ", ".join(f"c{number} (1)" for number in lost)
    with pytest.raises(
        ValueError, match=re.escape(f"validation or test: {listed}; add images")
    ) as e:
        load(tmp_path)
    assert "9 of 30 classes have too few images" in str(e.value)


def change_nothing(pets):
    return {}


def deeper(pets):
    fill(pets / "cat" / "more", 20)
    return {"train": 27, "validation": 9, "test": 4}


def other_names(pets):
    into(pets, "train")
    fill(pets / "dev" / "cat", 3)
    fill(pets / "Test" / "dog", 2)
    return {"train": 36, "validation": 4, "test": 0}


def other_suffixes(pets):
    into(pets, "train")
    fill(pets / "val" / "cat", 3)
    (pets / "val" / "cat" / "1.png").rename(pets / "val" / "cat" / "1.jpe")
    (pets / "train" / "dog" / "1.png").rename(pets / "train" / "dog" / "1")
    return {"train": 39, "validation": 2}


def composed_names(pets):
    fill(pets / NFD, 10)
    return {"train": 37, "validation": 9, "test": 4}


@pytest.mark.parametrize(
    "change", [change_nothing, deeper, other_names, other_suffixes, composed_names]
)
def test_the_numbers_of_the_first_version_are_recorded_where_they_differ(pets, change):
    expected = change(pets)
    splits = load(pets).identity()["splits"]
    found = {n: s["examples_in_0_1_0"] for n, s in splits.items() if "examples_in_0_1_0" in s}
    assert found.items() <= expected.items()
    assert {n: s.get("examples_in_0_1_0", s["examples"]) for n, s in splits.items()} == (
        expected or {n: s["examples"] for n, s in splits.items()}
    )

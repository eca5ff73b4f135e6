"""Images listed in a table: paths, labels, splits, weights, and one message per mistake."""

import csv
import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

import flaxdl
from flaxdl import Config
from flaxdl.data import Images, ImageTable, evaluation_batches
from flaxdl.data.hash_split import split_of
from flaxdl.data.image_dataset import ImageDataset
from flaxdl.data.skipped_examples import SkippedExamples
from flaxdl.errors import UserError
from flaxdl.models import SimpleCNN
from flaxdl.runs.config_json import from_json, to_json

KINDS = ("cat", "dog", "owl")
ROWS = [(f"images/{number:02}.png", KINDS[number % 3]) for number in range(60)]
NAMES = ("path", "label")


@pytest.fixture
def folder(tmp_path):
    """60 images with the level 4 times their number; `write_rows` lists them."""
    (tmp_path / "images").mkdir()
    for number, (path, _) in enumerate(ROWS):
        Image.new("L", (8, 8), 4 * number).save(tmp_path / path)
    return tmp_path


def table(folder, rows=ROWS, names=NAMES, file="t.csv"):
    """Writes a table as the suffix of its name says, and returns its path."""
    path = folder / file
    if path.suffix == ".parquet":
        columns = map(list, zip(*rows, strict=True))
        parquet.write_table(pyarrow.table(dict(zip(names, columns, strict=True))), path)
    elif path.suffix == ".jsonl":
        lines = (json.dumps(dict(zip(names, row, strict=True))) for row in rows)
        path.write_text("\n".join(lines) + "\n")
    else:
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([names, *rows])
    return str(path)


def load(path, **settings):
    return ImageTable(path, **settings).load(seed=0)


def whole(path, **settings):
    return load(path, validation_fraction=0.0, test_fraction=0.0, **settings).train


def paths(dataset):
    return [dataset.example_name(number) for number in range(len(dataset))]


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table(folder, suffix):
    splits = load(table(folder, file=f"t.{suffix}"), validation_fraction=0.0, test_fraction=0.0)
    assert splits.classes == KINDS
    assert (splits.validation, splits.test) == (None, None)
    assert paths(splits.train) == [path for path, _ in ROWS]
    np.testing.assert_array_equal(splits.train.labels(), np.arange(60) % 3)
    batch = splits.train.gather(np.array([5, 0]))
    np.testing.assert_array_equal([image[0, 0, 0] for image in batch["inputs"]], [20, 0])
    np.testing.assert_array_equal(batch["label"], [2, 0])
    assert (batch["label"].dtype, batch["weight"].dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(batch["weight"], [1, 1])


def test_a_hash_of_the_path_splits(folder):
    splits = load(table(folder))
    for split in ("train", "validation", "test"):
        expected = [path for path, _ in ROWS if split_of(path, 0.1, 0.1) == split]
        assert paths(getattr(splits, split)) == expected
    fewer = load(table(folder, ROWS[7:]))
    assert paths(fewer.train) == [p for p in paths(splits.train) if p >= "images/07"]


def test_paths_may_be_written_in_several_ways(folder, tmp_path_factory):
    changed = [
        (f"./images/../images/{ROWS[0][0][7:]}", "cat"),
        (ROWS[1][0].replace("/", "\\"), "dog"),
        (str(folder / ROWS[2][0]), "owl"),
        *ROWS[3:],
    ]
    expected = load(table(folder))
    found = load(table(folder, changed))
    assert paths(found.train) == paths(expected.train)
    assert found.identity() == expected.identity()
    elsewhere = table(tmp_path_factory.mktemp("tables"))
    assert load(elsewhere, root=str(folder)).identity() == expected.identity()
    short = [(path.removeprefix("images/"), label) for path, label in ROWS]
    inside = load(table(folder, short), root=str(folder / "images"))
    assert sum(map(len, (inside.train, inside.validation, inside.test))) == 60


def test_files_on_other_drives_have_different_fingerprints():
    files = [["D:/a/1.png"], ["E:/a/1.png"]]
    first, second = (
        ImageDataset(
            one, np.zeros(1), Path("C:/tables"), channels=3, skipped=SkippedExamples(0, "files")
        )
        for one in files
    )
    assert first.fingerprint != second.fingerprint


def test_a_table_in_a_folder_beside_the_images(folder):
    (folder / "tables").mkdir()
    rows = [(f"../{path}", label) for path, label in ROWS]
    dataset = whole(table(folder / "tables", rows))
    assert paths(dataset)[0] == "../images/00.png"
    assert dataset.gather(np.array([3]))["inputs"][0][0, 0, 0] == 12


def with_splits(splits):
    return [(*row, splits[number % len(splits)]) for number, row in enumerate(ROWS)]


def test_a_column_splits(folder):
    rows = with_splits(["train", " TRAIN", "Training", "train", "valid", "Dev", "testing"])
    splits = load(table(folder, rows, (*NAMES, "part")), split="part")
    counts = Counter(row[2].strip().casefold() for row in rows)
    assert len(splits.train) == counts["train"] + counts["training"]
    assert len(splits.validation) == counts["valid"] + counts["dev"]
    assert len(splits.test) == counts["testing"]
    assert splits.classes == KINDS


def test_validation_is_held_out_if_the_column_has_none(folder):
    rows = with_splits(["train"] * 5 + ["test"])
    splits = load(table(folder, rows, (*NAMES, "split")), split="split")
    training = [row[0] for row in rows if row[2] == "train"]
    assert paths(splits.validation) == [p for p in training if split_of(p, 0.1, 0) == "validation"]
    assert len(splits.train) + len(splits.validation) == len(training) == 50
    path = table(folder, with_splits(["train"]), (*NAMES, "split"))
    assert load(path, split="split", validation_fraction=0.0).test is None


def test_weights_count_in_training_only(folder):
    rows = [(*row, weight) for row, weight in zip(ROWS, [0, 0.5, 3] * 20, strict=True)]
    dataset = whole(table(folder, rows, (*NAMES, "weight")), weight="weight")
    np.testing.assert_array_equal(dataset.gather(np.arange(3))["weight"], [0, 0.5, 3])
    batches = list(evaluation_batches(dataset, Images(size=8), batch_size=16))
    found = np.concatenate([batch["weight"] for batch in batches])
    np.testing.assert_array_equal(found, [0, 1, 1] * 20 + [0] * 4)


def test_the_fingerprint_follows_labels_and_weights(folder):
    names = (*NAMES, "weight")
    rows = [[*row, 1.0] for row in ROWS]
    first = whole(table(folder, rows, names), weight="weight").fingerprint
    rows[3][2] = 2.0
    second = whole(table(folder, rows, names), weight="weight").fingerprint
    rows[3][1] = "owl"
    third = whole(table(folder, rows, names), weight="weight").fingerprint
    assert len({first, second, third, whole(table(folder)).fingerprint}) == 4


def test_repeated_rows_are_dropped(folder, caplog):
    rows = [*ROWS, ROWS[0], ("images\\01.png", "dog")]
    assert len(whole(table(folder, rows))) == 60
    assert any("dropped 2 rows that repeat an image" in text for text in warnings(caplog))


def test_a_few_missing_files_are_skipped(folder, caplog):
    path = table(folder, [*ROWS, ("images/61.png", "cat"), ("images", "cat")])
    assert len(whole(path)) == 60
    found = warnings(caplog)
    assert any(f"{path}:62 lists images/61.png, which is not a file" in text for text in found)
    assert any(f"{path}:63 lists images, which is not a file" in text for text in found)


def test_an_unreadable_image_has_no_weight(folder, caplog):
    (folder / ROWS[4][0]).write_bytes(b"no image")
    batch = whole(table(folder)).gather(np.arange(3, 6))
    np.testing.assert_array_equal(batch["weight"], [1, 0, 1])
    assert any("04.png" in text for text in warnings(caplog))


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([(f"x/{p}", k) for p, k in ROWS], {}, r"(?s)60 lines .*relative to .*--data.root.*:2 l"),
        ([(p[1:], k) for p, k in ROWS[:20]], {"max_unreadable": 50}, "lists no images that exist"),
        ([*ROWS, ("", "cat")], {"max_unreadable": 0}, ":62 has an empty text in column path"),
        ([*ROWS, ("images/00.png", " ")], {"max_unreadable": 0}, ":62 has an empty text in col"),
        (
            [*ROWS, (ROWS[0][0], "dog")],
            {},
            r"lists images/00.png twice, .*: line 2 \(cat\) and line 62 \(dog\)",
        ),
        ([(p, "cat") for p, _ in ROWS], {}, "at least two classes in column 'label', has only cat"),
        (ROWS, {"image": "file"}, "has no column 'file'; its columns are path, label"),
        (ROWS, {"split": "split"}, "has no column 'split'"),
        (ROWS, {"root": "/nowhere/at/all"}, "root: no such folder: /nowhere/at/all"),
        ([*ROWS[:58], (ROWS[58][0], "bee")], {"test_fraction": 0.89}, "have too few rows"),
    ],
)  # fmt: skip
def test_mistakes_are_one_message(folder, rows, settings, message):
    with pytest.raises(UserError, match=message):
        load(table(folder, rows), **settings)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train", "holdout"], r"must contain train, val .* got 'holdout' in line 3, .* and 20 m"),
        (["val", "test"], "has 'train' in column 'split', only test, validation"),
        (["train", "test", "test"], "2 of the 3 classes .* all of which are .*: classes dog, owl"),
    ],
)  # fmt: skip
def test_wrong_splits_are_one_message(folder, splits, message):
    with pytest.raises(UserError, match=message):
        load(table(folder, with_splits(splits), (*NAMES, "split")), split="split")


@pytest.mark.parametrize("weight", ["-1", "much", "nan", "inf", "1e39"])
def test_wrong_weights_name_the_line(folder, weight):
    rows = [(*row, 1) for row in ROWS[:-1]] + [(*ROWS[-1], weight)]
    with pytest.raises(UserError, match=f":61 has the weight '{weight}', must be a number of at"):
        load(table(folder, rows, (*NAMES, "weight")), weight="weight", max_unreadable=0)
    path = table(folder, [(*row, 1e-60) for row in ROWS], (*NAMES, "weight"))
    with pytest.raises(UserError, match="all weights in column 'weight' .* are 0 in the train spl"):
        load(path, weight="weight")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_without_weight_is_named(folder, split):
    names = ["train", "train", "validation", "test"] * 15
    rows = [(*row, name, int(name != split)) for row, name in zip(ROWS, names, strict=True)]
    path = table(folder, rows, (*NAMES, "split", "weight"))
    with pytest.raises(UserError, match=f"all weights .* are 0 in the {split} split"):
        load(path, split="split", weight="weight")


def test_another_folder_is_suggested_only_for_missing_files(folder):
    path = table(folder, [("", "cat")])
    with pytest.raises(UserError, match=r"^1 line cannot be read") as error:
        load(path, max_unreadable=0)
    assert "--data.root" not in str(error.value)
    with pytest.raises(UserError, match=r"has no valid rows$"):
        load(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"validation_fraction": 1.5}, "validation_fraction"),
        ({"separator": "::"}, "separator must be one character"),
        ({"encoding": "utf-99"}, "utf-99"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        ImageTable("t.csv", **settings)
    with pytest.raises(UserError, match="apply only to delimiter-separated"):
        ImageTable("t.parquet", header=False)


def test_a_run_from_table_to_prediction(folder, tmp_path):
    """Training, report, evaluation and prediction work as for image folders."""
    rows = [(path, "dark" if n < 30 else "light", 1 + n % 2) for n, (path, _) in enumerate(ROWS)]
    source = ImageTable(
        table(folder, rows, (*NAMES, "weight")),
        weight="weight",
        validation_fraction=0.2,
        channels=1,
    )
    assert from_json(to_json(source)) == source
    config = Config(
        model=SimpleCNN(num_classes=None),
        data=source,
        transform=Images(mean=(0.5,), std=(0.3,), size=8),
        batch_size=16,
        epochs=1.0,
    )
    result = flaxdl.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_text().count("images/") > 0
    assert flaxdl.evaluate(tmp_path / "run") == pytest.approx(
        {name: result.metrics[name] for name in ("loss", "accuracy")}, rel=1e-5
    )
    (prediction,) = flaxdl.predict(tmp_path / "run", [str(folder / ROWS[0][0])])
    assert prediction.label in ("dark", "light")
    flaxdl.export(tmp_path / "run", tmp_path / "weights.safetensors")

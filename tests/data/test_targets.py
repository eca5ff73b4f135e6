"""Tables with several labels or numbers per row: targets and label_separator."""

import csv
import json
import logging
from decimal import Decimal

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from flaxdl.data import ImageTable, TextTable
from flaxdl.data.hash_split import split_of
from flaxdl.data.numeric_labels import check_multi_label, check_numeric_targets
from flaxdl.errors import UserError
from flaxdl.runs.config_json import from_json, to_json

pytestmark = pytest.mark.quick

NAN = np.nan


def write(path, columns):
    """Writes a table with the given columns by name, as the suffix of its path says."""
    rows = list(zip(*columns.values(), strict=True))
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table(columns), path)
    elif path.suffix == ".jsonl":
        lines = (json.dumps(dict(zip(columns, row, strict=True))) for row in rows)
        path.write_text("\n".join(lines) + "\n")
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    return str(path)


def texts(count):
    return [f"text {number}" for number in range(count)]


def load(path, **settings):
    return TextTable(path, **settings).load(seed=0)


def whole(path, **settings):
    return load(path, validation_fraction=0.0, test_fraction=0.0, **settings)


def labels_in(path, **settings):
    return whole(path, **settings).train.labels()


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.fixture
def images(tmp_path):
    """Ten images 0.png to 9.png in a folder."""
    for number in range(10):
        Image.new("L", (4, 4), number).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_columns_of_numbers(tmp_path, suffix):
    is_text = suffix == "csv"
    columns = {
        "text": texts(4),
        "size": [1.5, -2.0, "" if is_text else None, 1e3],
        "price": [3, 0, 7, 2],
    }
    splits = whole(write(tmp_path / f"t.{suffix}", columns), targets=("price", "size"))
    assert splits.classes == ("price", "size")
    labels = splits.train.labels()
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels, [[3, 1.5], [0, -2], [7, NAN], [2, 1000]])
    np.testing.assert_array_equal(splits.train.gather(np.array([2]))["label"], [[7, NAN]])
    check_numeric_targets(splits)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "0", "", " "], [1, 0, NAN, NAN]),
        (["true", "False", "NaN", "null"], [1, 0, NAN, NAN]),
        (["0.5", "-1e3", "+.25", "NA"], [0.5, -1000, 0.25, NAN]),
        (["1", "1", "1e-50", "16777217"], [1, 1, 0, 16777216]),
    ],
)
def test_cells_of_text(tmp_path, cells, expected):
    path = write(tmp_path / "t.csv", {"text": texts(4), "a": cells, "b": [1, 2, 3, 4]})
    np.testing.assert_array_equal(labels_in(path, targets=("a", "b"))[:, 0], expected)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([True, False, None], [1, 0, NAN]),
        ([NAN, 2.5, None], [NAN, 2.5, NAN]),
        ([Decimal("2.50"), Decimal(3), None], [2.5, 3, NAN]),
        ([b"1", b"0.5", b""], [1, 0.5, NAN]),
    ],
)
def test_cells_of_other_types(tmp_path, cells, expected):
    path = write(tmp_path / "t.parquet", {"text": texts(3), "a": cells, "b": [1, 2, 3]})
    np.testing.assert_array_equal(labels_in(path, targets=("a", "b"))[:, 0], expected)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("1,5", "the value '1,5' in column a, must be a finite number with a decimal point, true"),
        ("yes", "the value 'yes' in column a, must be a finite number, true, false or empty"),
        ("1_000", "the value '1_000' in column a, must be a finite number, true"),
        ("inf", "the value 'inf' in column a, must be a finite number, true"),
        ("1e39", "the value '1e39' in column a, must be finite in float32"),
        ("2024-01-31", "the value '2024-01-31' in column a, must be a finite number, true"),
    ],
)
def test_cells_that_are_not_numbers_are_malformed(tmp_path, caplog, cell, message):
    path = write(tmp_path / "t.csv", {"text": texts(3), "a": ["1", cell, "0"], "b": [1, 2, "x"]})
    with pytest.raises(UserError, match=rf"(?s)2 lines cannot be .*t.csv:3 has {message}.*t.csv:4"):
        whole(path, targets=("a", "b"), max_unreadable=1)
    np.testing.assert_array_equal(labels_in(path, targets=("a", "b")), [[1, 1]])
    assert [message in text for text in warnings(caplog)] == [True, False]


def test_rows_without_any_value_are_dropped(tmp_path, caplog):
    path = write(tmp_path / "t.csv", {"text": texts(3), "a": [1, "", ""], "b": ["", "", 0]})
    splits = whole(path, targets=("a", "b"))
    assert list(splits.train.arrays()["inputs"]) == ["text 0", "text 2"]
    np.testing.assert_array_equal(splits.train.labels(), [[1, NAN], [NAN, 0]])
    assert f"{path}: dropped 1 of 3 rows, which have no value in a, b" in warnings(caplog)
    path = write(tmp_path / "t.csv", {"text": texts(2), "a": ["", ""]})
    with pytest.raises(UserError, match=r"t.csv has no row with a value in a$"):
        whole(path, targets=("a",))


def test_a_column_without_training_values_is_refused(tmp_path):
    is_held_out = [split_of(text, 0.1, 0.1) != "train" for text in texts(60)]
    cells = [1 if held_out else "" for held_out in is_held_out]
    columns = {"text": texts(60), "a": range(60), "b": cells}
    path = write(tmp_path / "t.csv", columns)
    with pytest.raises(
        UserError,
        match=r"t.csv has no value in the training split in column b; remove this column fr",
    ):
        load(path, targets=("a", "b"))
    assert load(path, targets=("a",)).classes == ("a",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("a",), "label": "kind"}, "omit targets or label, got targets a and label 'k"),
        ({"targets": ("a",), "label_separator": "|"}, "omit targets or label_separator, got"),
        ({"targets": ("a", "b", "a")}, "targets must be different columns, got a repeatedly"),
        (
            {"targets": "price"},
            r"targets must be a tuple of names, such as \('price',\), got 'price'",
        ),
        ({"label_separator": ""}, "label_separator must not be empty"),
    ],
)
@pytest.mark.parametrize("source", [TextTable, ImageTable])
def test_settings_that_exclude_each_other_are_refused(source, settings, message):
    with pytest.raises(UserError, match=message):
        source("t.csv", **settings)


def test_prices_as_classes_are_listed_in_part(tmp_path):
    path = write(tmp_path / "t.csv", {"text": texts(300), "price": np.linspace(1, 2, 300)})
    with pytest.raises(UserError, match=", 49 more; .*; numbers to predict need --data.targets pr"):
        load(path, label="price")
    message = "give files with --data.validation and --data.test$"
    path = write(tmp_path / "t.csv", {"text": texts(60), "label": [f"k{n}" for n in range(60)]})
    with pytest.raises(UserError, match=f", [0-9]+ more; add rows, .*, or {message}"):
        load(path)


def test_weights_splits_and_other_files(tmp_path):
    columns = {"text": texts(60), "a": range(60), "w": [2] * 60}
    path = write(tmp_path / "t.csv", columns)
    splits = load(path, targets=("a",), weight="w")
    for name in ("train", "validation", "test"):
        expected = [[n] for n, text in enumerate(texts(60)) if split_of(text, 0.1, 0.1) == name]
        arrays = getattr(splits, name).arrays()
        np.testing.assert_array_equal(arrays["label"], expected)
        np.testing.assert_array_equal(arrays["weight"], np.full(len(expected), 2))
    other = write(tmp_path / "v.csv", {"a": ["7.5"], "text": ["other"]})
    splits = load(path, targets=("a",), validation=other)
    np.testing.assert_array_equal(splits.validation.labels(), [[7.5]])
    with pytest.raises(UserError, match="v.csv has no column 'w'"):
        load(path, targets=("w",), validation=other)


def test_a_changed_value_changes_the_fingerprint(tmp_path, images):
    def prints(value):
        text = {"text": texts(10), "a": [*range(9), value]}
        image = {"path": [f"{n}.png" for n in range(10)], "a": [*range(9), value]}
        fractions = {"validation_fraction": 0.0, "test_fraction": 0.0}
        return [
            source(path, targets=("a",), **fractions).load(0).identity()
            for source, path in (
                (TextTable, write(tmp_path / "text.csv", text)),
                (ImageTable, write(images / "image.csv", image)),
            )
        ]

    first = prints(3)
    assert prints(3) == first
    for changed in (prints(3.5), prints("")):
        for one, other in zip(changed, first, strict=True):
            assert one["classes"] == other["classes"] == ["a"]
            assert one["splits"]["train"] != other["splits"]["train"]


def test_several_classes_in_a_column(tmp_path):
    cells = ["cat|dog", "", " owl | cat ", "dog|dog|", "10"]
    splits = whole(
        write(tmp_path / "t.csv", {"text": texts(5), "label": cells}), label_separator="|"
    )
    assert splits.classes == ("10", "cat", "dog", "owl")
    labels = splits.train.labels()
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(
        labels, [[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0]]
    )
    check_multi_label(splits)


def test_several_classes_in_other_files(tmp_path, caplog):
    cells = ["a, b", None, "b", "c,a"] * 15
    path = write(tmp_path / "t.jsonl", {"text": texts(60), "tags": cells})
    other = write(tmp_path / "v.jsonl", {"text": ["x", "y"], "tags": ["c,b", None]})
    settings = {"label": "tags", "label_separator": ","}
    splits = load(path, validation=other, **settings)
    np.testing.assert_array_equal(splits.validation.labels(), [[0, 1, 1], [0, 0, 0]])
    assert len(splits.train) + len(splits.test) == 60
    other = write(tmp_path / "v.jsonl", {"text": ["x", "y"], "tags": ["c,bb", "b"]})
    with pytest.raises(UserError, match=r"v.jsonl has classes that are not in .*t.jsonl: bb; did"):
        load(path, validation=other, **settings)
    caplog.clear()
    load(path, label="tags", label_separator="|")
    assert f"{path}: no row has several labels in column tags divided by '|' (label_separator)" in (
        warnings(caplog)
    )
    with pytest.raises(UserError, match=r"e.jsonl has no labels in column 'tags'"):
        load(write(tmp_path / "e.jsonl", {"text": ["x"], "tags": [None]}), **settings)


def test_images_with_numbers_and_repeated_rows(images, caplog):
    names = [f"{number}.png" for number in range(10)]
    columns = {
        "path": [*names, "./3.png"],
        "part": [*["train"] * 6, "val", "val", "test", "test", "train"],
        "a": [*range(10), 3],
        "b": ["", 1, 0, "", *[1] * 6, "nan"],
    }
    source = ImageTable(write(images / "t.csv", columns), targets=("a", "b"), split="part")
    splits = source.load(seed=0)
    expected = [[0, NAN], [1, 1], [2, 0], [3, NAN], [4, 1], [5, 1]]
    np.testing.assert_array_equal(splits.train.labels(), expected)
    np.testing.assert_array_equal(splits.train.gather(np.array([3]))["label"], [[3, NAN]])
    np.testing.assert_array_equal(splits.test.labels(), [[8, 1], [9, 1]])
    assert "dropped 1 rows that repeat an image" in warnings(caplog)[0]
    columns["b"][-1], columns["a"][3] = 0.5, 16777215
    write(images / "t.csv", columns)
    with pytest.raises(UserError, match=r"line 5 \(train, 16777215, no value\) and"):
        source.load(seed=0)
    columns["a"][3] = 3
    write(images / "t.csv", columns)
    with pytest.raises(
        UserError,
        match=r"lists 3.png twice, .*: line 5 \(train, 3, no value\) and line 12 \(train, 3, 0.5\)",
    ):
        source.load(seed=0)
    assert from_json(to_json(source, "data")) == source


def test_images_with_several_classes_and_repeated_rows(images):
    names = [f"{number}.png" for number in range(10)]
    columns = {"path": [*names, "0.png"], "label": ["a;b", "b", *["c"] * 8, "b ;a"]}
    source = ImageTable(
        write(images / "t.csv", columns),
        label_separator=";",
        validation_fraction=0,
        test_fraction=0,
    )
    splits = source.load(seed=0)
    assert splits.classes == ("a", "b", "c")
    np.testing.assert_array_equal(splits.train.labels()[:3], [[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    assert len(splits.train) == 10
    columns["label"][-1] = ""
    write(images / "t.csv", columns)
    with pytest.raises(UserError, match=r"line 2 \(a, b\) and line 12 \(no label\)"):
        source.load(seed=0)

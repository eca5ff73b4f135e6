import csv
import json
import logging
import re
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from flaxdl.data import TextTable
from flaxdl.data.hash_split import split_of
from flaxdl.data.table_files import read_table
from flaxdl.runs.config_json import from_json, to_json, upgraded

pytestmark = pytest.mark.quick

ROWS = [(f"review {number}, “{'very ' * (number % 3)}good”", number % 3) for number in range(60)]


def write(path, rows=ROWS, names=("text", "label")):
    """Writes a table as its suffix says."""
    if path.suffix == ".parquet":
        columns = {
            name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)
        }
        parquet.write_table(pyarrow.table(columns), path)
    elif path.suffix in (".jsonl", ".json"):
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([names, *rows])
    return str(path)


def load(path, **settings):
    return TextTable(str(path), **settings).load(seed=0)


def whole(path, **settings):
    return load(path, validation_fraction=0.0, test_fraction=0.0, **settings)


def rows(dataset, classes):
    arrays = dataset.arrays()
    return [
        (text, classes[label])
        for text, label in zip(arrays["inputs"], arrays["label"], strict=True)
    ]


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet", "CSV"])
def test_every_kind_of_table(tmp_path, suffix):
    path = tmp_path / f"reviews.{suffix}"
    if suffix == "CSV":
        write(tmp_path / "a.csv")
        (tmp_path / "a.csv").rename(path)
    else:
        write(path)
    splits = whole(path)
    assert splits.classes == ("0", "1", "2")
    assert (splits.validation, splits.test) == (None, None)
    assert rows(splits.train, splits.classes) == [(text, str(label)) for text, label in ROWS]
    arrays = splits.train.arrays()
    assert (arrays["inputs"].dtype, arrays["label"].dtype) == (object, np.int32)


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\r")).filter(str.strip),
            st.sampled_from(["good", "bad, but", 'the "rest"', "two\nlines"]),
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=60, deadline=None)
def test_what_csv_writes_comes_back(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("tables") / "t.csv"
    write(path, table)
    found, broken = read_table(str(path), ["text", "label"])
    assert [tuple(values) for _, values in found] == table
    assert broken == {}


def test_hashes_split_and_outlive_new_rows(tmp_path):
    before = load(write(tmp_path / "a.csv"))
    more = [(f"new {number}", 1) for number in range(40)]
    after = load(write(tmp_path / "b.csv", [*more, *ROWS[::-1]]))
    for split in ("train", "validation", "test"):
        old, new = (set(getattr(s, split).arrays()["inputs"]) for s in (before, after))
        assert old == {text for text in new if text.startswith("review")}
        assert {split_of(text, 0.1, 0.1) for text in new} == {split}
    assert sum(len(getattr(before, s)) for s in ("train", "validation", "test")) == 60


def test_files_for_validation_and_test(tmp_path):
    train, dev, test = (
        write(tmp_path / name, part)
        for name, part in (("t.csv", ROWS), ("d.jsonl", ROWS[:3]), ("e.tsv", ROWS[3:8]))
    )
    splits = load(train, validation=dev, test=test)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (60, 3, 5)
    splits = load(train, validation=dev)
    assert len(splits.train) + len(splits.test) == 60
    write(tmp_path / "d.jsonl", [("fine", "excellent")])
    with pytest.raises(ValueError, match=r"d.jsonl has classes that are not in .*t.csv: excellent"):
        load(train, validation=dev)
    train = write(
        tmp_path / "t.csv", [(text, ["bad", "good"][number % 2]) for text, number in ROWS]
    )
    write(tmp_path / "d.jsonl", [("fine", "Good")])
    with pytest.raises(ValueError, match=r"not in .*t.csv: Good; did you mean 'good'\?"):
        load(train, validation=dev)


def test_pairs(tmp_path):
    table = [(f"a {n}", f"b {n}", "yes" if n % 2 else "no") for n in range(60)]
    path = write(tmp_path / "pairs.tsv", table, ("premise", "hypothesis", "answer"))
    splits = load(path, text="premise", pair="hypothesis", label="answer")
    assert splits.classes == ("no", "yes")
    for split in (splits.train, splits.validation, splits.test):
        arrays = split.arrays()
        assert [text.replace("a", "b") for text in arrays["inputs"]] == list(arrays["pair"])
    with pytest.raises(
        ValueError, match="has no column 'text'; its columns are premise, hypothesis, answer"
    ):
        load(path)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "1"], ("1", "9", "10")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["good", "Bad", "élan"], ("Bad", "good", "élan")),
    ],
)
def test_whole_numbers_are_sorted_as_numbers(tmp_path, labels, classes):
    path = write(tmp_path / "t.csv", [(f"text {n}", labels[n % 3]) for n in range(30)])
    assert whole(path).classes == classes


def test_labels_of_other_types(tmp_path):
    for values, classes in [([True, False], ("False", "True")), ([2.0, 10.0], ("2", "10"))]:
        path = write(tmp_path / "t.parquet", [(f"text {n}", values[n % 2]) for n in range(30)])
        assert whole(path).classes == classes
        path = write(tmp_path / "t.jsonl", [(f"text {n}", values[n % 2]) for n in range(30)])
        assert whole(path).classes == classes


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([Decimal("2.50"), Decimal("10.00")], ("10", "2.5")),
        ([Decimal("100.0"), Decimal("2.0")], ("2", "100")),
        ([date(2024, 2, 1), date(2023, 11, 5)], ("2023-11-05", "2024-02-01")),
        ([datetime(2024, 2, 1, 3), datetime(2023, 11, 5)],
         ("2023-11-05 00:00:00", "2024-02-01 03:00:00")),
    ],
)  # fmt: skip
def test_labels_of_types_that_parquet_has(tmp_path, values, classes):
    path = write(tmp_path / "t.parquet", [(f"text {n}", values[n % 2]) for n in range(30)])
    assert whole(path).classes == classes


def test_what_is_no_text_is_told_from_what_is_missing(tmp_path):
    table = [("fine", b"\xff"), ("fine", None), (" ", b"\xfe"), (None, None)]
    path = write(tmp_path / "t.parquet", table)
    with pytest.raises(ValueError, match="4 lines cannot be read") as error:
        whole(path, max_unreadable=3)
    kind = "bytes that are not text in column label"
    for reason in (
        f"t.parquet:1 has {kind}\n",
        "t.parquet:2 has no value in column label\n",
        f"t.parquet:3 has an empty text in column text; {kind}\n",
        "t.parquet:4 has no value in column text; no value in column label",
    ):
        assert reason in str(error.value)


TEXT = 'text,label\r\n"one\r\nand ""a half"", both",a\r\n\r\nthree,b\r\n'


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_quotes_newlines_carriage_returns_and_a_byte_order_mark(tmp_path, mark):
    (tmp_path / "t.csv").write_bytes(mark + TEXT.encode())
    found, _ = read_table(str(tmp_path / "t.csv"), ["text", "label"])
    assert found == [(2, ['one\r\nand "a half", both', "a"]), (5, ["three", "b"])]


def test_a_quote_in_tsv_is_literal_unless_lines_are_quoted(tmp_path):
    (tmp_path / "literal.tsv").write_text('text\tlabel\n"wonderful\t1\nthe "end"\t0\n')
    found = whole(tmp_path / "literal.tsv").train.arrays()["inputs"]
    assert list(found) == ['"wonderful', 'the "end"']
    (tmp_path / "quoted.tsv").write_text('text\tlabel\n"two\nlines"\t1\n"a\ttab"\t0\n')
    assert list(whole(tmp_path / "quoted.tsv").train.arrays()["inputs"]) == ["two\nlines", "a\ttab"]


def test_long_texts_are_no_trouble(tmp_path):
    table = [("x" * 200_000, "a"), ("y", "b")]  # the csv module's own limit is 131,072
    assert rows(whole(write(tmp_path / "t.csv", table)).train, "ab") == table
    assert csv.field_size_limit() == 131_072


BROKEN = {
    "csv": 'text,label\nfine,a\none,two,three\nlost\n"cut" off,a\n,a\nno label,\ngood,b\n',
    "jsonl": '{"text": "fine", "label": "a"}\n["a"]\n{"text": \n{"text": "lost"}\n'
    '{"text": "  ", "label": "a"}\n{"text": ["x"], "label": "a"}\n{"text": "good", "label": "b"}\n',
}


@pytest.mark.parametrize(
    ("suffix", "lines"),
    [
        ("csv", ["3 must have 2 fields, got 3", "4 must have 2 fields, got 1", "5 is malformed: ",
                 "6 has an empty text in column text", "7 has an empty text in column label"]),
        ("jsonl", ['2 must be a JSON object, got \\["a"\\]', "3 is malformed: ",
                   "4 has no value in column label", "5 has an empty text in column text",
                   "6 has a value of type list in column text, must be text, a number or a date"]),
    ],
)  # fmt: skip
def test_broken_lines_are_counted(tmp_path, suffix, lines, caplog):
    path = tmp_path / f"t.{suffix}"
    path.write_text(BROKEN[suffix])
    splits = whole(path, max_unreadable=5)
    assert rows(splits.train, splits.classes) == [("fine", "a"), ("good", "b")]
    found = warnings(caplog)
    assert len(found) == 5
    for line in lines:
        assert any(re.search(f"{path}:{line}", message) for message in found), line
    with pytest.raises(
        ValueError,
        match=rf"(?s)5 lines cannot be read, more than max_unreadable = 4, of 7 in .*"
        rf"set --data.max-unreadable 5:.*{path}:[67]",
    ):
        whole(path, max_unreadable=4)


@pytest.mark.parametrize("end", ["", '"d" e,2\n', '"d",2\n'])
def test_a_quote_without_end_loses_lines_and_each_is_counted(tmp_path, caplog, end):
    path = tmp_path / "t.csv"
    path.write_text('text,label\na,1\nb,2\n"never ends,1\nc,2\n' + end)
    assert len(whole(path).train) == 2
    lost = 3 if end else 2
    found = warnings(caplog)
    assert [message.split(" ")[0] for message in found] == [f"{path}:{4 + n}" for n in range(lost)]
    with pytest.raises(ValueError, match=f"{lost} lines cannot be read"):
        whole(path, max_unreadable=lost - 1)


def test_half_a_character_is_replaced(tmp_path):
    (tmp_path / "t.jsonl").write_text(
        '{"text": "a\\ud83d", "label": 0}\n{"text": "\\ud83d\\ude00", "label": 1}\n'
    )
    assert list(whole(tmp_path / "t.jsonl").train.arrays()["inputs"]) == ["a?", "😀"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "t.csv has no rows"),
        ("t.csv", b"text,label\n", "t.csv has no rows"),
        ("t.jsonl", b"\n\n", "t.jsonl has no rows"),
        ("t.csv", b"text,label\na,1\nb,1\n", "two classes in column 'label', has only 1"),
        ("t.csv", b"txt,stars\na,1\n", "'text'; its columns are txt, stars; did you mean 'txt'"),
        ("t.jsonl", b'{"text": "a"}\n', "has no column 'label'; its columns are text"),
        ("t.csv", "text,label\né,1\n".encode("latin-1"), "invalid byte 0xe9 in line 2; .*1252"),
        ("t.jsonl", b"text,label\na,1\n", r"one JSON object per line, {...}, got 'text,label"),
        ("t.json", b'[{"text": "a"}]', "one JSON object per line, {...}, got a list"),
        ("t.parquet", b"PAR1 nothing", "t.parquet cannot be read as a Parquet file"),
        ("t.csv", b"text,label,text\na,1,b\n", "must have one column 'text', has 2 of that name"),
        ("t.tsv", b"text\tlabel\tlabel\na\t1\t2\n", "must have one column 'label', has 2"),
        ("t.txt", b"a", "tables must be .csv, .tsv, .jsonl, .json, .parquet files, or"),
        ("t.csv", b"text,label\na,1\nb,2\n", "too few rows: none of 2 was assigned to the"),
    ],
)  # fmt: skip
def test_tables_without_use_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / name)


def test_missing_files_and_columns(tmp_path):
    write(tmp_path / "reviews.csv")
    with pytest.raises(ValueError, match=r"no such file: .*review.csv; did you mean 'reviews.csv'"):
        load(tmp_path / "review.csv")
    write(tmp_path / "t.parquet", ROWS, ("review", "stars"))
    with pytest.raises(ValueError, match=r"has no column 'labels'; its columns are review, stars"):
        load(tmp_path / "t.parquet", text="review", label="labels")


def test_repeated_names_matter_where_they_are_asked_for(tmp_path):
    (tmp_path / "t.csv").write_text("id,text,id,label\n1,a,2,x\n3,b,4,y\n")
    assert rows(whole(tmp_path / "t.csv").train, "xy") == [("a", "x"), ("b", "y")]
    columns = [["a", "b"], ["x", "y"], ["c", "d"]]
    table = pyarrow.table([pyarrow.array(c) for c in columns], names=["text", "label", "text"])
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="t.parquet must have one column 'text', has 2"):
        whole(tmp_path / "t.parquet")


@pytest.mark.parametrize("method", ["is_file", "read_bytes"])
def test_files_without_permission_are_named(tmp_path, monkeypatch, method):
    path = write(tmp_path / "t.csv")

    def refuse(file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(ValueError, match=r"t.csv cannot be read: Permission denied"):
        load(path)


@pytest.mark.parametrize(("separator", "called"), [(";", "semi"), ("\t", "tabs"), ("|", "vert")])
def test_separators(tmp_path, separator, called):
    lines = [f"review {number}, good{separator}{label}" for number, label in ROWS]
    content = "\n".join([f"text{separator}label", *lines]) + "\n"
    (tmp_path / "t.csv").write_text(content)
    written = separator.replace("\t", "\\t")
    expected = (
        rf"'text'; its columns are .*; fields seem to be separated by {called}\w*( bars)?: "
        + re.escape(f'set separator="{written}" (--data.separator "{written}")')
    )
    with pytest.raises(ValueError, match=expected):
        load(tmp_path / "t.csv")
    for spelling in {separator, written}:
        splits = whole(tmp_path / "t.csv", separator=spelling)
        assert splits.train.arrays()["inputs"][0] == lines[0].split(separator)[0]
        assert splits.classes == ("0", "1", "2")
    (tmp_path / "t.csv").write_text(
        f"sep={separator}\r\n" + content + f"lost{separator}a{separator}b\n"
    )
    assert len(whole(tmp_path / "t.csv").train) == 60
    with pytest.raises(ValueError, match="t.csv:63 must have 2 fields, got 3"):
        whole(tmp_path / "t.csv", max_unreadable=0)
    with pytest.raises(ValueError, match=r"t.csv begins with sep=.*, but separator is ','"):
        load(tmp_path / "t.csv", separator=",")
    (tmp_path / "t.data").write_text(content)
    assert len(whole(tmp_path / "t.data", separator=separator).train) == 60


def test_tables_without_a_header(tmp_path, caplog):
    lines = [f'"{1 + number % 2}","Wall St. {number}","words {number}"' for number in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    hint = r"no header: set header=False \(--data.no-header\) and give column numbers: 1, 2"
    for columns in ({}, {"text": "3", "label": "1"}):
        with pytest.raises(ValueError, match=hint):
            load(tmp_path / "t.csv", **columns)
    with pytest.raises(
        ValueError, match=r"'text'; its columns are 1, 2, 3; .* as in --data.text 2"
    ):
        load(tmp_path / "t.csv", header=False)
    splits = whole(tmp_path / "t.csv", header=False, text="3", label="1", pair="2")
    assert splits.classes == ("1", "2")
    assert splits.train.gather(np.array([0, 29]))["inputs"].tolist() == ["words 0", "words 29"]
    assert splits.train.arrays()["pair"][1] == "Wall St. 1"
    assert warnings(caplog) == []
    (tmp_path / "t.csv").write_text("Text,label\nx,a\ny,b\n")
    whole(tmp_path / "t.csv", header=False, text="1", label="2")
    assert warnings(caplog) == [
        f"the first row of {tmp_path}/t.csv looks like a header (Text, label) but is read as data"
    ]
    (tmp_path / "t.csv").write_text("good film,pos\nbad film,neg\nfilm,pos\n")  # no numbers
    with pytest.raises(ValueError, match=hint):
        load(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('"He said \\"no\\", ok",b', r'is malformed: quotes seem to be escaped .* \(\\"\)'),
        ('"ends \\"",b', r'is malformed: quotes seem to be escaped with a backslash \(\\"\)'),
        ('a "b" c, "x, y"', "must have 2 fields, got 3"),
        ('"a" b,c, "d"', "is malformed: there is a space between a separator and a quote"),
    ],
)
def test_causes_of_broken_lines(tmp_path, line, reason):
    (tmp_path / "t.csv").write_text(f"text,label\nx,a\n{line}\n")
    with pytest.raises(ValueError, match=f"t.csv:3 {reason}"):
        whole(tmp_path / "t.csv", max_unreadable=0)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("cp1252", "cp1252"), ("gb18030", "gb18030"), ("utf-16", "utf-8"), ("utf-32", "utf-8"),
        ("utf-8-sig", "cp1252"), ("utf-16-le", "utf-16-le"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_encodings(tmp_path, written, read, suffix):
    table = [("文 good" if "gb" in written else "très bon", "a"), ("bad", "b")]
    path = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        content = "text,label\n" + "".join(f"{text},{label}\n" for text, label in table)
    else:
        lines = [{"text": text, "label": label} for text, label in table]
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_bytes(content.encode(written))
    splits = whole(path, encoding=read)
    assert rows(splits.train, splits.classes) == table


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("cp1252", 'set encoding="cp1252" .* if it is in Windows-1252'),
        ("gb18030", 'set encoding="gb18030" .* or its actual encoding, such as shift_jis'),
        ("utf-16-le", 'as in UTF-16; set encoding="utf-16-le"'),
        ("utf-16-be", 'as in UTF-16; set encoding="utf-16-be"'),
    ],
)
def test_likely_encodings_are_named(tmp_path, encoding, message):
    word = "文字" if encoding == "gb18030" else "a" if "16" in encoding else "déjà vu"
    (tmp_path / "t.csv").write_bytes(f"text,label\n{word},a\n".encode(encoding))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "t.csv")


def test_a_wrong_encoding_is_noticed(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("text,label\né,a\nü,b\n", encoding="utf-8")
    assert whole(tmp_path / "t.csv", encoding="latin-1").train.arrays()["inputs"][0] == "Ã©"
    assert warnings(caplog) == [f"{tmp_path}/t.csv seems to be in UTF-8 but is read as latin-1"]
    (tmp_path / "t.csv").write_text("text,label\nÿ\n", encoding="utf-8")
    with pytest.raises(ValueError, match='t.csv is not valid ASCII: .* set encoding="utf-8"'):
        whole(tmp_path / "t.csv", encoding="ascii")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"separator": ";;"},
            "separator must be one character other than a quote or newline, got ';;'",
        ),
        ({"separator": '"'}, "separator must be one character other than a quote"),
        ({"separator": ""}, "separator must be one character other than a quote"),
        ({"encoding": "utf88"}, "text encodings, such as utf-8, .* 'utf88'; did you mean 'utf-8'"),
        ({"encoding": "base64"}, "encoding must be one of Python's text encodings"),
        (
            {"path": "t.jsonl", "separator": ";"},
            "only to delimiter-separated files, such as .csv, got 't.jsonl'",
        ),
        (
            {"path": "t.parquet", "header": False},
            "separator and header apply only to delimiter-separated files",
        ),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        TextTable(**{"path": "t.csv"} | settings)


def test_a_table_of_an_earlier_run_is_read_as_it_was():
    record = to_json(TextTable("t.csv"))
    earlier = {k: v for k, v in record.items() if k not in ("separator", "header", "encoding")}
    assert upgraded(earlier) == record
    assert from_json(earlier) == TextTable("t.csv", separator=None, header=True, encoding="utf-8")


def test_options_are_for_the_separated_files_among_several(tmp_path):
    write(tmp_path / "dev.jsonl", [("fine", 1)])
    (tmp_path / "t.csv").write_text("".join(f"text {n};{n % 2}\n" for n in range(60)))
    with pytest.raises(
        ValueError, match=r"dev.jsonl has no column '1'; its columns are text, label"
    ):
        load(
            tmp_path / "t.csv", separator=";", header=False, text="1", label="2",
            validation=str(tmp_path / "dev.jsonl"),
        )  # fmt: skip
    (tmp_path / "t.csv").write_text("text;label\n" + "".join(f"t {n};{n % 2}\n" for n in range(60)))
    splits = load(tmp_path / "t.csv", separator=";", validation=str(tmp_path / "dev.jsonl"))
    assert list(splits.validation.arrays()["inputs"]) == ["fine"]


@pytest.mark.parametrize(
    ("labels", "classes", "told"),
    [
        (["pos", "neg", "pos ", "\tneg"], ("neg", "pos"), []),
        (
            ["1", "0", "1.0", "0.00"],
            ("0", "1"),
            ["labels 0 and 0.00", "labels 1 and 1.0 are treated as one"],
        ),
        (["1.0", "0.0"], ("0.0", "1.0"), []),
        (["01", "1", "1.5"], ("01", "1", "1.5"), []),
        (["café", "cafe\u0301", "tea"], ("café", "tea"), []),
        (["Pos", "pos", "neg"], ("Pos", "neg", "pos"), ["classes Pos, pos differ only in case"]),
    ],
)
def test_spellings_of_one_class(tmp_path, caplog, labels, classes, told):
    table = [(f"text {n}", labels[n % len(labels)]) for n in range(24)]
    splits = whole(write(tmp_path / "t.csv", table))
    assert splits.classes == classes
    assert splits.train.labels().tolist()[: len(labels)] == [
        classes.index(label) if label in classes else found
        for label, found in zip(labels, splits.train.labels().tolist(), strict=False)
    ]
    found = warnings(caplog)
    assert len(found) == len(told)
    for message, part in zip(found, told, strict=True):
        assert part in message


def test_spellings_in_other_files(tmp_path):
    train = write(tmp_path / "t.parquet", [(f"text {n}", float(n % 2)) for n in range(60)])
    dev = write(tmp_path / "d.csv", [("new", "1.0"), ("newer", " 0")])
    test = write(tmp_path / "e.jsonl", [("newest", 1)])
    splits = load(train, validation=dev, test=test)
    assert splits.classes == ("0", "1")
    assert splits.validation.labels().tolist() == [1, 0]
    assert splits.test.labels().tolist() == [1]


def test_blanks_around_the_names_of_columns(tmp_path):
    (tmp_path / "t.csv").write_text("text , label\na, x\nb, y\n")
    assert rows(whole(tmp_path / "t.csv").train, "xy") == [("a", "x"), ("b", "y")]
    (tmp_path / "t.csv").write_text("text ,text,label\na,b,x\nc,d,y\n")
    assert rows(whole(tmp_path / "t.csv").train, "xy") == [("b", "x"), ("d", "y")]
    assert rows(whole(tmp_path / "t.csv", text="text ").train, "xy") == [("a", "x"), ("c", "y")]
    (tmp_path / "t.csv").write_text("text ,text  ,label\na,b,x\n")
    with pytest.raises(ValueError, match="t.csv must have one column 'text', has 2 of that name"):
        whole(tmp_path / "t.csv")
    write(tmp_path / "t.jsonl", [("a", "x"), ("b", "y")], (" text", "label "))
    assert rows(whole(tmp_path / "t.jsonl").train, "xy") == [("a", "x"), ("b", "y")]
    write(tmp_path / "t.parquet", [("a", "x"), ("b", "y")], (" text", "label "))
    assert rows(whole(tmp_path / "t.parquet").train, "xy") == [("a", "x"), ("b", "y")]


def test_bytes_in_parquet_are_texts(tmp_path):
    path = write(tmp_path / "t.parquet", [("été".encode(), b"a"), (b"hiver", b"b ")])
    assert rows(whole(path).train, "ab") == [("été", "a"), ("hiver", "b")]


def test_bytes_in_python_s_notation_are_told(tmp_path, caplog):
    whole(write(tmp_path / "t.csv", [("b'good'", "a"), ('b"bad"', "b"), ("fine", "a")]))
    (message,) = warnings(caplog)
    assert "2 of 3 texts" in message
    assert "bytes, such as b'good'; decode the bytes" in message


def test_classes_that_are_held_out_are_named_together(tmp_path):
    table = [(f"text number {n}", f"k{n:02}") for n in range(40)]
    held_out = [label for text, label in table if split_of(text, 0.1, 0.1) != "train"]
    with pytest.raises(ValueError, match=f"{len(held_out)} of the 40 classes .* all of which are "
                       f"held out: classes {', '.join(held_out)}; add rows, "):  # fmt: skip
        load(write(tmp_path / "t.csv", table))


def test_texts_of_other_files_that_are_in_training_are_told(tmp_path, caplog):
    train = write(tmp_path / "t.csv")
    load(train, test=write(tmp_path / "e.csv", [("new", 1)] * 57 + ROWS[:3]))
    assert warnings(caplog) == []
    load(train, test=train)
    assert [f"60 of 60 texts in {train} are also in {train}" in m for m in warnings(caplog)] == [
        True
    ]
    caplog.clear()
    load(train, validation=write(tmp_path / "e.csv", [("new", 1)] * 27 + ROWS[:3]))
    assert "3 of 30 texts in" in warnings(caplog)[0]


def test_few_of_many_columns_are_listed(tmp_path):
    names = [f"c{number}" + "x" * 70 * (number == 1) for number in range(30)]
    (tmp_path / "t.csv").write_text(",".join(names) + "\n" + ",".join("a" * 30) + "\n")
    with pytest.raises(
        ValueError, match=r"'text'; its columns are c0, c1x{58}\.\.\., .*c19, 10 more"
    ):
        load(tmp_path / "t.csv")


def test_folders_are_no_tables(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; tables must be .csv, .tsv, "):
        load(tmp_path)


def test_weights_of_texts(tmp_path):
    weighted = [(*row, number % 4) for number, row in enumerate(ROWS)]
    path = write(tmp_path / "t.csv", weighted, ("text", "label", "importance"))
    test = write(tmp_path / "test.csv", [("new", 0), ("newer", 1)])
    splits = load(path, weight="importance", test=test)
    numbers = [int(text.split()[1].strip(",")) for text in splits.train.arrays()["inputs"]]
    np.testing.assert_array_equal(splits.train.arrays()["weight"], np.array(numbers) % 4)
    assert splits.train.arrays()["weight"].dtype == np.float32
    np.testing.assert_array_equal(splits.test.arrays()["weight"], [1, 1])  # has no such column
    assert "weight" not in load(path).train.arrays()
    write(tmp_path / "t.csv", [*weighted, ("bad", 1, -1)], ("text", "label", "importance"))
    with pytest.raises(ValueError, match=":62 has the weight '-1', must be a number of at least 0"):
        load(path, weight="importance", max_unreadable=0)
    write(tmp_path / "t.csv", [(*row, 0) for row in ROWS], ("text", "label", "importance"))
    with pytest.raises(ValueError, match="all weights in column 'importance' .* are 0"):
        load(path, weight="importance")
    held_out = load(path).test.arrays()["inputs"]
    rows = [(text, label, int(text not in held_out)) for text, label in ROWS]
    write(tmp_path / "t.csv", rows, ("text", "label", "importance"))
    with pytest.raises(ValueError, match="are 0 in the test split"):
        load(path, weight="importance")

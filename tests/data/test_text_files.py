"""Files that are no text are named by their content, whatever they are called."""

import bz2
import gzip
import io
import lzma
import zipfile

import pyarrow
import pytest
from pyarrow import feather, parquet

from flaxdl.data.text_files import check_kind, read_text

pytestmark = pytest.mark.quick

TEXT = b"text,label\nfine,1\n"


def zipped(*names):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return content.getvalue()


def written(write):
    content = io.BytesIO()
    write(pyarrow.table({"text": ["fine"]}), content)
    return content.getvalue()


KINDS = [
    (
        zipped("[Content_Types].xml", "xl/workbook.xml"),
        r"an Excel workbook \(.xlsx\); save it as CSV",
    ),
    (zipped("word/document.xml"), "a Word document"),
    (zipped("mimetype", "content.xml", "META-INF/manifest.xml"), "an OpenDocument file"),
    (zipped("t.csv"), "a ZIP archive; decompress it first"),
    (zipped("t.csv")[:-20], "a truncated or damaged ZIP archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504), r"an Excel workbook \(.xls\); save"),
    (gzip.compress(TEXT), "a gzip archive; decompress it first"),
    (bz2.compress(TEXT), "a bzip2 archive"),
    (lzma.compress(TEXT), "an xz archive"),
    (b"\x28\xb5\x2f\xfd\x04\x00", "a Zstandard archive"),
    (written(parquet.write_table), "a Parquet file; rename it to .parquet"),
    (written(lambda t, f: feather.write_feather(t, f, compression="uncompressed")), "an Arrow"),
    (b"<!doctype html>\n<title>Sign in</title>", r"a web page \(HTML\); download the data"),
    (b"\xef\xbb\xbf\n<!-- a --><!-- b -->\n<HTML lang='en'>", "a web page"),
    (b'<?xml version="1.0"?><Workbook/>', "an XML document"),
    (b"%PDF-1.7\n", "a PDF document"),
    (b"{\\rtf1 text}", "an RTF document"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS .*git lfs pull"),
]


# Archives contain the time, which may not be part of a test's name: workers collect at other times.
@pytest.mark.parametrize(("content", "message"), KINDS, ids=[message for _, message in KINDS])
@pytest.mark.parametrize("name", ["t.csv", "t"])
def test_other_kinds_are_named(tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is {message}"):
        read_text(tmp_path / name, "utf-8")


@pytest.mark.parametrize(
    "text",
    ["", "PK,text\n", "BZhang,text\n", "PAR1,text\n", "<b>bold</b>,1\n", "%PDF,1\n", "7z,Rar!\n"],
)
def test_texts_that_begin_alike_are_texts(tmp_path, text):
    (tmp_path / "t").write_text(text)
    assert read_text(tmp_path / "t", "utf-8") == text


def test_many_comments_take_no_time(tmp_path):
    (tmp_path / "t").write_text("<!---->" * 2000 + "x")
    check_kind(tmp_path / "t")

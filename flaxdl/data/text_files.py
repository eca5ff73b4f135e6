"""Reading text files: their encoding, and what is no text at all."""

import codecs
import logging
import re
import zipfile
from collections.abc import Collection
from pathlib import Path

from flaxdl.checks import did_you_mean
from flaxdl.errors import UserError

_LOGGER = logging.getLogger(__name__)

# Byte order marks; that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_COMMON = ("utf-8", "utf-16", "cp1252", "latin-1", "cp1251", "gb18030", "shift_jis", "euc_kr")
MARKUP = ("a web page (HTML)", "an XML document")  # no tables, but texts
_ARCHIVE = "decompress it first"
_SAMPLE_BYTES = 4096
# How other kinds of files begin, what they are, and the remedy.
_KINDS = (
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook (.xls)", "save it as CSV UTF-8"),
    (rb"\x1f\x8b", "a gzip archive", _ARCHIVE),
    (rb"BZh[1-9]1AY&SY", "a bzip2 archive", _ARCHIVE),
    (rb"\xfd7zXZ\0", "an xz archive", _ARCHIVE),
    (rb"\x28\xb5\x2f\xfd", "a Zstandard archive", _ARCHIVE),
    (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _ARCHIVE),
    (rb"Rar!\x1a\x07", "a RAR archive", _ARCHIVE),
    (rb"PAR1[^ -~\s]", "a Parquet file", "rename it to .parquet"),
    (rb"ARROW1\0", "an Arrow (Feather) file", "save it as Parquet"),
    (rb"%PDF-", "a PDF document", "save its text"),
    (rb"\{\\rtf", "an RTF document", "save its text"),
    (rb"SQLite format 3\0", "an SQLite database", "export the table as CSV"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", "export the table as CSV"),
    (rb"\x93NUMPY", "a NumPy file", "export the table as CSV"),
    (rb"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull`"),
    (rb"\s*<(!doctype\s+html|html|head|body|table)\b", MARKUP[0], "download the data"),
    (rb"\s*<\?xml\b", MARKUP[1], "export the table as CSV"),
)
# What a ZIP archive is, by the beginning of a name in it.
_ZIPPED = {
    "xl/": ("an Excel workbook (.xlsx)", "save it as CSV UTF-8"),
    "word/": ("a Word document (.docx)", "save its text"),
    "META-INF/manifest.xml": ("an OpenDocument file", "save it as CSV UTF-8"),
}


def check_encoding(encoding: str) -> None:
    """Checks that Python has a text encoding of that name.

    Raises:
        UserError: with the nearest name, if it has none.
    """
    try:
        b"a".decode(encoding)
    except UnicodeError:  # one byte alone may be no character
        pass
    except LookupError:
        raise UserError(
            f"encoding must be one of Python's text encodings, such as {', '.join(_COMMON)}, "
            f"got {encoding!r}{did_you_mean(encoding, _COMMON)}"
        ) from None


def read_text(file: Path, encoding: str, *, allowed: Collection[str] = ()) -> str:
    """Reads a text file; a byte order mark takes precedence over `encoding`.

    Args:
        file: the file.
        encoding: the name of its encoding.
        allowed: kinds of files that are texts as well, as in `MARKUP`.

    Raises:
        UserError: if it cannot be read, is of another kind, such as an Excel workbook, or not in
            that encoding, with the likely one.
    """
    check_kind(file, allowed)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    return _decoded(data, file, encoding)


def check_kind(file: Path, allowed: Collection[str] = ()) -> None:
    """Checks that a file is not of a kind that is no text, whatever its name.

    Raises:
        UserError: naming the kind and the remedy, unless the kind is allowed.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(_SAMPLE_BYTES)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    kind = _zipped(file) if start.startswith((b"PK\3\4", b"PK\5\6")) else _kind(start)
    if kind is not None and kind[0] not in allowed:
        raise UserError(f"{file} is {kind[0]}; {kind[1]}")


def _kind(start: bytes) -> tuple[str, str] | None:
    plain = re.sub(rb"<!--.*?-->", b"", start.removeprefix(codecs.BOM_UTF8), flags=re.DOTALL)
    for pattern, kind, remedy in _KINDS:
        if re.match(pattern, plain, re.IGNORECASE):
            return kind, remedy
    return None


def _zipped(file: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a ZIP archive that is cut off or damaged", "get it again"
    for start, kind in _ZIPPED.items():
        if any(name.startswith(start) for name in names):
            return kind
    return "a ZIP archive", _ARCHIVE


def _decoded(data: bytes, file: Path, encoding: str) -> str:
    marked = [name for mark, name in _MARKS.items() if data.startswith(mark)]
    if not marked:
        _check_zeros(data, file, encoding)
    encoding = [*marked, encoding][0]
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{file} is not in {encoding.removesuffix('-sig').upper()}: byte "
            f"0x{data[error.start]:02x} in line {line} is not valid; {_likely(data)}"
        ) from None
    except UnicodeError as error:
        raise UserError(f"{file} is not in {encoding}: {error}") from None
    is_other = codecs.lookup(encoding).name != "utf-8"
    if is_other and not marked and not text.isascii() and _is_utf8(data):
        _LOGGER.warning("%s seems to be in UTF-8, but is read as %s", file, encoding)
    return text


def _check_zeros(data: bytes, file: Path, encoding: str) -> None:
    """ASCII in UTF-16 is valid UTF-8 too, with a zero byte beside every letter."""
    even, odd = data[:_SAMPLE_BYTES:2], data[1:_SAMPLE_BYTES:2]
    zeros = {"le": odd.count(0), "be": even.count(0)}
    if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")) or min(zeros.values()):
        return
    order = max(zeros, key=lambda name: zeros[name])
    if 2 * zeros[order] > len(odd):
        raise UserError(
            f"{file} has a zero byte beside most letters, as UTF-16 does; "
            + setting("encoding", f"utf-16-{order}")
        )


def _likely(data: bytes) -> str:
    """Names the likely encoding of a text that is not in the one it was read with."""
    if _is_utf8(data):
        return setting("encoding", "utf-8")
    runs = re.findall(rb"[\x80-\xff]+", data[: 2**20])
    if sum(map(len, runs)) < 1.5 * len(runs):  # accents among letters of ASCII
        return setting("encoding", "cp1252") + ", if it is in Windows-1252 or Latin-1"
    return setting("encoding", "gb18030") + ", or whichever it is in, such as shift_jis or cp1251"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def setting(name: str, value: str | bool) -> str:
    """Says how to set an option of a source, in Python and on the command line."""
    if isinstance(value, bool):
        return f"set {name}={value} (--data.{'' if value else 'no-'}{name})"
    quoted = value.replace("\\", "\\\\").replace("\t", "\\t").replace('"', '\\"')
    return f'set {name}="{quoted}" (--data.{name} "{quoted}")'

"""Reader for text files that checks their encoding and rejects binary formats."""

import codecs
import logging
import re
import zipfile
from collections.abc import Collection
from pathlib import Path

from flaxdl.checks import did_you_mean
from flaxdl.errors import UserError

_LOGGER = logging.getLogger(__name__)

# Byte order marks; UTF-32 comes first because its mark starts with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_COMMON = ("utf-8", "utf-16", "cp1252", "latin-1", "cp1251", "gb18030", "shift_jis", "euc_kr")
MARKUP = ("a web page (HTML)", "an XML document")  # texts, but not tables
_ARCHIVE = "decompress it first"
_SAMPLE_BYTES = 4096
# Signature, description and remedy for other kinds of files.
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
# Start of a name in a ZIP archive → description and remedy.
_ZIPPED = {
    "xl/": ("an Excel workbook (.xlsx)", "save it as CSV UTF-8"),
    "word/": ("a Word document (.docx)", "save its text"),
    "META-INF/manifest.xml": ("an OpenDocument file", "save it as CSV UTF-8"),
}


def check_encoding(encoding: str) -> None:
    """Checks that Python has a text encoding of this name.

    Raises:
        UserError: if there is no such encoding; the message suggests the nearest name.
    """
    try:
        b"a".decode(encoding)
    except UnicodeError:  # a single byte may be an incomplete character
        pass
    except LookupError:
        raise UserError(
            f"encoding must be one of Python's text encodings, such as {', '.join(_COMMON)}, "
            f"got {encoding!r}{did_you_mean(encoding, _COMMON)}"
        ) from None


def read_text(file: Path, encoding: str, *, allowed: Collection[str] = ()) -> str:
    """Reads a text file; a byte order mark takes precedence over `encoding`.

    Args:
        file: path of the file.
        encoding: name of the encoding.
        allowed: descriptions of additional kinds of files to accept, such as those in `MARKUP`.

    Raises:
        UserError: if the file cannot be read, is of another kind, such as an Excel workbook, or has
            another encoding; the message then suggests the likely one.
    """
    check_kind(file, allowed)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    return _decoded(data, file, encoding)


def check_kind(file: Path, allowed: Collection[str] = ()) -> None:
    """Checks by content that a file is not in a known non-text format.

    Raises:
        UserError: if the file is of a known kind that is not in `allowed`; the message contains the
            kind and a remedy.
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
        return "a truncated or damaged ZIP archive", "download or copy it again"
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
            f"{file} is not valid {encoding.removesuffix('-sig').upper()}: invalid byte "
            f"0x{data[error.start]:02x} in line {line}; {_likely(data)}"
        ) from None
    except UnicodeError as error:
        raise UserError(f"{file} is not valid {encoding}: {error}") from None
    is_other = codecs.lookup(encoding).name != "utf-8"
    if is_other and not marked and not text.isascii() and _is_utf8(data):
        _LOGGER.warning("%s seems to be in UTF-8 but is read as %s", file, encoding)
    return text


def _check_zeros(data: bytes, file: Path, encoding: str) -> None:
    """Raises a UserError for ASCII text in UTF-16: it is valid UTF-8, but with zero bytes."""
    even, odd = data[:_SAMPLE_BYTES:2], data[1:_SAMPLE_BYTES:2]
    zeros = {"le": odd.count(0), "be": even.count(0)}
    if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")) or min(zeros.values()):
        return
    order = max(zeros, key=lambda name: zeros[name])
    if 2 * zeros[order] > len(odd):
        raise UserError(
            f"{file} has a zero byte next to most letters, as in UTF-16; "
            + setting_hint("encoding", f"utf-16-{order}")
        )


def _likely(data: bytes) -> str:
    """Suggests the likely encoding of data that is invalid in the given encoding."""
    if _is_utf8(data):
        return setting_hint("encoding", "utf-8")
    runs = re.findall(rb"[\x80-\xff]+", data[: 2**20])
    if sum(map(len, runs)) < 1.5 * len(runs):  # accented letters among ASCII
        return setting_hint("encoding", "cp1252") + " if it is in Windows-1252 or Latin-1"
    return (
        setting_hint("encoding", "gb18030")
        + ", or its actual encoding, such as shift_jis or cp1251"
    )


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def setting_hint(name: str, value: str | bool) -> str:
    """Describes how to set a field of a source, in Python and on the command line."""
    if isinstance(value, bool):
        return f"set {name}={value} (--data.{'' if value else 'no-'}{name})"
    quoted = value.replace("\\", "\\\\").replace("\t", "\\t").replace('"', '\\"')
    return f'set {name}="{quoted}" (--data.{name} "{quoted}")'

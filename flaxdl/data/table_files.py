"""Reading tables from CSV, TSV, JSON Lines and Parquet files."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flaxdl.data.unreadable import Unreadable
from flaxdl.spelling import did_you_mean

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")

# Number of a row's first line, and its values by column, or what is wrong with it.
_Rows = Iterator[tuple[int, dict[str, Any] | str]]


def read_table(
    path: str, columns: Sequence[str], unreadable: Unreadable
) -> list[tuple[int, list[Any]]]:
    """Reads some columns of a table, as a list of (line number, values).

    Texts are UTF-8, with or without a byte order mark. In CSV files fields may be quoted, and then
    hold commas and newlines. In TSV files a quote is a character like any other, unless there are
    newlines in quoted fields.

    Args:
        path: the file; its suffix says what it is.
        columns: their names.
        unreadable: where broken lines are counted.

    Raises:
        ValueError: if the file cannot be read, lacks a column or has it twice, or has too many
            broken lines.
    """
    file = Path(path).expanduser()
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"tables must be files of {', '.join(SUFFIXES)}, got {path!r}")
    if not _is_file(file):
        names = (p.name for p in file.parent.glob("*") if p.suffix.lower() in SUFFIXES)
        raise ValueError(f"no such file: {path}{did_you_mean(file.name, names)}")
    if suffix == ".parquet":
        return _read_parquet(file, columns)
    text = _decoded(file)
    if suffix in (".jsonl", ".json"):
        rows = list(_json_rows(text, file))
    elif suffix == ".csv":
        rows = list(_separated_rows(text, ",", csv.QUOTE_MINIMAL, file, columns))
    else:
        rows = _tsv_rows(text, file, columns)
    there = dict.fromkeys(name for _, row in rows if isinstance(row, dict) for name in row)
    if there or not rows:
        _check_columns(file, columns, list(there))
    good = []
    for line, row in rows:
        if isinstance(row, dict):
            good.append((line, [row.get(name) for name in columns]))
        else:
            unreadable.add(f"{file}:{line}", f"{file}:{line} {row}")
    return good


def _check_columns(file: Path, columns: Sequence[str], there: Sequence[str]) -> None:
    if not there:
        raise ValueError(f"{file} holds no rows")
    for name in columns:
        if name not in there:
            hint = did_you_mean(name, there)
            raise ValueError(f"{file} has the columns {', '.join(there)}, got {name!r}{hint}")


def _check_no_repeats(file: Path, columns: Sequence[str], there: Sequence[str]) -> None:
    for name in columns:
        if there.count(name) > 1:
            raise ValueError(
                f"{file} must have one column {name!r}, got {there.count(name)} of that name"
            )


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError as error:  # in a folder that may not be entered
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error


def _decoded(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    for mark, encoding in ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if data.startswith(mark):
            raise ValueError(f"{file} is in {encoding}; save it in UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file} is not in UTF-8, by byte 0x{data[error.start]:02x} in line {line}; if it is "
            f"in Windows-1252 or Latin-1, save it in UTF-8"
        ) from None


def _separated_rows(
    text: str, delimiter: str, quoting: Any, file: Path, columns: Sequence[str]
) -> _Rows:
    """The rows of a CSV or TSV file, by the names in its first line."""
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    try:
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True
        )
        header = None
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # Where a quote does not end, all the lines that it swallows are lost.
                yield from ((n, f"is broken: {error}") for n in range(line, reader.line_num + 1))
                continue
            if not values:  # an empty line
                continue
            if header is None:
                _check_no_repeats(file, columns, values)
                header = values
            elif len(values) == len(header):
                yield line, dict(zip(header, values, strict=True))
            else:
                reason = f"must have {len(header)} fields, got {len(values)}"
                yield from ((n, reason) for n in range(line, reader.line_num + 1))
    finally:
        csv.field_size_limit(limit)


def _tsv_rows(
    text: str, file: Path, columns: Sequence[str]
) -> list[tuple[int, dict[str, Any] | str]]:
    literal = list(_separated_rows(text, "\t", csv.QUOTE_NONE, file, columns))
    if all(isinstance(row, dict) for _, row in literal):
        return literal
    quoted = list(_separated_rows(text, "\t", csv.QUOTE_MINIMAL, file, columns))
    return quoted if all(isinstance(row, dict) for _, row in quoted) else literal


def _json_rows(text: str, file: Path) -> _Rows:
    if text.lstrip().startswith("["):
        raise ValueError(f"{file} must hold one object a line, {{...}}, got a list of them")
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            yield line, f"is broken: {error}"
            continue
        yield line, row if isinstance(row, dict) else f"must be an object, got {content[:40]}"


def _read_parquet(file: Path, columns: Sequence[str]) -> list[tuple[int, list[Any]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        there = parquet.read_schema(file).names
        _check_columns(file, columns, there)
        _check_no_repeats(file, columns, there)
        table = parquet.read_table(file, columns=list(columns))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as a Parquet file: {error}") from error
    values = zip(*(table.column(name).to_pylist() for name in columns), strict=True)
    return [(number, list(row)) for number, row in enumerate(values, start=1)]

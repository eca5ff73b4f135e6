"""Reading tables from CSV, TSV, JSON Lines and Parquet files."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flaxdl.checks import did_you_mean
from flaxdl.data.columns import find_columns
from flaxdl.data.separated_files import separated_rows
from flaxdl.data.text_files import check_kind, read_text
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_UNSEPARATED = (".jsonl", ".json", ".parquet")

# Number of a row's first line, and the values of its columns, or what is wrong with it.
_Rows = Iterator[tuple[int, list[Any] | str]]


def is_separated(path: str) -> bool:
    """Returns whether a table of that name separates its fields, as CSV and TSV files do."""
    return Path(path).suffix.lower() not in _UNSEPARATED


def read_table(
    path: str,
    columns: Sequence[str],
    *,
    separator: str | None = None,
    header: bool = True,
    encoding: str = "utf-8",
) -> tuple[list[tuple[int, list[Any]]], dict[int, str]]:
    """Reads some columns of a table.

    Args:
        path: the file; its suffix says what it is. With a separator given, any other suffix will
            do for a file of separated fields.
        columns: their names; in a separated file without a header their numbers, from 1 on.
        separator: what is between the fields of separated files; by default tabs in .tsv files and
            commas in others, or what a first line such as `sep=;` says.
        header: whether the first row of separated files names the columns.
        encoding: how text is encoded, unless there is a byte order mark.

    Returns:
        The rows, as (line number, values), and what is wrong with broken lines, by line number.

    Raises:
        UserError: if the file cannot be read, holds no rows, or lacks a column or has it twice.
    """
    file = local_path(path)
    _check_file(file, path, needs_suffix=separator is None)
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        rows = _parquet_rows(file, columns)
    else:
        text = read_text(file, encoding)
        if suffix in (".jsonl", ".json"):
            rows = _json_rows(text, file, columns)
        else:
            rows = separated_rows(text, file, columns, separator=separator, header=header)
    good, broken = [], {}
    for line, row in rows:
        if isinstance(row, str):
            broken[line] = row
        else:
            good.append((line, row))
    if not good and not broken:
        raise UserError(f"{file} holds no rows")
    return good, broken


def _check_file(file: Path, path: str, *, needs_suffix: bool) -> None:
    is_known = file.suffix.lower() in SUFFIXES
    try:
        is_file, is_folder = file.is_file(), file.is_dir()
    except OSError as error:  # in a folder that may not be entered
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if is_folder:
        raise UserError(f"{path} is a folder, needed a file of {', '.join(SUFFIXES)}")
    if not is_known and needs_suffix:
        if is_file:
            check_kind(file)  # names an Excel workbook as such
        raise UserError(
            f"tables must be files of {', '.join(SUFFIXES)}, or of any name with separator set, "
            f"got {path!r}"
        )
    if not is_file:
        names = (p.name for p in file.parent.glob("*") if p.suffix.lower() in SUFFIXES)
        raise UserError(f"no such file: {path}{did_you_mean(file.name, names)}")


def _json_rows(text: str, file: Path, columns: Sequence[str]) -> _Rows:
    """Yields the rows of JSON Lines; a column that a row lacks is None there."""
    if text.lstrip().startswith("["):
        raise UserError(
            f"{file} must hold one object a line, {{...}}, got a list of them; "
            'pandas writes them with to_json(..., orient="records", lines=True)'
        )
    rows = list(_json_objects(text))
    names = list(dict.fromkeys(name for _, row in rows if isinstance(row, dict) for name in row))
    if rows and not names:
        raise UserError(f"{file} must hold one object a line, {{...}}, got {text.strip()[:40]!r}")
    found = [names[place] for place in find_columns(file, columns, names)] if rows else []
    for line, row in rows:
        yield line, row if isinstance(row, str) else [row.get(name) for name in found]


def _json_objects(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            yield line, f"is broken: {error}"
            continue
        yield line, row if isinstance(row, dict) else f"must be an object, got {content[:40]}"


def _parquet_rows(file: Path, columns: Sequence[str]) -> _Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        names = parquet.read_schema(file).names
        found = [names[place] for place in find_columns(file, columns, names)]
        table = parquet.read_table(file, columns=found)
    except (pyarrow.ArrowException, OSError) as error:
        check_kind(file, allowed=("a Parquet file",))
        raise UserError(f"{file} cannot be read as a Parquet file: {error}") from error
    values = zip(*(table.column(name).to_pylist() for name in found), strict=True)
    for number, row in enumerate(values, start=1):
        yield number, list(row)

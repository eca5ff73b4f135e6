"""Reader for tables in CSV, TSV, JSON Lines and Parquet files."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flaxdl.checks import did_you_mean
from flaxdl.data.columns import find_columns
from flaxdl.data.separated_files import separated_rows
from flaxdl.data.text_files import check_kind, read_text
from flaxdl.errors import UserError
from flaxdl.filesystem.inputs import input_path

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_UNSEPARATED = (".jsonl", ".json", ".parquet")

# For each row: the number of its first line, and the requested values or an error description.
_Rows = Iterator[tuple[int, list[Any] | str]]


def is_separated(path: str) -> bool:
    """Returns True if a file of this name is delimiter-separated, such as CSV or TSV."""
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
        path: path of the file; its suffix determines the format. If `separator` is given, files
            with unknown suffixes are read as delimiter-separated.
        columns: column names; in delimiter-separated files without a header, column numbers from 1.
        separator: separator between fields of delimiter-separated files; by default, a tab in .tsv
            files and a comma in others, or the one in a first line such as `sep=;`.
        header: True if the first row of delimiter-separated files contains the column names.
        encoding: text encoding; a byte order mark takes precedence.

    Returns:
        The valid rows as (line number, values), and the error descriptions of malformed lines by
        line number.

    Raises:
        UserError: if the file cannot be read or has no rows, or if a column is missing or not
            unique.
    """
    file = input_path(path)
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
        raise UserError(f"{file} has no rows")
    return good, broken


def _check_file(file: Path, path: str, *, needs_suffix: bool) -> None:
    is_known = file.suffix.lower() in SUFFIXES
    try:
        is_file, is_folder = file.is_file(), file.is_dir()
    except OSError as error:  # e.g. a folder without permission
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if is_folder:
        raise UserError(f"{path} is a folder; tables must be {', '.join(SUFFIXES)} files")
    if not is_known and needs_suffix:
        if is_file:
            check_kind(file)  # for a better error about e.g. Excel workbooks
        raise UserError(
            f"tables must be {', '.join(SUFFIXES)} files, or files of any name with separator set, "
            f"got {path!r}"
        )
    if not is_file:
        names = (p.name for p in file.parent.glob("*") if p.suffix.lower() in SUFFIXES)
        raise UserError(f"no such file: {path}{did_you_mean(file.name, names)}")


def _json_rows(text: str, file: Path, columns: Sequence[str]) -> _Rows:
    """Yields the rows of JSON Lines; missing values are None."""
    if text.lstrip().startswith("["):
        raise UserError(
            f"{file} must contain one JSON object per line, {{...}}, got a list; "
            'pandas writes JSON Lines with to_json(..., orient="records", lines=True)'
        )
    rows = list(_json_objects(text))
    names = list(dict.fromkeys(name for _, row in rows if isinstance(row, dict) for name in row))
    if rows and not names:
        raise UserError(
            f"{file} must contain one JSON object per line, {{...}}, got {text.strip()[:40]!r}"
        )
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
            yield line, f"is malformed: {error}"
            continue
        yield line, row if isinstance(row, dict) else f"must be a JSON object, got {content[:40]}"


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

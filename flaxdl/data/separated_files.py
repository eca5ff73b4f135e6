"""Reader for delimiter-separated tables, such as CSV and TSV files."""

import csv
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Literal

from flaxdl.checks import did_you_mean
from flaxdl.data.columns import find_columns
from flaxdl.data.text_files import setting_hint
from flaxdl.errors import UserError

_LOGGER = logging.getLogger(__name__)

# For each row: the number of its first line, and the requested values or an error description.
Rows = Iterator[tuple[int, list[str] | str]]

_Quoting = Literal[0, 3]  # csv.QUOTE_MINIMAL, which handles quotes, and csv.QUOTE_NONE
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SAMPLE = 20  # records examined to find the cause of an error
_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")  # with its line ending
_USUAL_NAMES = {"text", "label", "sentence", "class", "category", "target"}
_LONGEST_NAME = 60  # characters in a column name


def check_separator(separator: str | None) -> None:
    r"""Checks that a separator is one valid character, or the two characters `\t` for a tab.

    Raises:
        UserError: if the separator has another length, or is a quote or a newline.
    """
    if separator in (None, "\\t"):
        return
    if len(separator) != 1 or separator in '"\r\n':
        raise UserError(
            f"separator must be one character other than a quote or newline, got {separator!r}"
        )


def separated_rows(
    text: str, file: Path, columns: Sequence[str], *, separator: str | None, header: bool
) -> Rows:
    """Reads some columns of a delimiter-separated table with one row per line.

    Quoted fields may contain separators, newlines and doubled quotes. In tab-separated files,
    quotes are ordinary characters, unless all rows have the same number of fields only when quotes
    are interpreted. A first line such as `sep=;` sets the separator.

    Args:
        text: content of the file.
        file: path of the file, for messages and the default separator.
        columns: column names in the header or, without a header, column numbers from 1.
        separator: separator between fields; by default, a tab in .tsv files and a comma in others.
        header: True if the first row contains the column names.

    Raises:
        UserError: if a column is missing or not unique; the message suggests a cause.
    """
    separator = "\t" if separator == "\\t" else separator
    declared = re.match(r"sep=([^\r\n])\r?\n?", text)
    if declared:
        if separator not in (None, declared[1]):
            raise UserError(f"{file} begins with sep={declared[1]}, but separator is {separator!r}")
        separator = declared[1]
    table = _Table(text, declared.end() if declared else 0, file, columns, header)
    if separator is None:
        separator = "\t" if file.suffix.lower() == ".tsv" else ","
    if separator != "\t":
        return table.rows(separator, csv.QUOTE_MINIMAL)
    literal = list(table.rows(separator, csv.QUOTE_NONE))
    if not _are_complete(literal):
        quoted = list(table.rows(separator, csv.QUOTE_MINIMAL))
        if _are_complete(quoted):
            return iter(quoted)
    return iter(literal)


def _are_complete(rows: Sequence[tuple[int, list[str] | str]]) -> bool:
    return all(isinstance(row, list) for _, row in rows)


class _Table:
    """Text of a table, with the names of the columns to read."""

    def __init__(self, text: str, start: int, file: Path, columns: Sequence[str], header: bool):
        self._text = text
        self._start = start  # after a line `sep=;`
        self._file = file
        self._columns = columns
        self._header = header

    def rows(self, separator: str, quoting: _Quoting) -> Rows:
        """Yields valid rows, and an error description for each line of a malformed row."""
        places = None
        count = 0
        for first, last, values in self._records(separator, quoting):
            if isinstance(values, str):
                # All lines after an unclosed quote are lost.
                yield from ((line, values) for line in range(first, last + 1))
                continue
            if not values:  # an empty line
                continue
            if places is None:
                count = len(values)
                places = self._places(values, separator)
                if self._header:
                    continue
            if len(values) == count:
                yield first, [values[place] for place in places]
            else:
                reason = f"must have {count} fields, got {len(values)}"
                yield from ((line, reason) for line in range(first, last + 1))

    def _records(
        self, separator: str, quoting: _Quoting
    ) -> Iterator[tuple[int, int, list[str] | str]]:
        """Yields, for each row, its first and last line number and its fields or an error."""
        skipped = 1 if self._start else 0
        recent: list[str] = []

        def remembered() -> Iterator[str]:
            for line in _LINE.finditer(self._text, self._start):
                recent.append(line[0])
                yield line[0]

        with _long_fields(len(self._text)):
            reader = csv.reader(remembered(), delimiter=separator, quoting=quoting, strict=True)
            while True:
                recent.clear()
                first = reader.line_num + 1 + skipped
                try:
                    values = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    values = _reason("".join(recent), separator, error)
                yield first, reader.line_num + skipped, values

    def _places(self, values: Sequence[str], separator: str) -> list[int]:
        if self._header:
            return find_columns(
                self._file, self._columns, values, lambda name: self._cause(name, values, separator)
            )
        if _USUAL_NAMES & {value.strip().lower() for value in values}:
            _LOGGER.warning(
                "the first row of %s looks like a header (%s) but is read as data",
                self._file,
                ", ".join(values),
            )
        numbers = [str(number) for number in range(1, len(values) + 1)]
        hint = "; without a header, give column numbers, as in --data.text 2 --data.label 1"
        return find_columns(self._file, self._columns, numbers, lambda _: hint)

    def _cause(self, name: str, values: Sequence[str], separator: str) -> str:
        """Returns the likely reason why a column is missing."""
        for other, called in _SEPARATORS.items():
            if other != separator and self._may_be_separated(other, len(values) == 1):
                return (
                    f"; fields seem to be separated by {called}: {setting_hint('separator', other)}"
                )
        if name.isdigit() or self._is_data(values, separator):
            return (
                "; the file seems to have no header: "
                f"{setting_hint('header', False)} and give column numbers: 1, 2, ..."
            )
        return did_you_mean(name, [value.strip() for value in values])

    def _may_be_separated(self, other: str, is_single: bool) -> bool:
        records = [
            values for _, _, values in islice(self._records(other, csv.QUOTE_MINIMAL), _SAMPLE)
        ]
        good = [values for values in records if isinstance(values, list) and values]
        if not good:
            return False
        if set(self._columns) <= {value.strip() for value in good[0]}:
            return True
        return is_single and len(good[0]) > 1 and {len(values) for values in good} == {len(good[0])}

    def _is_data(self, values: Sequence[str], separator: str) -> bool:
        """Returns True if the header looks like a row of data."""
        if any(len(value) > _LONGEST_NAME or _is_number(value) for value in values):
            return True
        records = islice(self._records(separator, csv.QUOTE_MINIMAL), 1, _SAMPLE)
        others = [row for _, _, row in records if len(row) == len(values)]
        return any(
            value and value in column for value, *column in zip(values, *others, strict=True)
        )


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[+-]?[0-9]+([.,][0-9]+)?\s*", text) is not None


def _reason(lines: str, separator: str, error: csv.Error) -> str:
    """Describes why the csv module cannot parse the lines."""
    if '\\"' in lines:
        return (
            'is malformed: quotes seem to be escaped with a backslash (\\"); '
            'quotes inside a quoted field must be doubled ("")'
        )
    if f'{separator} "' in lines:
        return "is malformed: there is a space between a separator and a quote"
    return f"is malformed: {error}"


@contextmanager
def _long_fields(limit: int) -> Iterator[None]:
    """Raises the field size limit of the csv module, 131,072 characters by default, to `limit`."""
    before = csv.field_size_limit(max(limit, csv.field_size_limit()))
    try:
        yield
    finally:
        csv.field_size_limit(before)

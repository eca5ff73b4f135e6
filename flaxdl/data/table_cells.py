"""Values of table cells as text and as numbers.

Cells are strings in delimiter-separated files, and of any type in JSON Lines and Parquet files.
"""

import math
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np

_Written = str | int | float | Decimal | date  # bool is an int, and datetime a date
_MISSING = ("", "nan", "na", "n/a", "null", "none")


def decoded(cell: Any, encoding: str) -> Any:
    """Decodes bytes if possible, since Parquet files may store text as bytes."""
    if not isinstance(cell, bytes):
        return cell
    try:
        return cell.decode(encoding)
    except UnicodeError:
        return cell


def find_error(column: str, cell: Any) -> str | None:
    """Describes why a cell is invalid, or returns None if it can be converted to text."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return f"no value in column {column}"
    if isinstance(cell, bytes):
        return f"bytes that are not text in column {column}"
    if not isinstance(cell, _Written):
        kind = type(cell).__name__
        return f"a value of type {kind} in column {column}, must be text, a number or a date"
    if isinstance(cell, str) and not cell.strip():
        return f"an empty text in column {column}"
    return None


def written(cell: _Written) -> str:
    """Converts a cell to text, and whole floats to text without decimals.

    Columns with missing values store integers as floats.
    """
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    elif isinstance(cell, Decimal):  # 2.50 becomes 2.5, as for floats
        cell = int(cell) if cell == int(cell) else f"{cell:f}".rstrip("0")
    return str(cell).encode("utf-8", "replace").decode()  # JSON may contain lone surrogates


def as_number(cell: Any) -> float:
    """Returns a finite number, or NaN for a missing value.

    Missing values are empty cells, NaN, NA, n/a, null and none.

    Raises:
        ValueError: if the cell is something else.
    """
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in _MISSING):
        return math.nan
    if isinstance(cell, bytes) or (isinstance(cell, str) and "_" in cell):  # 1_000 for Python
        raise ValueError
    try:
        number = float(cell)
    except (TypeError, OverflowError) as error:
        raise ValueError from error
    if math.isinf(number):
        raise ValueError
    return number


def as_weight(column: str, cell: Any) -> float | str:
    """Returns a weight rounded to float32, or a description of the error.

    Weights must be at least 0 and finite in float32.
    """
    if error := find_error(column, cell):
        return error
    try:
        number = float(str(cell))
    except ValueError:
        number = math.nan
    rounded = in_float32(number)
    if number >= 0 and rounded < math.inf:
        return rounded
    return f"the weight {cell!r:.40}, must be a number of at least 0 that is finite in float32"


def in_float32(number: float) -> float:
    """Returns a number rounded to float32, which may be infinite."""
    with np.errstate(over="ignore"):
        return float(np.float32(number))

"""Reader for files with one series of numbers.

T: steps, C: channels.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flaxdl.data.text_files import read_text
from flaxdl.errors import UserError
from flaxdl.filesystem.inputs import input_path


def read_series_file(path: str) -> np.ndarray:
    """Reads a series [T, C]: a .npy array, or a .csv file with a row per step.

    Raises:
        UserError: if the file cannot be read, or if it does not have finite numbers.
    """
    kind = ".csv" if Path(path).suffix.lower() == ".csv" else ".npy"
    try:
        series = _read_csv(path) if kind == ".csv" else _read_npy(path)
    except (OSError, ValueError, EOFError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as a {kind} file: {error}") from error
    series = series[:, None] if series.ndim == 1 else series
    if series.ndim != 2 or not series.size or series.dtype.kind not in "biuf":
        raise UserError(
            f"{path} must contain a series of numbers, [T, C] or [T], "
            f"got {series.dtype} {list(series.shape)}"
        )
    if not np.isfinite(series).all():
        step = int(np.flatnonzero(~np.isfinite(series).all(1))[0])
        raise UserError(f"{path} must contain finite numbers, got {series[step]} at step {step}")
    return series


def _read_npy(path: str) -> np.ndarray:
    with open(input_path(path), "rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)  # np.load also opens archives


def _read_csv(path: str) -> np.ndarray:
    text = read_text(input_path(path), "utf-8")
    rows = [(line, row) for line, row in enumerate(csv.reader(text.splitlines()), 1) if row]
    if rows and _is_header(rows[0][1]):
        rows = rows[1:]
    for line, row in rows:
        wrong = [cell for cell in row if not _is_number(cell)]
        if wrong or len(row) != len(rows[0][1]):
            got = repr(wrong[0]) if wrong else f"{len(row)} cells"
            raise UserError(
                f"{path}:{line} must have {len(rows[0][1])} numbers, as the first row, got {got}"
            )
    return np.array([[float(cell) for cell in row] for _, row in rows])


def _is_header(row: Sequence[str]) -> bool:
    return not any(map(_is_number, row)) and any(cell.strip() for cell in row)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True

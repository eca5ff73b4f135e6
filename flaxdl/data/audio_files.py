"""Sections of sound files, read as int16 at a given sample rate.

T: samples of a section.
"""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from flaxdl.errors import UserError

SUFFIXES = (".wav", ".flac")
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's number for a stream of unknown length
_MISSING = (
    "reading sound files needs the packages soundfile and soxr; install them with "
    "`pip install 'flaxdl[audio]'`"
)


def is_sound(path: str) -> bool:
    """Returns True if the suffix of a file is that of a supported format."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def check_installed() -> None:
    """Checks that the optional packages are installed.

    Raises:
        UserError: if one is missing; the message says what to install.
    """
    try:
        import soundfile  # noqa: F401
        import soxr  # noqa: F401
    except (ImportError, OSError) as error:  # OSError without the library libsndfile
        raise UserError(f"{_MISSING} ({error})") from error


def read_sound(path: str | Path, *, sample_rate: int, length: int, place: float) -> np.ndarray:
    """Reads a section of a sound file as int16[length].

    Only that section is read, whatever the length of the file. Channels are averaged, and the sound
    is resampled by soxr. Samples beyond full scale are clipped.

    Args:
        path: path of a file with any sample rate, number of channels and sample format.
        sample_rate: sample rate of the result, in Hz.
        length: number of samples of the result, T.
        place: from 0 to 1, position of the section in a longer file, or of a shorter file in the
            section, which is padded with zeros: 0 is the start, 0.5 the middle, 1 the end.

    Raises:
        UserError: if the file is missing, empty, or cannot be decoded.
    """
    check_installed()
    import soxr

    try:
        samples, rate = _read_section(path, length / sample_rate, place)
    except FileNotFoundError:
        raise UserError(f"no such sound file: {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} cannot be read as a sound: it is a folder") from None
    except Exception as error:  # decoders may raise any error for broken files
        described = getattr(error, "error_string", str(error)).strip()  # libsndfile's, without path
        reason = "it is empty" if _is_empty(path) else described or type(error).__name__
        raise UserError(f"{path} cannot be read as a sound: {reason}") from error
    mono = samples.mean(axis=1)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate)
    levels = np.rint(mono * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
    return fit_length(levels, length, place)


def fit_length(samples: np.ndarray, length: int, place: float) -> np.ndarray:
    """Crops samples [T], or pads them with zeros, to [length]; see `read_sound` for `place`."""
    extra = len(samples) - length
    start = round(place * abs(extra))
    if extra >= 0:
        return samples[start : start + length]
    return np.pad(samples, (start, -extra - start))


def _read_section(path: str | Path, seconds: float, place: float) -> tuple[Any, int]:
    """Returns the samples of a section, float32[T, channels] from -1 to 1, and the sample rate."""
    import soundfile

    with open(path, "rb") as opened, soundfile.SoundFile(opened) as file:
        if not file.frames:
            raise UserError("it contains no samples")
        if file.frames == _UNKNOWN_FRAMES:
            raise UserError(
                "its header lacks the number of samples, as in streams; encode it again into a "
                "file, such as with `ffmpeg -i old.flac new.flac`"
            )
        count = min(math.ceil(seconds * file.samplerate), file.frames)
        start = round(place * (file.frames - count))
        if start:  # seeking in a broken FLAC file fails without a reason
            file.seek(start)
        samples = file.read(count, dtype="float32", always_2d=True)
        rate = file.samplerate
    if len(samples) < count:
        raise UserError(f"it ends after {len(samples):,} of {count:,} samples; it is incomplete")
    if not np.isfinite(samples).all():
        raise UserError("it contains samples that are not finite")
    return samples.clip(-1, 1), rate  # before averaging, which could overflow


def _is_empty(path: str | Path) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) == 0

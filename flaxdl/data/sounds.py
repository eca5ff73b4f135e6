"""Generated sounds, to train classifiers of sounds without a download.

T: samples, `SAMPLE_RATE` of them; n: sounds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flaxdl.data.dataset import ArrayDataset
from flaxdl.data.source import Source, Splits, hold_out
from flaxdl.errors import UserError

SAMPLE_RATE = 8000  # Hz; sounds are one second long
_SNR = (0.0, 30.0)  # dB
_PEAKS = (-30.0, -1.0)  # dB relative to full scale
_PITCHES = (200.0, 1000.0)  # Hz; of a chord, that of the root
_TIMES = np.arange(SAMPLE_RATE) / SAMPLE_RATE


class GeneratedSounds(NamedTuple):
    """Sounds, one of each class in turn."""

    inputs: np.ndarray
    """Samples, int16[n, T]."""
    label: np.ndarray
    """Class numbers, int32[n]."""
    snr: np.ndarray
    """Signal-to-noise ratios in decibels, float32[n]."""


@dataclass(frozen=True)
class Sounds(Source):
    """Sounds of ten classes with noise: tones, chirps, clicks, chords and colored noise.

    Pitch, phase and volume are random; the classes are the keys of `WAVES`. White noise is added at
    a signal-to-noise ratio from 0 to 30 dB. Each sound has 8000 samples, one second at 8 kHz. The
    generated sounds do not depend on the seed.
    """

    train: int = 2_000
    """Number of training sounds, including those held out for validation."""
    test: int = 1_000
    """Number of test sounds, evaluated once, at the end of the run."""
    validation_fraction: float = 0.1
    """Fraction of the training sounds held out for validation."""

    def load(self, seed: int) -> Splits:
        """Generates the sounds; `seed` determines which ones are held out for validation.

        Raises:
            UserError: if the number of sounds is not positive, or if a split would be empty.
        """
        if not (self.train > 0 and self.test > 0):
            raise UserError(f"train and test must be positive, got {self.train} and {self.test}")
        train, test = (
            ArrayDataset({"inputs": sounds.inputs, "label": sounds.label})
            for sounds in (generate("train", self.train), generate("test", self.test))
        )
        train, validation = hold_out(train, fraction=self.validation_fraction, seed=seed)
        return Splits(train, validation, test, classes=tuple(WAVES))


def generate(split: str, count: int) -> GeneratedSounds:
    """Generates the first `count` sounds of a split.

    Args:
        split: `train` or `test`.
        count: number of sounds, n.
    """
    rng = np.random.default_rng(("train", "test").index(split))
    inputs = np.empty((count, SAMPLE_RATE), np.int16)
    snr = np.empty(count, np.float32)
    waves = list(WAVES.values())
    for number in range(count):
        signal = waves[number % len(waves)](rng)
        snr[number] = rng.uniform(*_SNR)
        noise = rng.standard_normal(SAMPLE_RATE)
        noise *= _rms(signal) / _rms(noise) * 10 ** (-snr[number] / 20)
        sound = signal + noise
        peak = 10 ** (rng.uniform(*_PEAKS) / 20) * (2**15 - 1)
        inputs[number] = np.rint(sound * (peak / np.abs(sound).max()))
    label = (np.arange(count) % len(waves)).astype(np.int32)
    return GeneratedSounds(inputs, label, snr)


def _rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave))))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _sine(frequency: np.ndarray | float, rng: np.random.Generator) -> np.ndarray:
    """Returns a sine of a random phase, whose frequency in Hz may change from sample to sample."""
    cycles = np.cumsum(np.broadcast_to(frequency, SAMPLE_RATE)) / SAMPLE_RATE
    return np.sin(2 * np.pi * (cycles + rng.random()))


def _tone(rng: np.random.Generator) -> np.ndarray:
    return _sine(_log_uniform(rng, *_PITCHES), rng)


def _vibrato(rng: np.random.Generator) -> np.ndarray:
    """A tone whose pitch rises and falls by 2 to 6 % several times per second."""
    change = rng.uniform(0.02, 0.06) * _sine(rng.uniform(4, 8), rng)
    return _sine(_log_uniform(rng, *_PITCHES) * (1 + change), rng)


def _tremolo(rng: np.random.Generator) -> np.ndarray:
    """A tone whose volume rises and falls several times per second."""
    return _tone(rng) * (1 + rng.uniform(0.5, 0.9) * _sine(rng.uniform(4, 8), rng))


def _rising(rng: np.random.Generator) -> np.ndarray:
    """A chirp that rises by half an octave to two octaves."""
    return _sine(_log_uniform(rng, *_PITCHES) * 2 ** (rng.uniform(0.5, 2) * _TIMES), rng)


def _falling(rng: np.random.Generator) -> np.ndarray:
    return _rising(rng)[::-1]


def _clicks(rng: np.random.Generator) -> np.ndarray:
    """Short decaying tones at regular intervals, 5 to 20 per second."""
    rate = rng.uniform(5, 20)
    since = (_TIMES * rate + rng.random()) % 1 / rate  # seconds since the last click
    return np.exp(-since * 200) * np.sin(2 * np.pi * _log_uniform(rng, *_PITCHES) * since)


def _chord(rng: np.random.Generator, third: int) -> np.ndarray:
    """A triad of sines, with a third of 4 (major) or 3 (minor) semitones and a perfect fifth."""
    root = _log_uniform(rng, *_PITCHES)
    return np.sum([_sine(root * 2 ** (step / 12), rng) for step in (0, third, 7)], axis=0)


def _white_noise(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(SAMPLE_RATE)


def _pink_noise(rng: np.random.Generator) -> np.ndarray:
    """Noise whose power is inversely proportional to the frequency."""
    spectrum = np.fft.rfft(rng.standard_normal(SAMPLE_RATE))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    return np.fft.irfft(spectrum)


WAVES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "tone": _tone,
    "vibrato": _vibrato,
    "tremolo": _tremolo,
    "rising chirp": _rising,
    "falling chirp": _falling,
    "clicks": _clicks,
    "major chord": lambda rng: _chord(rng, 4),
    "minor chord": lambda rng: _chord(rng, 3),
    "white noise": _white_noise,
    "pink noise": _pink_noise,
}
"""Functions that draw the waveform [T] of each class, without noise."""

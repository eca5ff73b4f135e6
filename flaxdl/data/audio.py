"""Transforms of sounds: cropping and resampling on the host, spectrograms on the device.

B: sounds in a batch, T: samples, F: frequencies or mel bands, N: frames.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.data.audio_files import SUFFIXES, fit_length, read_sound
from flaxdl.data.audio_folder import Recording
from flaxdl.data.batch_augmentation import check_mixable, mask_bands, mixup
from flaxdl.data.dataset import rows
from flaxdl.data.image_operations import check_number
from flaxdl.data.spectrogram import decibels, mel_filters, mel_spectrogram, power_spectrogram
from flaxdl.data.transforms import Transform
from flaxdl.errors import UserError
from flaxdl.filesystem.inputs import input_path

_FULL_SCALE = 2**15  # of int16
_TOP_DB = 80.0  # librosa's default
_EPSILON = 1e-3  # added to the variance
_PICTURE_FRAMES = 128


@dataclass(frozen=True)
class Waveforms(Transform):
    """Sounds as waveforms [B, T, 1] of one length, each scaled to mean 0 and variance 1.

    Longer sounds are cropped and shorter ones padded with zeros: at random places in training, and
    in the middle in evaluation and prediction. Sounds are int16 until they are on the device.
    Arrays in memory must have the sample rate of the transform and 16-bit values [N, T]; if they
    have `lengths`, int[N], only that many samples of each sound are used.
    """

    file_suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    sample_rate: int = 16_000
    """Samples per second; files with other sample rates are resampled."""
    seconds: float = 1.0
    """Length of the examples in seconds."""
    mixup_alpha: float = 0.0
    """Mixup: blends training examples, and their losses, in proportions drawn from Beta(alpha,
    alpha); 0 disables it."""

    def __post_init__(self):
        check_number("sample_rate", self.sample_rate, 1)
        if not 0 < self.seconds < math.inf or self.length < 1:
            raise UserError(f"seconds must be at least one sample and finite, got {self.seconds}")
        if not 0 <= self.mixup_alpha < math.inf:
            raise UserError(f"mixup_alpha must be 0 or above and finite, got {self.mixup_alpha}")

    @property
    def length(self) -> int:
        """Number of samples of an example, T."""
        return round(self.seconds * self.sample_rate)

    def draw(self, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        """Draws the places of crops or padding, from 0 for the start to 1 for the end."""
        return {"places": rng.random(size)}

    def prepare(
        self, batch: dict[str, np.ndarray], draws: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Reads the sounds of files, and crops or pads all sounds to int16[B, T].

        Sounds with `lengths` are cut to these first; the model gets no lengths. Replacements of
        unreadable files get the weight 0.

        Raises:
            UserError: if there are too many unreadable files, if arrays are not 16-bit [B, T], or
                if their lengths are out of range.
        """
        others = {name: x for name, x in batch.items() if name not in ("inputs", "lengths")}
        sounds = batch["inputs"]
        if "lengths" in batch:
            sounds = _cut(sounds, batch["lengths"])
        places = draws.get("places", np.full(len(sounds), 0.5))
        found = [self._clip(*pair) for pair in zip(sounds, places, strict=True)]
        weight = np.array([is_original for _, is_original in found]) * batch.get("weight", 1)
        inputs = np.stack([clip for clip, _ in found])
        return others | {"inputs": inputs, "weight": weight.astype(np.float32)}

    def _clip(self, sound: Any, place: float) -> tuple[np.ndarray, bool]:
        """Returns the samples, int16[T], and False if they replace those of an unreadable file."""
        if isinstance(sound, Recording):
            return sound.read(sample_rate=self.sample_rate, length=self.length, place=place)
        samples = np.asarray(sound)
        if samples.ndim != 1 or samples.dtype.kind != "i" or not _is_16_bit(samples):
            remedy = "; multiply floats from -1 to 1 by 32767" if samples.dtype.kind == "f" else ""
            raise UserError(
                "sounds must be files, or arrays [N, T] of integers from -32768 to 32767, but an "
                f"example has {samples.dtype}{list(samples.shape)}{remedy}"
            )
        return fit_length(samples.astype(np.int16, copy=False), self.length, place), True

    def normalize(self, inputs: jax.Array) -> jax.Array:
        """Scales waveforms [B, T] to mean 0 and variance 1, as [B, T, 1]."""
        return _standardized(inputs.astype(jnp.float32))[..., None]

    def augment_batch(
        self, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> Mapping[str, jax.Array]:
        """Mixes examples by mixup.

        Raises:
            UserError: if the batch has less than two examples, or not one class per example.
        """
        if not self.mixup_alpha:
            return batch
        check_mixable(batch)
        return mixup(batch, key, alpha=self.mixup_alpha)

    def read(
        self, items: Sequence[str], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, np.ndarray]:
        """Reads the middle of sound files."""
        size = {"sample_rate": self.sample_rate, "length": self.length}
        return {"inputs": np.stack([read_sound(input_path(i), **size, place=0.5) for i in items])}

    def pictures(self, inputs: np.ndarray) -> np.ndarray:
        """Returns spectrograms of prepared sounds, float32[B, F, N], low frequencies first."""
        hop_length = max(self.length // _PICTURE_FRAMES, 1)
        spectrogram = Spectrogram(self.sample_rate, self.seconds, hop_length=hop_length)
        return np.asarray(spectrogram.normalize(jnp.asarray(inputs)))[..., 0]


@dataclass(frozen=True)
class Spectrogram(Waveforms):
    """Spectrograms in decibels as images [B, F, N, 1], each scaled to mean 0 and variance 1.

    They are computed on the device in float32, by librosa's definition, and limited to the 80 dB
    below the maximum. Scaling each spectrogram makes the model independent of the volume, and needs
    no statistics of the data.
    """

    n_fft: int = 512
    """Length of the Fourier transform, in samples."""
    win_length: int | None = None
    """Length of the window, in samples; by default, `n_fft`."""
    hop_length: int = 160
    """Distance between frames, in samples."""
    frequency_masks: int = 0
    """Number of frequency bands that are masked in training (SpecAugment); 0 disables it."""
    frequency_width: int = 8
    """Maximum width of these bands, in rows of the image."""
    time_masks: int = 0
    """Number of time intervals that are masked in training (SpecAugment); 0 disables it."""
    time_width: int = 16
    """Maximum width of these intervals, in frames."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("n_fft", "hop_length"):
            check_number(name, getattr(self, name), 1)
        for name in ("frequency_masks", "frequency_width", "time_masks", "time_width"):
            check_number(name, getattr(self, name), 0)
        if self.win_length is not None:
            check_number("win_length", self.win_length, 1, self.n_fft)

    def spectra(self, waves: jax.Array) -> jax.Array:
        """Returns power spectrograms [B, F, N] of waveforms [B, T] with full scale 1."""
        return power_spectrogram(
            waves,
            n_fft=self.n_fft,
            win_length=self.win_length or self.n_fft,
            hop_length=self.hop_length,
        )

    def normalize(self, inputs: jax.Array) -> jax.Array:
        """Computes scaled spectrograms [B, F, N, 1] in decibels from waveforms [B, T]."""
        waves = inputs.astype(jnp.float32) / _FULL_SCALE
        levels = decibels(self.spectra(waves), top_db=_TOP_DB)
        return _standardized(levels)[..., None]

    def augment_batch(
        self, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> Mapping[str, jax.Array]:
        """Masks frequency bands and time intervals with the mean, then mixes examples by mixup.

        Park et al., SpecAugment, https://arxiv.org/abs/1904.08779.

        Raises:
            UserError: if examples are to be mixed, but the batch has less than two, or not one
                class per example.
        """
        frequency_key, time_key, mixing_key = jax.random.split(key, 3)
        images = mask_bands(
            batch["inputs"],
            frequency_key,
            axis=1,
            count=self.frequency_masks,
            width=self.frequency_width,
        )
        images = mask_bands(images, time_key, axis=2, count=self.time_masks, width=self.time_width)
        return super().augment_batch({**batch, "inputs": images}, mixing_key)

    def pictures(self, inputs: np.ndarray) -> np.ndarray:
        """Returns the model inputs for prepared sounds, float32[B, F, N]."""
        return np.asarray(self.normalize(jnp.asarray(inputs)))[..., 0]


@dataclass(frozen=True)
class LogMel(Spectrogram):
    """Log-mel spectrograms as images [B, F, N, 1], each scaled to mean 0 and variance 1.

    Mel bands are those of librosa, with Slaney's scale and normalization; otherwise like
    `Spectrogram`.
    """

    n_mels: int = 64
    """Number of mel bands."""
    fmin: float = 0.0
    """Lower end of the mel bands, in Hz."""
    fmax: float | None = None
    """Upper end of the mel bands, in Hz; by default, half the sample rate."""

    def __post_init__(self):
        super().__post_init__()
        check_number("n_mels", self.n_mels, 1)
        nyquist = self.sample_rate / 2
        if not 0 <= self.fmin < self._highest <= nyquist:
            raise UserError(
                f"fmin and fmax must be in ascending order from 0 to half the sample rate "
                f"({nyquist:g}), got {self.fmin} and {self.fmax}"
            )
        empty = int((self._filters.max(axis=1) == 0).sum())
        if empty:
            raise UserError(
                f"{empty} of {self.n_mels} mel bands contain no frequency of the Fourier "
                f"transform; increase n_fft, which is {self.n_fft}, or reduce n_mels"
            )

    @property
    def _highest(self) -> float:
        return self.sample_rate / 2 if self.fmax is None else self.fmax

    @cached_property
    def _filters(self) -> np.ndarray:
        return mel_filters(
            sample_rate=self.sample_rate,
            n_fft=self.n_fft,
            n_mels=self.n_mels,
            fmin=self.fmin,
            fmax=self._highest,
        )

    def spectra(self, waves: jax.Array) -> jax.Array:
        """Returns mel spectrograms [B, F, N] of waveforms [B, T] with full scale 1."""
        return mel_spectrogram(super().spectra(waves), self._filters)


def _cut(sounds: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns an object array of the first `lengths` (int[B]) samples of each sound."""
    if lengths.shape != (len(sounds),) or lengths.dtype.kind not in "iu":
        raise UserError(
            "lengths of sounds must be one integer per sound, "
            f"got {lengths.dtype} {list(lengths.shape)}"
        )
    for sound, length in zip(sounds, lengths, strict=True):
        if not 1 <= length <= len(sound):
            raise UserError(
                f"lengths of sounds must be from 1 to {len(sound)}, the number of samples, "
                f"got {length}"
            )
    return rows([sound[:length] for sound, length in zip(sounds, lengths, strict=True)])


def _is_16_bit(samples: np.ndarray) -> bool:
    if samples.dtype == np.int16 or not samples.size:
        return True
    return samples.min() >= -_FULL_SCALE and samples.max() < _FULL_SCALE


def _standardized(values: jax.Array) -> jax.Array:
    """Scales each example to mean 0 and variance 1; a constant one becomes 0.

    Args:
        values: int16 samples or decibels, whose variance is far above `_EPSILON` unless constant.
    """
    axes = tuple(range(1, values.ndim))
    centered = values - values.mean(axis=axes, keepdims=True)
    variance = jnp.square(centered).mean(axis=axes, keepdims=True)
    return centered * jax.lax.rsqrt(variance + _EPSILON)

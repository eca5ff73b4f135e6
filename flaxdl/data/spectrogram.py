"""Spectrograms of waveforms on the device, as librosa defines them.

B: sounds in a batch, T: samples, F: frequencies (n_fft / 2 + 1), M: mel bands, N: frames
(1 + T / hop_length, rounded down). Values keep the dtype of the waveforms, at full precision.
"""

import jax
import jax.numpy as jnp
import numpy as np

_HIGHEST = jax.lax.Precision.HIGHEST  # also if the model computes in bfloat16
_SMALLEST_POWER = 1e-10


def power_spectrogram(
    waves: jax.Array, *, n_fft: int, win_length: int, hop_length: int
) -> jax.Array:
    """Computes the squared magnitudes of the short-time Fourier transform, [B, F, N].

    The same as `abs(librosa.stft(waves, ...)) ** 2` with its defaults: frame n is centered at
    sample `n * hop_length`, with zeros beyond both ends, and weighted by a periodic Hann window.

    The Fourier transform is a product with a matrix, which takes half the time of XLA's FFT for 512
    samples on a CPU, and can be sharded across devices along B, which XLA's FFT cannot.

    Args:
        waves: waveforms, [B, T].
        n_fft: length of the Fourier transform, in samples.
        win_length: length of the window, at most `n_fft`; zeros are added on both sides.
        hop_length: distance between frames, in samples.
    """
    padded = jnp.pad(waves, ((0, 0), (n_fft // 2, n_fft // 2)))
    starts = hop_length * jnp.arange(1 + (padded.shape[1] - n_fft) // hop_length)
    frames = padded[:, starts[:, None] + jnp.arange(n_fft)]  # [B, N, n_fft]
    cosines, sines = _fourier_matrices(n_fft, win_length)
    real, imaginary = (
        jnp.matmul(frames, jnp.asarray(matrix, waves.dtype), precision=_HIGHEST)
        for matrix in (cosines, sines)
    )
    return (jnp.square(real) + jnp.square(imaginary)).swapaxes(1, 2)


def mel_spectrogram(power: jax.Array, filters: np.ndarray) -> jax.Array:
    """Sums the power of each mel band, [B, M, N].

    Args:
        power: power spectrograms, [B, F, N].
        filters: weights from `mel_filters`, [M, F].
    """
    return jnp.matmul(jnp.asarray(filters, power.dtype), power, precision=_HIGHEST)


def mel_filters(
    *, sample_rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float
) -> np.ndarray:
    """Returns triangular filters of equal area on Slaney's mel scale, float64[M, F].

    The same as `librosa.filters.mel` with its defaults.

    Args:
        sample_rate: samples per second.
        n_fft: length of the Fourier transform, in samples.
        n_mels: number of filters, M.
        fmin: lower end of the first filter, in Hz.
        fmax: upper end of the last filter, in Hz.
    """
    frequencies = np.arange(n_fft // 2 + 1) * sample_rate / n_fft  # [F]
    edges = _mel_to_hz(np.linspace(_hz_to_mel(fmin), _hz_to_mel(fmax), n_mels + 2))
    low, center, high = (edges[i : n_mels + i, None] for i in range(3))
    rising = (frequencies - low) / (center - low)
    falling = (high - frequencies) / (high - center)
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)


def decibels(power: jax.Array, *, top_db: float) -> jax.Array:
    """Converts power to decibels, with a floor `top_db` below the maximum of each spectrogram.

    The same as `librosa.power_to_db` for a single spectrogram: the reference is 1, the power of a
    waveform at full scale, and the smallest power is 1e-10.

    Args:
        power: spectrograms, [B, F, N].
        top_db: dynamic range in decibels.
    """
    level = 10 * jnp.log10(jnp.maximum(power, _SMALLEST_POWER))
    return jnp.maximum(level, level.max(axis=(1, 2), keepdims=True) - top_db)


def _fourier_matrices(n_fft: int, win_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the real and the imaginary part of the windowed transform, float64[n_fft, F] each."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    before = (n_fft - win_length) // 2
    window = np.pad(window, (before, n_fft - win_length - before))
    # Modulo n_fft, so that large angles lose no digits.
    steps = np.outer(np.arange(n_fft), np.arange(n_fft // 2 + 1)) % n_fft
    angles = 2 * np.pi / n_fft * steps
    return window[:, None] * np.cos(angles), -window[:, None] * np.sin(angles)


# Slaney's scale is linear up to 1000 Hz, 15 mels, and logarithmic above: 27 mels per factor of 6.4.
def _hz_to_mel(frequency: float) -> float:
    if frequency < 1000:
        return frequency * 3 / 200
    return 15 + 27 * np.log(frequency / 1000) / np.log(6.4)


def _mel_to_hz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))

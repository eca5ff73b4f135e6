"""Spectrograms equal librosa's: stored values, librosa itself where it is installed, and limits."""

import jax
import numpy as np
import pytest

from flaxdl.data.spectrogram import decibels, mel_filters, mel_spectrogram, power_spectrogram

pytestmark = pytest.mark.quick

SIZES = [(256, 256, 64), (512, 400, 160), (255, 100, 77)]  # n_fft, win_length, hop_length
BANDS = {"sample_rate": 8000, "n_mels": 20, "fmin": 50.0, "fmax": 3900.0}
# By librosa 0.11.0 in float64, for the chirp: six power values and five levels of the middle frame,
# and the sums over all frames.
LIBROSA = {
    (256, 256, 64): (
        [1.918490552e-07, 0.0008773260958, 1.14772609e-08, 2.672150661e-10, 2.59091984e-11],
        [-63.43407359, 3.883720487, -63.43407359, -63.43407359, -63.43407359],
        (126848.9552, -64151.93828),
    ),
    (512, 400, 160): (
        [3.445958952e-06, 0.002171315754, 2.825318581e-08, 7.87916361e-11, 1.341095081e-11],
        [-58.57829542, 10.64378544, -58.57829542, -58.57829542, -58.57829542],
        (160075.5499, -24138.86165),
    ),
    (255, 100, 77): (
        [0.0003429168779, 0.0107017201, 6.086082733e-06, 3.963330164e-07, 2.725267357e-08],
        [-41.34582089, 1.640242654, -53.8842643, -68.56328649, -68.56328649],
        (40352.10696, -51369.5787),
    ),
}


def chirp(dtype=np.float64):
    t = np.arange(4000) / 8000
    return (np.sin(2 * np.pi * (300 * t + 400 * t**2)) * np.linspace(0, 1, 4000)).astype(dtype)


def spectrograms(waves, n_fft, win_length, hop_length):
    """Power, mel bands and decibels, in the dtype of the waves."""
    power = power_spectrogram(waves, n_fft=n_fft, win_length=win_length, hop_length=hop_length)
    mel = mel_spectrogram(power, mel_filters(n_fft=n_fft, **BANDS))
    return [np.asarray(x) for x in (power, mel, decibels(mel, top_db=80.0))]


@pytest.mark.parametrize("sizes", SIZES)
def test_values_are_those_of_librosa(sizes):
    with jax.enable_x64(True):
        power, _, level = (x[0] for x in spectrograms(chirp()[None], *sizes))
    powers, levels, sums = LIBROSA[sizes]
    middle = power.shape[1] // 2
    assert power.shape == (sizes[0] // 2 + 1, 1 + (4000 - sizes[0] % 2) // sizes[2])
    found = power[:: power.shape[0] // 6, middle][:5]
    np.testing.assert_allclose(found, powers, rtol=1e-5, atol=1e-12 * power.max())
    np.testing.assert_allclose(level[::4, middle], levels, rtol=1e-6)
    np.testing.assert_allclose([power.sum(), level.sum()], sums, rtol=1e-6)


@pytest.mark.parametrize("sizes", [*SIZES, (1024, 1024, 256), (2048, 1200, 500)])
def test_batches_agree_with_an_installed_librosa(sizes):
    librosa = pytest.importorskip("librosa")
    n_fft, win_length, hop_length = sizes
    waves = np.random.default_rng(0).standard_normal((2, 4000)) * np.linspace(0, 1, 4000)
    with jax.enable_x64(True):
        ours = spectrograms(waves, *sizes)
    filters = librosa.filters.mel(
        sr=8000, n_fft=n_fft, n_mels=20, fmin=50.0, fmax=3900.0, dtype=np.float64
    )
    np.testing.assert_allclose(mel_filters(n_fft=n_fft, **BANDS), filters, atol=1e-12)
    for number, wave in enumerate(waves):
        window = {"n_fft": n_fft, "win_length": win_length, "hop_length": hop_length}
        power = np.abs(librosa.stft(wave, **window)) ** 2
        mel = filters @ power
        for found, expected in zip(ours, (power, mel, librosa.power_to_db(mel)), strict=True):
            assert found.dtype == np.float64
            error = np.abs(found[number] - expected).max()
            assert error < 1e-12 * np.abs(expected).max()


def test_float32_is_kept_at_full_precision_where_products_are_of_bfloat16():
    with jax.enable_x64(True):
        exact = spectrograms(chirp()[None], *SIZES[1])
    with jax.default_matmul_precision("bfloat16"):
        found = spectrograms(chirp(np.float32)[None], *SIZES[1])
    for one, expected in zip(found[:2], exact[:2], strict=True):
        assert one.dtype == np.float32
        assert np.abs(one - expected).max() < 1e-5 * expected.max()
    # Near the floor of 80 dB, the rounding of float32 is seen.
    assert np.abs(found[2] - exact[2]).max() < 0.1


def test_a_tone_is_in_its_band_and_silence_is_at_the_floor():
    t = np.arange(4000) / 8000
    waves = np.stack([np.sin(2 * np.pi * 1000 * t), np.zeros(4000)]).astype(np.float32)
    power, mel, level = spectrograms(waves, 256, 256, 64)
    assert set(power[0, :, 5:-5].argmax(axis=0)) == {32}  # 1000 Hz · 256 / 8000 Hz
    assert np.all(power[1] == 0)
    assert np.all(mel[1] == 0)
    np.testing.assert_allclose(level[1], -100)  # 10 · log10(1e-10)
    assert np.isclose(level[0].max() - level[0].min(), 80)


@pytest.mark.eight_devices
def test_spectrograms_are_sharded_without_communication():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    compute = jax.jit(
        lambda x: power_spectrogram(x, n_fft=64, win_length=64, hop_length=32), in_shardings=rows
    )
    compiled = compute.lower(jax.ShapeDtypeStruct((8, 500), np.float32)).compile()
    text = compiled.as_text()
    assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all"))

"""Transforms of sounds: values on the device, crops, masks, settings that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.data import LogMel, Spectrogram, Waveforms, sounds
from flaxdl.data.dataset import rows
from flaxdl.data.spectrogram import decibels, mel_filters, mel_spectrogram, power_spectrogram
from flaxdl.errors import UserError

pytestmark = pytest.mark.quick

WINDOW = {"n_fft": 256, "win_length": 200, "hop_length": 250}


@pytest.fixture(scope="module")
def waves():
    return sounds.generate("test", 10).inputs


def scaled(x):
    """Each example with mean 0 and variance 1, in float64."""
    x = np.asarray(x, np.float64)
    axes = tuple(range(1, x.ndim))
    return (x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)


def test_model_inputs_are_scaled_waveforms_and_spectrograms(waves):
    small = np.asarray(waves / 2**15, np.float32)
    power = power_spectrogram(small, **WINDOW)
    filters = mel_filters(sample_rate=8000, n_fft=256, n_mels=12, fmin=100, fmax=4000)
    mel = LogMel(sample_rate=8000, n_mels=12, fmin=100, **WINDOW)
    expected = {
        Waveforms(sample_rate=8000): small,
        Spectrogram(sample_rate=8000, **WINDOW): decibels(power, top_db=80),
        mel: decibels(mel_spectrogram(power, filters), top_db=80),
    }
    for transform, values in expected.items():
        inputs = transform.normalize(waves)
        assert inputs.dtype == jnp.float32
        np.testing.assert_allclose(inputs[..., 0], scaled(values), atol=2e-3)
    assert mel.normalize(waves).shape == (10, 12, 33, 1)


def test_the_volume_does_not_matter_above_the_rounding_of_the_samples(waves):
    mel = LogMel(sample_rate=8000, n_mels=12, **WINDOW)
    loud = waves[:8] / np.abs(waves[:8]).max(axis=1, keepdims=True) * 2**15
    found = [mel.normalize((loud * gain).astype(np.int16)) for gain in (0.9, 0.3)]
    np.testing.assert_allclose(*found, atol=0.05)


def test_arrays_are_cropped_and_padded_to_the_length():
    ramp = np.arange(2400, dtype=np.int16).reshape(3, 800)
    short = Waveforms(sample_rate=8000, seconds=0.05)
    middle = short.prepare({"inputs": ramp}, draws={})
    np.testing.assert_array_equal(middle["inputs"], ramp[:, 200:600])
    draws = short.draw(np.random.default_rng(0), 3)
    assert draws["places"].shape == (3,)
    drawn = short.prepare({"inputs": ramp}, {"places": np.array([0.0, 0.25, 1.0])})
    np.testing.assert_array_equal(drawn["inputs"][:, 0], [0, 900, 2000])
    padded = Waveforms(sample_rate=8000, seconds=0.2).prepare({"inputs": ramp}, draws={})
    np.testing.assert_array_equal(padded["inputs"], np.pad(ramp, ((0, 0), (400, 400))))
    assert padded["inputs"].dtype == np.int16


def test_wider_integers_of_different_lengths_are_taken_as_sixteen_bits():
    """As TFDS stores sounds."""
    sounds = rows([np.array([-32768, 32767] * 2), np.array([5, 6])])
    found = Waveforms(sample_rate=4, seconds=1.0).prepare({"inputs": sounds}, draws={})["inputs"]
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, [[-32768, 32767, -32768, 32767], [0, 5, 6, 0]])


@pytest.mark.parametrize(
    "inputs",
    [
        np.zeros((2, 800), np.float32),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.array(["a", "b"]),
        np.full((2, 800), 40_000),
    ],
)
def test_other_inputs_are_refused(inputs):
    with pytest.raises(UserError, match=r"arrays \[N, T\] of integers from -32768 to 32767, but"):
        Waveforms().prepare({"inputs": inputs}, draws={})


def test_masks_are_of_the_training_step_and_leave_the_weights_alone(waves):
    mel = LogMel(
        sample_rate=8000, n_mels=16, frequency_masks=1, frequency_width=5, time_masks=2,
        time_width=6, **WINDOW,
    )  # fmt: skip
    batch = {
        "inputs": mel.normalize(waves),
        "label": jnp.arange(10),
        "weight": jnp.float32([1] * 8 + [0] * 2),
    }
    augment = jax.jit(mel.augment_batch)
    first, again, other = (augment(batch, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["inputs"], again["inputs"])
    assert not np.array_equal(first["inputs"], other["inputs"])
    np.testing.assert_array_equal(first["weight"], batch["weight"])
    is_masked = np.asarray(first["inputs"] == 0)[..., 0]
    np.testing.assert_array_equal(
        np.asarray(first["inputs"])[..., 0][~is_masked],
        np.asarray(batch["inputs"])[..., 0][~is_masked],
    )
    for one in is_masked:  # whole rows and whole columns
        rows, columns = one.all(axis=1), one.all(axis=0)
        np.testing.assert_array_equal(one, rows[:, None] | columns)
        assert rows.sum() <= 5
        assert columns.sum() <= 12
    assert {"label_2", "mix"} <= LogMel(mixup_alpha=0.4).augment_batch(
        batch, jax.random.key(0)
    ).keys()
    assert Waveforms().augment_batch(batch, jax.random.key(0)) is batch


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: Waveforms(sample_rate=0), "sample_rate must be an integer, at least 1, got 0"),
        (lambda: Waveforms(seconds=0.0), "seconds must be at least one sample"),
        (lambda: Waveforms(seconds=float("nan")), "seconds must be at least one sample"),
        (lambda: Waveforms(mixup_alpha=-1.0), "mixup_alpha must be 0 or above"),
        (lambda: Spectrogram(hop_length=0), "hop_length must be an integer, at least 1, got 0"),
        (lambda: Spectrogram(win_length=600), "win_length must be from 1 to n_fft 512, got 600"),
        (lambda: Spectrogram(time_masks=-1), "time_masks must be an integer, at least 0, got -1"),
        (lambda: LogMel(fmax=9000.0), r"from 0 to half the sample rate \(8000\), got 0.0 and 9000"),
        (lambda: LogMel(n_mels=200), r"\d+ of 200 mel bands contain no frequency .* increase"),
    ],
)
def test_settings_that_are_refused(create, message):
    with pytest.raises(UserError, match=message):
        create()


def test_a_mask_must_fit(waves):
    mel = LogMel(sample_rate=8000, n_mels=16, frequency_masks=1, frequency_width=17, **WINDOW)
    batch = {"inputs": mel.normalize(waves)}
    with pytest.raises(UserError, match="masked bands must fit into 16 rows or columns, got width"):
        mel.augment_batch(batch, jax.random.key(0))


def test_pictures_are_spectrograms_in_which_a_tone_is_a_line(waves):
    for transform in (Waveforms(sample_rate=8000), LogMel(sample_rate=8000, **WINDOW)):
        tone = transform.pictures(waves[:1])[0]
        assert tone.ndim == 2
        assert len(set(tone[:, 5:-5].argmax(axis=0))) <= 2

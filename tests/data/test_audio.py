"""Transforms of sounds: values on the device, crops, masks, settings that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl import Config
from flaxdl.data import (
    Arrays,
    LogMel,
    Spectrogram,
    Waveforms,
    evaluation_batches,
    sounds,
    training_batches,
)
from flaxdl.data.dataset import rows
from flaxdl.data.spectrogram import decibels, mel_filters, mel_spectrogram, power_spectrogram
from flaxdl.errors import UserError
from flaxdl.models import CNN1d, SimpleCNN
from flaxdl.runs.setup import set_up

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
    ("inputs", "remedy"),
    [
        (np.zeros((2, 800), np.float32), "; multiply floats from -1 to 1 by 32767"),
        (np.zeros((2, 8, 8, 3), np.uint8), ""),
        (np.array(["a", "b"]), ""),
        (np.full((2, 800), 40_000), ""),
    ],
)
def test_other_inputs_are_refused(inputs, remedy):
    message = rf"arrays \[N, T\] of integers from -32768 to 32767, but .*\]{remedy}$"
    with pytest.raises(UserError, match=message):
        Waveforms().prepare({"inputs": inputs}, draws={})


def test_weights_of_examples_are_kept(waves):
    source = Arrays.from_memory(
        train_inputs=waves,
        train_label=np.arange(10) % 2,
        train_weight=np.array([0, 0.5, 2, 3, 1] * 2),
        validation_inputs=waves,
        validation_label=np.arange(10) % 2,
        validation_weight=np.array([0, 0.5, 2, 3, 1] * 2),
    )
    splits = source.load(seed=0)
    for transform in (Waveforms(sample_rate=8000), Spectrogram(sample_rate=8000, **WINDOW)):
        batch = next(training_batches(splits.train, transform, batch_size=10, seed=0))
        assert batch["weight"].dtype == np.float32
        np.testing.assert_array_equal(np.sort(batch["weight"]), [0, 0, 0.5, 0.5, 1, 1, 2, 2, 3, 3])
        batch = next(evaluation_batches(splits.validation, transform, batch_size=10))
        np.testing.assert_array_equal(batch["weight"], [0, 1, 1, 1, 1] * 2)


def test_padding_of_arrays_is_no_part_of_the_sounds():
    inputs = np.array([[1, 2, 3, 4, 5, 6], [7, 8, 0, 0, 0, 0]], np.int16)
    batch = {"inputs": inputs, "lengths": np.array([6, 2], np.int32), "label": np.arange(2)}
    found = Waveforms(sample_rate=4).prepare(batch, draws={})
    np.testing.assert_array_equal(found["inputs"], [[2, 3, 4, 5], [0, 7, 8, 0]])
    assert set(found) == {"inputs", "label", "weight"}
    for lengths, message in (
        (np.array([6, 0]), "must be from 1 to 6, the number of samples, got 0"),
        (np.array([7, 2]), "must be from 1 to 6, the number of samples, got 7"),
        (np.array([6.0, 2.0]), r"must be one integer per sound, got float64 \[2\]"),
    ):
        with pytest.raises(UserError, match=message):
            Waveforms(sample_rate=4).prepare({**batch, "lengths": lengths}, draws={})


@pytest.mark.parametrize(
    ("model", "transform"),
    [
        (CNN1d(num_classes=None, filters=(4,), kernel_sizes=(3,)), Waveforms(sample_rate=8000)),
        (
            SimpleCNN(num_classes=None),
            LogMel(sample_rate=8000, n_mels=12, n_fft=256, hop_length=250),
        ),
    ],
)
def test_a_model_gets_no_lengths_of_padded_arrays(waves, model, transform):
    source = Arrays.from_memory(
        train_inputs=[wave[: 7000 + 100 * number] for number, wave in enumerate(waves)],
        train_label=np.arange(10) % 2,
    )
    setup = set_up(Config(model=model, data=source, transform=transform, batch_size=4))
    assert setup.examples.keys() == {"inputs", "label", "weight"}
    batch = next(setup.training_batches())
    assert batch.keys() == {"inputs", "label", "weight"}
    assert batch["inputs"].shape == (4, 8000)


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
        (
            lambda: Spectrogram(win_length=600),
            "win_length must be an integer, from 1 to 512, got 600",
        ),
        (lambda: Spectrogram(win_length=10.5), "win_length must be an integer, .* got 10.5"),
        (lambda: Spectrogram(time_masks=-1), "time_masks must be an integer, at least 0, got -1"),
        (lambda: LogMel(fmax=9000.0), r"from 0 to half the sample rate \(8000\), got 0.0 and 9000"),
        (lambda: LogMel(fmax=0.0), "in ascending order from 0 to .*, got 0.0 and 0.0"),
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

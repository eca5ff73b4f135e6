"""The generated sounds: the same ones each time, and each what its class says."""

import hashlib

import numpy as np
import pytest

from flaxdl.data import Sounds, sounds
from flaxdl.data.sounds import SAMPLE_RATE, WAVES
from flaxdl.errors import UserError

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def few():
    return sounds.generate("train", 100)


def test_the_same_sounds_are_generated_each_time(few):
    again = sounds.generate("train", 20)
    for whole, start in zip(few, again, strict=True):
        np.testing.assert_array_equal(whole[:20], start)
    assert not np.array_equal(sounds.generate("test", 10).inputs, again.inputs[:10])
    assert len({hashlib.sha256(one.tobytes()).digest() for one in few.inputs}) == 100


def test_volume_and_noise_are_spread_over_their_ranges(few):
    assert (few.inputs.shape, few.inputs.dtype) == ((100, 8000), np.int16)
    np.testing.assert_array_equal(few.label[:12], [*range(10), 0, 1])
    assert 0 <= few.snr.min() < 3
    assert 27 < few.snr.max() <= 30
    peaks = 20 * np.log10(np.abs(few.inputs.astype(float)).max(1) / 2**15)
    assert -30.1 < peaks.min() < -25
    assert -5 < peaks.max() <= -0.9


def test_noise_is_added_at_the_signal_to_noise_ratio(few):
    """The power of a tone is in one line of its spectrum, that of white noise everywhere."""
    is_tone = few.label == list(WAVES).index("tone")
    for sound, snr in zip(few.inputs[is_tone], few.snr[is_tone], strict=True):
        power = np.abs(np.fft.rfft(sound * np.hanning(SAMPLE_RATE))) ** 2
        peak = power.argmax()
        tone = power[peak - 3 : peak + 4].sum()
        noise = np.delete(power, np.arange(peak - 3, peak + 4)).sum()
        assert abs(10 * np.log10(tone / noise) - snr) < 0.5


def spectrum(name, seed=0):
    return np.abs(np.fft.rfft(WAVES[name](np.random.default_rng(seed)))) ** 2


def test_chords_have_a_major_or_a_minor_third_and_a_fifth():
    for name, third in (("major chord", 4), ("minor chord", 3)):
        for seed in range(5):
            wave = WAVES[name](np.random.default_rng(seed))
            power = np.abs(np.fft.rfft(wave * np.hanning(SAMPLE_RATE)))
            peaks = [power.argmax()]
            while len(peaks) < 3:
                power[max(peaks[-1] - 6, 0) : peaks[-1] + 7] = 0
                peaks.append(power.argmax())
            root, *others = sorted(peaks)
            steps = [12 * np.log2(other / root) for other in others]
            np.testing.assert_allclose(steps, [third, 7], atol=0.15)


def test_chirps_rise_and_fall_and_colors_of_noise_differ():
    for seed in range(5):
        for name, sign in (("rising chirp", 1), ("falling chirp", -1)):
            wave = WAVES[name](np.random.default_rng(seed))
            crossings = [np.sum(np.diff(np.sign(half)) != 0) for half in np.split(wave, 2)]
            assert sign * (crossings[1] - crossings[0]) > 0
        for name, slope in (("white noise", 1), ("pink noise", 8)):
            power = spectrum(name, seed)
            assert abs(np.log2(power[100:200].mean() / power[800:1600].mean() / slope)) < 0.7
        assert 0.4 < np.sqrt(np.mean(WAVES["tone"](np.random.default_rng(seed)) ** 2)) < 0.8


def test_splits_of_the_source():
    splits = Sounds(train=40, test=20, validation_fraction=0.25).load(seed=0)
    counts = [len(split) for split in (splits.train, splits.validation, splits.test)]
    assert counts == [30, 10, 20]
    assert splits.classes == tuple(WAVES)
    assert sorted(splits.validation.labels()) == list(range(10))  # stratified
    np.testing.assert_array_equal(splits.test.arrays()["inputs"], sounds.generate("test", 20)[0])
    with pytest.raises(UserError, match="train and test must be positive, got 0 and 5"):
        Sounds(train=0, test=5).load(seed=0)

"""Sections of sound files of every kind, and what is said of broken ones."""

import io
import sys

import numpy as np
import pytest
import soundfile
from helpers.processor_time import takes_at_most

from flaxdl.data.audio_files import fit_length, read_sound
from flaxdl.errors import UserError

pytestmark = pytest.mark.quick

RATE = 8000


def noise(count=2000, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(count) * 3000).astype(np.int16)


def read(path, length=2000, place=0.5, sample_rate=RATE):
    return read_sound(path, sample_rate=sample_rate, length=length, place=place)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_sixteen_bits_are_read_exactly(tmp_path, suffix):
    path = tmp_path / f"noise.{suffix}"
    soundfile.write(path, noise(), RATE)
    found = read(path)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, noise())


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        ("wav", "PCM_U8", 256),
        ("wav", "PCM_24", 1),
        ("wav", "PCM_32", 1),
        ("wav", "FLOAT", 1),
        ("wav", "ULAW", 512),
        ("flac", "PCM_S8", 256),
        ("flac", "PCM_24", 1),
    ],
)
def test_other_sample_formats_have_the_same_scale(tmp_path, suffix, subtype, tolerance):
    path = tmp_path / f"noise.{suffix}"
    soundfile.write(path, noise() / 2**15, RATE, subtype=subtype)
    assert np.abs(read(path).astype(int) - noise()).max() <= tolerance


def test_channels_are_averaged_and_beyond_full_scale_is_clipped(tmp_path):
    left, right = noise(seed=0), noise(seed=1)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], 1), RATE)
    mean = (left.astype(float) + right) / 2
    np.testing.assert_array_equal(read(tmp_path / "stereo.wav"), np.rint(mean))
    soundfile.write(tmp_path / "loud.wav", np.array([1.5, -1.5, 0.5]), RATE, subtype="FLOAT")
    np.testing.assert_array_equal(read(tmp_path / "loud.wav", 3), [32767, -32768, 16384])
    huge = np.array([[3e38, 3e38], [-3e38, -3e38], [0.5, 0.5]], np.float32)
    soundfile.write(tmp_path / "huge.wav", huge, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(read(tmp_path / "huge.wav", 3), [32767, -32768, 16384])


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize(("place", "start"), [(0.0, 0), (0.5, 500), (1.0, 1000)])
def test_a_section_is_read_and_a_shorter_file_is_padded(tmp_path, place, start, suffix):
    path = tmp_path / f"noise.{suffix}"
    soundfile.write(path, noise(), RATE)
    section = read(path, 1000, place)
    np.testing.assert_array_equal(section, noise()[start : start + 1000])
    padded = read(path, 3000, place)
    np.testing.assert_array_equal(padded[start : start + 2000], noise())
    assert np.count_nonzero(padded) == np.count_nonzero(noise())
    np.testing.assert_array_equal(padded, fit_length(noise(), 3000, place))


@pytest.mark.parametrize("rate", [4000, 11025, 44100])
def test_other_sample_rates_are_resampled(tmp_path, rate):
    t = np.arange(2 * rate) / rate
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * t), rate)
    for length, place in ((RATE, 1.0), (2 * RATE, 0.5), (3 * RATE, 0.0)):
        found = read(tmp_path / "tone.wav", length, place) / 2**15
        assert found.shape == (length,)
        seconds = min(2, length / RATE)
        heard = found[: int(seconds * RATE)][500:-500]
        frequency = np.fft.rfftfreq(len(heard), 1 / RATE)[np.abs(np.fft.rfft(heard)).argmax()]
        assert abs(frequency - 440) < 1
        assert abs(np.abs(heard).max() - 0.5) < 0.01


def test_hours_of_sound_cost_no_more_than_the_section(tmp_path):
    path = tmp_path / "hours.wav"
    with soundfile.SoundFile(path, "w", 48_000, 2) as file:
        file.write(np.zeros((10, 2), np.int16))
    frames = 4 * 3600 * 48_000
    content = bytearray(path.read_bytes()[:44])
    content[40:44] = (4 * frames).to_bytes(4, "little")
    content[4:8] = (4 * frames + 36).to_bytes(4, "little")
    path.write_bytes(content)
    with path.open("r+b") as file:  # sparse: zeros that take no space
        file.truncate(44 + 4 * frames)
    assert soundfile.info(path).frames == frames
    with takes_at_most(0.2):
        for place in (0.0, 0.3, 1.0):
            assert not read(path, place=place).any()


def of(suffix, samples, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=suffix, **options)
    return file.getvalue()


WHOLE = {suffix: of(suffix, noise()) for suffix in ("wav", "flac")}
STREAMED = bytearray(WHOLE["flac"])
STREAMED[21] &= 0xF0  # the last 36 bits of these are the number of samples; 0 means unknown
STREAMED[22:26] = bytes(4)
BROKEN = {
    "streamed.flac": (bytes(STREAMED), "header lacks the number of samples, .* encode it again"),
    "empty.wav": (b"", "it is empty"),
    "text.wav": (b"not a sound, but a text " * 20, "Format not recognised"),
    "header.wav": (WHOLE["wav"][:30], "No 'data' chunk marker"),
    "without_samples.wav": (of("wav", noise(0)), "it contains no samples"),
    "half.flac": (WHOLE["flac"][: len(WHOLE["flac"]) // 2], "lost sync"),
    "overwritten.flac": (
        WHOLE["flac"][:2000] + bytes(300) + WHOLE["flac"][2300:],
        "lost sync",
    ),
    "nan.wav": (of("wav", np.array([0, np.nan]), subtype="FLOAT"), "samples that are not finite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_the_reason(tmp_path, name):
    content, reason = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} cannot be read as a sound: .*{reason}") as error:
        read(path)
    assert "BufferedReader" not in str(error.value)


def test_what_is_no_file(tmp_path):
    with pytest.raises(UserError, match=r"no such sound file: .*absent\.wav"):
        read(tmp_path / "absent.wav")
    with pytest.raises(UserError, match="it is a folder"):
        read(tmp_path)


def test_a_wav_file_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "cut.wav"
    path.write_bytes(WHOLE["wav"][: 44 + 2 * 500])
    np.testing.assert_array_equal(read(path, place=0.0), [*noise()[:500], *[0] * 1500])


def test_silence_and_a_single_sample_are_sounds(tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(2000, np.int16), RATE)
    assert not read(tmp_path / "silence.wav").any()
    soundfile.write(tmp_path / "one.wav", noise(1), RATE)
    np.testing.assert_array_equal(read(tmp_path / "one.wav", 3), [0, noise()[0], 0])


@pytest.mark.parametrize("package", ["soundfile", "soxr"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'flaxdl\[audio\]'.*" + package):
        read("some.wav")

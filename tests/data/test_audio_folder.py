"""Folders of sounds: classes and splits, sections, and unreadable files."""

import pickle
import shutil

import numpy as np
import pytest
import soundfile

from flaxdl.data import AudioFolder, LogMel, Waveforms, evaluation_batches, training_batches
from flaxdl.data.audio_folder import SoundDataset
from flaxdl.data.skipped_examples import SkippedExamples
from flaxdl.data.values import check_inputs
from flaxdl.errors import UserError

RATE = 8000
WAVEFORMS = Waveforms(sample_rate=RATE, seconds=0.05)  # 400 samples


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """Two classes of ten files each: constant values that differ, in both formats."""
    folder = tmp_path_factory.mktemp("birds")
    for number in range(20):
        path = folder / ("owl", "wren")[number % 2] / f"{number}.{('wav', 'flac')[number // 2 % 2]}"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.full(600, 100 * (number + 1), np.int16), RATE)
    return folder


def load_all(folder, **settings):
    """All sounds as training sounds."""
    held_out = {"validation_fraction": 0.0, "test_fraction": 0.0}
    return AudioFolder(str(folder), **held_out, **settings).load(seed=0)


def read_all(dataset, transform=WAVEFORMS, batch_size=4):
    """The levels and weights of all examples, in order."""
    batches = list(evaluation_batches(dataset, transform, batch_size=batch_size))
    inputs = np.concatenate([batch["inputs"] for batch in batches])[: len(dataset)]
    return inputs.max(axis=1), np.concatenate([batch["weight"] for batch in batches])


@pytest.mark.quick
def test_sounds_are_read_by_class(birds):
    splits = load_all(birds)
    assert splits.classes == ("owl", "wren")
    np.testing.assert_array_equal(splits.train.labels(), [0] * 10 + [1] * 10)
    names = [splits.train.example_name(index) for index in range(20)]
    assert names[:3] == ["owl/0.wav", "owl/10.flac", "owl/12.wav"]
    levels, weights = read_all(splits.train)
    numbers = [int(name.split("/")[1].split(".")[0]) for name in names]
    np.testing.assert_array_equal(levels, 100 * (np.array(numbers) + 1))
    assert weights.sum() == 20


@pytest.mark.quick
def test_splits_are_those_of_folders_or_of_hashes(birds, tmp_path):
    split = AudioFolder(str(birds), validation_fraction=0.2, test_fraction=0.2).load(seed=0)
    names = [
        {part.example_name(index) for index in range(len(part))}
        for part in (split.train, split.validation, split.test)
    ]
    assert sum(map(len, names)) == len(set.union(*names)) == 20
    for name in ("train", "val"):
        shutil.copytree(birds, tmp_path / "parts" / name)
    split = AudioFolder(str(tmp_path / "parts")).load(seed=0)
    assert (len(split.train), len(split.validation), split.test) == (20, 20, None)


def test_training_crops_are_random_and_the_same_each_time(birds, tmp_path):
    for kind in ("up", "down"):
        (tmp_path / kind).mkdir()
        ramp = np.arange(600, dtype=np.int16) * (1 if kind == "up" else -1)
        soundfile.write(tmp_path / kind / "ramp.wav", ramp, RATE)
    dataset = load_all(tmp_path).train

    def starts(seed, count=20):
        batches = training_batches(dataset, WAVEFORMS, batch_size=2, seed=seed)
        found = [np.abs(next(batches)["inputs"].astype(int)).min(axis=1) for _ in range(count)]
        batches.close()
        return np.concatenate(found)

    np.testing.assert_array_equal(starts(0), starts(0))
    assert not np.array_equal(starts(0), starts(1))
    assert 0 <= starts(0).min() < 40
    assert 160 < starts(0).max() <= 200
    assert set(read_all(dataset)[0]) == {499, -100}  # the middle in evaluation


@pytest.mark.quick
def test_unreadable_files_are_skipped_up_to_a_limit(birds, tmp_path, caplog):
    shutil.copytree(birds, tmp_path / "birds")
    (tmp_path / "birds" / "owl" / "0.wav").write_bytes(b"")
    (tmp_path / "birds" / "wren" / "9.wav").write_bytes(b"RIFF")
    train = load_all(tmp_path / "birds").train
    levels, weights = read_all(train)
    names = [train.example_name(index) for index in range(20)]
    assert [name for name, w in zip(names, weights, strict=True) if not w] == [
        "owl/0.wav",
        "wren/9.wav",
    ]
    assert levels[0] == levels[1]  # that of the next file
    assert caplog.text.count("; skipping it") == 2
    assert "owl/0.wav cannot be read as a sound: it is empty" in caplog.text
    strict = load_all(tmp_path / "birds", max_unreadable=1).train
    with pytest.raises(UserError, match=r"2 sounds cannot be read, more than max_unreadable = 1"):
        read_all(strict)


@pytest.mark.quick
def test_weights_of_files_are_kept(birds, tmp_path):
    files = load_all(birds).train.files()[:4]
    (tmp_path / "empty.wav").touch()
    dataset = SoundDataset(
        [*files[:3], tmp_path / "empty.wav", files[3]],
        np.arange(5) % 2,
        birds,
        skipped=SkippedExamples(1, "sounds"),
        weights=np.array([0, 0.5, 2, 3, 1], np.float32),
    )
    batch = WAVEFORMS.prepare(dataset.gather(np.arange(5)), draws={})
    assert batch["weight"].dtype == np.float32
    np.testing.assert_array_equal(batch["weight"], [0, 0.5, 2, 0, 1])


@pytest.mark.quick
def test_a_copy_in_a_worker_process_collects_its_reasons(birds, tmp_path):
    shutil.copytree(birds, tmp_path / "birds")
    (tmp_path / "birds" / "owl" / "0.wav").write_bytes(b"")
    copy = pickle.loads(pickle.dumps(load_all(tmp_path / "birds").train))
    WAVEFORMS.prepare(copy.gather(np.arange(2)), draws={})
    assert [name[-9:] for name in copy.skipped.pop_reasons()] == ["owl/0.wav"]


@pytest.mark.quick
def test_folders_without_sounds(tmp_path, birds):
    with pytest.raises(UserError, match="no such folder of sounds: .*absent"):
        load_all(tmp_path / "absent")
    (tmp_path / "one.wav").touch()
    with pytest.raises(UserError, match="one.wav is not a folder; give one with a subfolder of so"):
        load_all(tmp_path / "one.wav")
    for name in ("owl", "wren"):
        (tmp_path / "mp3" / name).mkdir(parents=True)
        (tmp_path / "mp3" / name / "call.mp3").write_bytes(b"ID3")
    expected = r"owl contains no sounds \(.wav, .flac\), only other files \(.mp3: 1\); convert"
    with pytest.raises(UserError, match=expected):
        load_all(tmp_path / "mp3")
    with pytest.raises(UserError, match="validation_fraction must be at least 0"):
        AudioFolder(str(birds), validation_fraction=-1.0)


@pytest.mark.quick
def test_silent_files_are_finite_inputs(tmp_path):
    for name in ("on", "off"):
        (tmp_path / name).mkdir()
        level = 1000 if name == "on" else 0
        wave = np.random.default_rng(0).integers(-level, level + 1, 800).astype(np.int16)
        soundfile.write(tmp_path / name / "a.wav", wave, RATE)
    train = load_all(tmp_path).train
    mel = LogMel(sample_rate=RATE, seconds=0.1, n_fft=128, hop_length=64, n_mels=8)
    for transform in (WAVEFORMS, mel):
        check_inputs(train, transform)
        inputs = transform.prepare(train.gather(np.arange(2)), draws={})["inputs"]
        silent, sounding = np.asarray(transform.normalize(inputs))
        assert np.abs(silent).max() < 0.1
        np.testing.assert_allclose([sounding.mean(), sounding.std()], [0, 1], atol=1e-3)

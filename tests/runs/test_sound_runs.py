"""Runs on a folder of sounds: training, resuming, prediction, report, export, figures."""

import dataclasses
import json
import signal
from pathlib import Path
from typing import get_args

import jax
import jax.export
import numpy as np
import pytest
import soundfile
from helpers.small_runs import interrupt_at, train

import flaxdl
from flaxdl import Config
from flaxdl.analysis import visualization
from flaxdl.analysis.visualization import visualize
from flaxdl.data import AudioFolder, Images, LogMel, Spectrogram, Transform, Waveforms
from flaxdl.errors import UserError
from flaxdl.models import LeNet5, SimpleRNN
from flaxdl.report import predictions
from flaxdl.runs.config_json import from_json, to_json
from flaxdl.runs.evaluation import load_transformed
from flaxdl.runs.prediction import predict_each
from flaxdl.runs.restored import restore
from flaxdl.runs.setup import set_up
from flaxdl.runs.workdir import Workdir
from flaxdl.training import AdamW, Cosine, Interrupted

RATE = 8000
MEL = LogMel(
    sample_rate=RATE, seconds=0.2, n_fft=128, hop_length=64, n_mels=20, fmin=100.0,
    frequency_masks=1, frequency_width=2, time_masks=1, time_width=2,
)  # fmt: skip


def write(path, frequency, seed=0, seconds=0.3):
    """Writes a tone with noise, at one of two sample rates."""
    rng = np.random.default_rng(seed)
    rate = (RATE, 2 * RATE)[seed % 2]
    t = np.arange(int(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * (frequency * t + rng.random()))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone + 0.02 * rng.standard_normal(len(t)), rate)


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """High and low tones, and two unreadable files."""
    folder = tmp_path_factory.mktemp("sounds") / "birds"
    for number in range(80):
        high = number % 2
        path = folder / ("low", "high")[high] / f"{number:02}.{('wav', 'flac')[number // 2 % 2]}"
        write(path, 2500 + 10 * number if high else 400 + 5 * number, seed=number // 2)
    (folder / "low" / "bad.wav").write_bytes(b"")
    (folder / "high" / "bad.flac").write_bytes(b"fLaC")
    return folder


def a_config(birds, **changes):
    settings = {
        "model": LeNet5(num_classes=None),
        "data": AudioFolder(str(birds), validation_fraction=0.2, test_fraction=0.2),
        "transform": MEL,
        "optimizer": AdamW(learning_rate=5e-3, schedule=Cosine()),
        "batch_size": 8,
        "epochs": 6,
        "evaluate_every": 3,
        "log_every": 5,
    }
    return Config(**(settings | changes))


@pytest.fixture(scope="module")
def run(birds, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "birds"
    train(a_config(birds), workdir)
    return workdir


def test_a_network_learns_to_tell_high_from_low_sounds(run):
    assert flaxdl.evaluate(run, "test")["accuracy"] == 1
    assert flaxdl.evaluate(run, "train")["accuracy"] == 1
    stored = json.loads((run / "config.json").read_text())["data"]["example"]["inputs"]
    assert stored == {"shape": [1600], "dtype": "int16"}


def test_files_are_classified_whatever_their_length_rate_and_format(run, tmp_path):
    write(tmp_path / "new" / "a.wav", 2800, seed=1, seconds=2)
    write(tmp_path / "new" / "b.flac", 500, seed=0, seconds=0.15)
    (tmp_path / "new" / "c.wav").write_bytes(b"RIFF")
    (tmp_path / "new" / "notes.txt").write_text("no sound")
    found = list(predict_each(restore(run), [str(tmp_path / "new")]))
    assert [one.label for one in found[:2]] == ["high", "low"]
    assert "c.wav cannot be read as a sound" in found[2].error
    assert len(found) == 3


def test_a_resumed_run_reads_the_same_sections_and_draws_the_same_masks(
    run, birds, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched:
        interrupt_at(patched, 20, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(a_config(birds), tmp_path / "run")
    train(a_config(birds), tmp_path / "run")
    lines = [
        [
            {name: x for name, x in json.loads(line).items() if name != "examples_per_second"}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (run, tmp_path / "run")
    ]
    assert lines[0] == lines[1]


def test_the_report_shows_spectrograms_and_file_names(run):
    restored = restore(run)
    # Weights of zeros take every sound for the first class.
    params = jax.tree.map(np.zeros_like, restored.state.params)
    wrong = dataclasses.replace(restored, state=restored.state.replace(params=params))
    splits = load_transformed(restored, Workdir(run))
    found = predictions.compute(wrong, splits)
    assert isinstance(found, predictions.Predictions)
    assert found.inputs.shape[1:] == (20, 26)  # mel bands, frames
    assert found.inputs.dtype == np.uint8
    assert all(Path(name).suffix in (".wav", ".flac") for name in found.names)
    brightest = found.inputs.mean(axis=2).argmax(axis=1)  # row of the tone; high ones are above
    names = found.names[found.shown]
    assert {name.split("/")[0] for name in names} == {"low"}
    assert np.all(brightest >= 14)


def test_the_exported_program_reads_int16(run, tmp_path, birds):
    flaxdl.export(run, tmp_path / "birds.stablehlo")
    data = bytearray((tmp_path / "birds.stablehlo").read_bytes())
    program = jax.export.deserialize(data)
    file = next((birds / "high").glob("*.wav"))
    inputs = MEL.read([str(file)] * 3, {})["inputs"]
    logits = program.call({"inputs": inputs})
    probabilities = flaxdl.predict(run, [str(file)])[0].probabilities
    expected = [probabilities["high"], probabilities["low"]]
    np.testing.assert_allclose(jax.nn.softmax(logits)[0], expected, atol=1e-5)


def test_figures_are_drawn_on_the_spectrogram(run, birds):
    file = str(next((birds / "low").glob("*.wav")))
    for what in ("grad-cam", "saliency"):
        images = [image for axes in visualize(run, file, what).axes for image in axes.images]
        assert images[0].get_array().shape[:2] == (20, 26)  # mel bands, frames
        assert {tuple(image.get_extent()) for image in images} == {(-0.5, 25.5, 19.5, -0.5)}


def test_a_recurrent_network_reads_waveforms(birds, tmp_path):
    config = a_config(
        birds,
        model=SimpleRNN(hidden_size=4, num_classes=None),
        transform=Waveforms(sample_rate=RATE, seconds=0.01, mixup_alpha=0.2),
        epochs=1,
        evaluate_every=1,
    )
    result = train(config, tmp_path / "run")
    assert np.isfinite(result.metrics["loss"])
    file = str(next((birds / "low").glob("*.wav")))
    for what in get_args(visualization.What):
        if what != "filters":
            with pytest.raises(UserError, match=f"--what {what} needs spectrograms .* waveforms"):
                visualize(tmp_path / "run", file, what)


def test_configs_of_sounds_are_stored(birds):
    for transform in (MEL, Spectrogram(win_length=400), Waveforms(seconds=2.5)):
        config = a_config(birds, transform=transform)
        assert from_json(to_json(config)) == config


def test_spectrograms_are_computed_before_the_cast_to_bfloat16(birds):
    steps = set_up(a_config(birds, precision="bfloat16")).steps
    traced = str(jax.make_jaxpr(steps.normalize)(np.zeros((2, 1600), np.int16)))
    assert "bf16" not in traced
    assert "HIGHEST" in traced


def test_a_folder_of_sounds_needs_a_transform_of_sounds(birds):
    for transform in (Images(), Transform()):
        name = type(transform).__name__
        with pytest.raises(UserError, match=f"needs the transform LogMel, .*, got {name}"):
            set_up(a_config(birds, transform=transform))

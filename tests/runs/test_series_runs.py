"""Runs that classify series of different lengths, and predictions for files."""

import numpy as np
import pytest
from helpers.small_runs import train

import flaxdl
from flaxdl import Config
from flaxdl.cli import main
from flaxdl.data import Arrays, Series
from flaxdl.models import CNN1d, SimpleRNN
from flaxdl.report import predictions
from flaxdl.runs.config_json import from_json, to_json
from flaxdl.training import AdamW


def waves(count, seed):
    """Slow and fast waves of 10 to 20 steps on a level of 50, with their classes."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    series = []
    for fast in label:
        time = np.arange(rng.integers(10, 21)) + rng.uniform(0, 10)
        series.append(50 + 3 * np.sin(time * (2.0 if fast else 0.5))[:, None].astype(np.float32))
    return series, np.array(["slow", "fast"])[label]


TRAIN, TEST = waves(48, 0), waves(9, 1)
SOURCE = Arrays.from_memory(
    train_inputs=TRAIN[0],
    train_label=TRAIN[1],
    test_inputs=TEST[0],
    test_label=TEST[1],
    validation_fraction=1 / 6,
)


@pytest.mark.parametrize(
    "model",
    [
        CNN1d(num_classes=None, filters=(8, 8, 8)),
        SimpleRNN(hidden_size=8, num_classes=None, cell="gru"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_run_learns_and_predicts_files(model, tmp_path, capsys):
    config = Config(
        model=model,
        data=SOURCE,
        transform=Series(),
        optimizer=AdamW(learning_rate=0.02),
        batch_size=8,
        epochs=8,
    )
    assert from_json(to_json(config.transform)) == config.transform
    result = train(config, tmp_path / "run")
    assert result.metrics["split"] == "test"
    assert result.metrics["accuracy"] == 1
    assert flaxdl.evaluate(tmp_path / "run", config=config)["accuracy"] == 1

    np.save(tmp_path / "0.npy", TEST[0][0])
    (tmp_path / "1.csv").write_text("\n".join(str(x) for x in TEST[0][1][:, 0].tolist()))
    files = [str(tmp_path / name) for name in ("0.npy", "1.csv")]
    found = flaxdl.predict(tmp_path / "run", files, config=config)
    assert [one.label for one in found] == list(TEST[1][:2])
    stored = predictions.compute(result.run, SOURCE.load(0).map(result.run.transform.apply))
    assert stored.uncertain_inputs.shape == (9, 64, 128)  # drawn as lines
    if isinstance(model, CNN1d):
        assert main(["predict", "--workdir", str(tmp_path / "run"), files[0]]) == 0
        assert "slow" in capsys.readouterr().out
        assert main(["export", "--workdir", str(tmp_path / "run"), "--to",
                     str(tmp_path / "model.stablehlo")]) == 0  # fmt: skip

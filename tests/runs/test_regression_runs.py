"""Runs that predict numbers: scores in own units, prediction, resuming, and one message each."""

import csv
import json
import math
import signal

import jax
import numpy as np
import pytest
from helpers.small_runs import interrupt_at, train
from sklearn.metrics import mean_absolute_error, r2_score

import flaxdl
from flaxdl import Config
from flaxdl.cli import main
from flaxdl.data import Arrays, Series
from flaxdl.data.dataset import ArrayDataset
from flaxdl.models import SimpleRNN
from flaxdl.runs.config_json import from_json, to_json
from flaxdl.training import AdamW, Interrupted, Regression, Selection

RNG = np.random.default_rng(0)
SERIES = RNG.normal(size=(120, 4, 2)).astype(np.float32)
# The sum of each channel, in units of their own.
LABEL = SERIES.sum(1) * [2.0, 300.0] + [10.0, -5000.0] + RNG.normal(size=(120, 2)) * [0.1, 10.0]
LABEL[::7, 1] = np.nan
NAMES = ("heat", "load")


def arrays(label=LABEL, **others):
    return Arrays.from_memory(
        train_inputs=SERIES[:80],
        train_label=label[:80],
        validation_inputs=SERIES[80:100],
        validation_label=label[80:100],
        test_inputs=SERIES[100:],
        test_label=label[100:],
        **others,
    )


def config_of(**changes):
    settings = {
        "model": SimpleRNN(hidden_size=8, num_classes=None, cell="gru"),
        "data": arrays(classes=np.array(NAMES)),
        "transform": Series(),
        "task": Regression(),
        "optimizer": AdamW(learning_rate=0.02),
        "batch_size": 16,
        "epochs": 8,
        "evaluate_every": 4,
        "selection": Selection(metric="r2"),
    }
    return Config(**(settings | changes))


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def outputs_of(result, series):
    """Standardized outputs of the trained model."""
    batch = result.run.transform.apply(ArrayDataset({"inputs": series})).arrays()
    return result.model.apply(result.variables, batch["inputs"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regression")
    config = config_of()
    for number in (100, 101):
        np.save(folder / f"{number}.npy", SERIES[number])
    return folder, config, flaxdl.train(config, folder / "run")


def test_statistics_are_stored_with_the_run(run):
    folder, config, result = run
    record = json.loads((folder / "run" / "config.json").read_text())
    assert record["config"]["task"]["class"] == "flaxdl.training.Regression"
    assert record["config"]["task"]["mean"] is None
    known = LABEL[:80].astype(np.float32)
    stored = record["data"]["task"]
    np.testing.assert_allclose(stored["mean"], np.nanmean(known, 0), rtol=1e-6)
    np.testing.assert_allclose(stored["std"], np.nanstd(known, 0), rtol=1e-6)
    assert stored["targets"] == ["heat", "load"]
    assert from_json(to_json(config)) == config
    restored = flaxdl.restore(folder / "run", config).config
    assert restored.task == result.run.config.task
    assert restored.model.num_classes == 2  # from the labels


def test_scores_are_those_of_the_test_split_in_own_units(run):
    folder, config, result = run
    outputs = outputs_of(result, SERIES[100:])
    predicted, truth = result.run.config.task.in_own_units(outputs), LABEL[100:].astype(np.float32)
    known = ~np.isnan(truth)
    expected = {
        "mae": np.abs(predicted - truth)[known].mean(),
        "rmse": math.sqrt(np.square(predicted - truth)[known].mean()),
    }
    for k, name in enumerate(NAMES):
        pair = truth[known[:, k], k], predicted[known[:, k], k]
        expected[f"mae/{name}"] = mean_absolute_error(*pair)
        expected[f"r2/{name}"] = r2_score(*pair)
    expected["r2"] = (expected["r2/heat"] + expected["r2/load"]) / 2
    for found in (result.metrics, flaxdl.evaluate(folder / "run", config=config)):
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert result.metrics["r2"] > 0.3
    lines = records(folder / "run" / "metrics.jsonl")
    assert {*lines[0]} >= {"loss", "mae", "rmse"}
    assert "r2" not in lines[0]  # of training
    best = max((x for x in lines if x["split"] == "validation"), key=lambda x: x["r2"])
    assert int(result.run.state.step) == best["step"]


@pytest.mark.parametrize(
    ("label", "count", "names"),
    [
        (LABEL[:, 0], 1, ("target",)),
        (LABEL[:, :1], 1, ("target",)),
        (LABEL, 2, ("target_0", "target_1")),
    ],
    ids=["N", "N1", "N2"],
)
def test_labels_without_names(label, count, names, tmp_path):
    config = config_of(data=arrays(label), epochs=1, evaluate_every=1)
    result = train(config, tmp_path)
    assert result.model.num_classes == count
    assert result.run.config.task.target_names == names
    assert {"mae", "rmse", "r2", "loss"} == {*result.metrics} - {"step", "split"}
    assert flaxdl.restore(tmp_path, config).model.num_classes == count


def test_predictions_in_own_units(run, tmp_path, capsys):
    folder, config, result = run
    paths = [str(folder / "100.npy"), str(folder / "101.npy")]
    expected = result.run.config.task.in_own_units(outputs_of(result, SERIES[100:102]))
    found = flaxdl.predict(folder / "run", paths, config=config)
    assert [one.item for one in found] == paths
    assert [list(one.values) for one in found] == [["heat", "load"]] * 2
    values = np.array([list(one.values.values()) for one in found])
    np.testing.assert_allclose(values, expected, rtol=1e-5)

    arguments = ["predict", "--workdir", str(folder / "run"), *paths]
    to = tmp_path / "out.csv"
    assert main([*arguments, "--to", str(to)]) == 0
    assert capsys.readouterr().out == f"wrote {to}: 2 predictions\n"
    rows = list(csv.DictReader(to.read_text().splitlines()))
    assert [row["item"] for row in rows] == paths
    assert [float(row["load"]) for row in rows] == pytest.approx(expected[:, 1], rel=1e-5)
    assert [row["error"] for row in rows] == ["", ""]
    assert main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[1])
    assert record == {"item": paths[1], "values": dict(zip(NAMES, values[1], strict=True))}
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert [
        word for word in ("input", "heat", "load", f"{values[0, 1]:,.0f}") if word not in table
    ] == []
    assert main([*arguments, "missing.npy", "--to", str(to)]) == 2
    assert "missing.npy" in to.read_text().splitlines()[3]


def test_a_resumed_run_continues_exactly(run, tmp_path, monkeypatch):
    _, config, whole = run
    with monkeypatch.context() as patch:
        interrupt_at(patch, 17, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "run")
    resumed = train(config, tmp_path / "run")
    assert resumed.metrics == whole.metrics
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, whole.variables)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"selection": Selection()},
            "selection.metric must be .*r2/load.* set --selection.metric mae",
        ),
        (
            {"model": SimpleRNN(hidden_size=4, num_classes=3)},
            "2 targets, but .* --model.num-classes 2",
        ),
        ({"data": arrays(np.arange(120))}, "train_label must be floating-point numbers.* Classif"),
        (
            {"task": Regression(targets=("a", "b"))},
            "task.targets must be the names in the data, he",
        ),
        ({"balanced_sampling": True}, "balanced_sampling needs one integer class number"),
    ],
    ids=["selection", "outputs", "classes", "names", "balanced_sampling"],
)
def test_mistakes(changes, message, tmp_path):
    with pytest.raises(flaxdl.UserError, match=message):
        train(config_of(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_target_cannot_have_the_name_of_another_column(tmp_path, capsys):
    config = config_of(data=arrays(classes=np.array(["error", "load"])), epochs=1, evaluate_every=1)
    train(config, tmp_path / "run")
    np.save(tmp_path / "new.npy", SERIES[0])
    arguments = ["predict", "--workdir", str(tmp_path / "run"), str(tmp_path / "new.npy"), "--to"]
    assert main([*arguments, str(tmp_path / "out.csv")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "columns item and error, and a target of the run has the name error; use --to" in message
    assert main([*arguments, str(tmp_path / "out.jsonl")]) == 0
    assert set(records(tmp_path / "out.jsonl")[0]["values"]) == {"error", "load"}

"""Runs that forecast series: scores of all windows, resuming, continuations, and the report."""

import csv
import json
import math
import signal

import jax
import numpy as np
import pytest
from helpers.small_runs import interrupt_at, train

import flaxdl
from flaxdl import Config
from flaxdl.cli import main
from flaxdl.data import Scaling, SeriesTable
from flaxdl.models import LinearForecaster, RNNForecaster
from flaxdl.report.write import write_report
from flaxdl.runs.config_json import from_json, to_json
from flaxdl.runs.forecasts import forecast_each
from flaxdl.training import AdamW, Forecasting, Interrupted, Selection

STEPS = np.arange(96)
# A season of four months in two series of different units, on a slope and with some noise.
NOISE = np.random.default_rng(0).normal(0, 0.1, (96, 2))
VALUES = np.stack(
    [20 + np.sin(np.pi / 2 * STEPS) + 0.01 * STEPS, 5000 + 300 * np.cos(np.pi / 2 * STEPS)], axis=1
)
VALUES = VALUES + NOISE * [1, 100]


def write(path, values, first=0):
    rows = [
        f"{2000 + (first + n) // 12}-{(first + n) % 12 + 1:02},{a},{b}"
        for n, (a, b) in enumerate(values)
    ]
    path.write_text("\n".join(["month,heat,load", *rows]) + "\n")
    return str(path)


def config_of(path, model=RNNForecaster(horizon=None, hidden_size=6), **changes):  # noqa: B008
    settings = {
        "model": model,
        "data": SeriesTable(
            path, ("heat", "load"), "month", context=8, horizon=6, season=4, test_fraction=0.25
        ),
        "transform": Scaling(),
        "task": Forecasting(),
        "optimizer": AdamW(learning_rate=0.02),
        "batch_size": 16,
        "epochs": 10,
        "evaluate_every": 4,
        "selection": Selection(metric="mae"),
    }
    return Config(**(settings | changes))


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forecasts")
    config = config_of(write(folder / "series.csv", VALUES))
    return folder, config, flaxdl.train(config, folder / "run")


def test_the_config_is_stored_by_public_names(run):
    _, config, result = run
    record = to_json(config)
    assert record["data"]["class"] == "flaxdl.data.SeriesTable"
    assert record["task"]["class"] == "flaxdl.training.Forecasting"
    assert from_json(record) == config
    assert result.model.horizon == 6  # from the data


def test_scores_are_those_of_all_windows_of_the_test_part(run):
    folder, _, result = run
    test = VALUES[72:]
    errors, naive_errors = [], []
    scaling = result.run.transform
    for start in range(len(test) - 14 + 1):
        context, truth = test[start : start + 8], test[start + 8 : start + 14]
        outputs = result.model.apply(result.variables, scaling.scaled(context[None]))
        errors.append(scaling.unscaled(outputs[0]) - truth)
        naive_errors.append(context[4 + np.arange(6) % 4] - truth)
    errors, naive_errors = np.array(errors), np.array(naive_errors)
    train_part = VALUES[: 96 - 24 - 14]
    in_sample = np.abs(train_part[4:] - train_part[:-4]).mean(0)
    expected = {
        "mae": np.abs(errors).mean(),
        "rmse": math.sqrt(np.square(errors).mean()),
        "mase": (np.abs(errors) / in_sample).mean(),
        "naive_mae": np.abs(naive_errors).mean(),
        "relative_mae": np.abs(errors).mean() / np.abs(naive_errors).mean(),
    }
    for found in (result.metrics, flaxdl.evaluate(folder / "run")):
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    lines = records(folder / "run" / "metrics.jsonl")
    assert {"loss", "mae", "rmse", "mase", "relative_mae"} <= set(lines[0])
    assert "mean_squared_error" not in lines[0]
    trained = [line["loss"] for line in lines if line["split"] == "train"]
    assert trained[-1] < 0.7 * trained[0]


def test_a_forecast_continues_the_table(run, tmp_path, capsys):
    folder, _, result = run
    path = write(tmp_path / "new.csv", VALUES[:20])
    (forecast,) = flaxdl.predict(folder / "run", [path])
    scaling = result.run.transform
    outputs = result.model.apply(result.variables, scaling.scaled(VALUES[None, 12:20]))
    expected = scaling.unscaled(outputs)[0]
    months = ["2001-09", "2001-10", "2001-11", "2001-12", "2002-01", "2002-02"]
    assert forecast.times == months
    np.testing.assert_allclose(np.stack(list(forecast.values.values()), 1), expected, rtol=1e-5)

    to = tmp_path / "out.csv"
    arguments = ["predict", "--workdir", str(folder / "run"), path]
    assert main([*arguments, "--to", str(to)]) == 0
    assert capsys.readouterr().out == f"wrote {to}\n"
    rows = list(csv.reader(to.read_text().splitlines()))
    assert rows[0] == ["month", "heat", "load"]
    assert [row[0] for row in rows[1:]] == months
    np.testing.assert_allclose(np.array(rows[1:])[:, 1:].astype(float), expected, rtol=1e-5)
    assert main(arguments) == 0
    assert "2002-02" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["times"] == months


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (VALUES[:7], "has 7 steps, but a forecast needs the last 8"),
        (
            np.where(STEPS[:20, None] == 15, "", VALUES[:20]),
            "lacks values in 1 of the last 8 steps",
        ),
        (np.where(STEPS[:20, None] == 15, "x", VALUES[:20]), "has 'x' in column heat"),
    ],
)
def test_a_table_without_a_forecast_is_named(run, tmp_path, capsys, rows, message):
    folder, _, _ = run
    path, to = write(tmp_path / "bad.csv", rows), tmp_path / "out.csv"
    assert main(["predict", "--workdir", str(folder / "run"), path, "--to", str(to)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not to.exists()


def test_a_csv_continues_one_table(run, tmp_path, capsys):
    folder, _, _ = run
    paths = [write(tmp_path / f"{n}.csv", VALUES[n : n + 8], first=n) for n in range(2)]
    arguments = ["predict", "--workdir", str(folder / "run"), *paths, "--to"]
    assert main([*arguments, str(tmp_path / "out.csv")]) == 2
    assert "a .csv file continues one table, got 2" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "out.jsonl")]) == 0
    found = records(tmp_path / "out.jsonl")
    assert [record["times"][0] for record in found] == ["2000-09", "2000-10"]


def test_the_report_draws_forecasts_over_the_truth(run):
    folder, _, result = run
    html = (folder / "run" / "report.html").read_text()
    assert html.count('aria-label="heat, window') == html.count('aria-label="load, window') == 3
    assert "11 windows of the test split" in html
    assert 'aria-label="Relative MAE over steps.' in html
    with np.load(folder / "run" / "predictions.npz") as stored:
        errors = stored["errors"]
    assert errors[0, 0].mean() == pytest.approx(result.metrics["mae"], rel=1e-4)
    assert np.square(errors[0, 1]).mean() ** 0.5 == pytest.approx(result.metrics["rmse"], rel=1e-4)
    assert errors[0, 2].mean() == pytest.approx(result.metrics["mase"], rel=1e-4)
    assert errors[1, 0].mean() == pytest.approx(result.metrics["naive_mae"], rel=1e-4)
    assert write_report([folder / "run"]).read_text().count("window 1 of 11") >= 1


def test_an_interrupted_run_ends_with_the_same_weights(run, tmp_path, monkeypatch):
    _, config, result = run
    with monkeypatch.context() as patch:
        interrupt_at(patch, 13, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "run")
    resumed = train(config, tmp_path / "run")
    assert resumed.metrics == result.metrics


def test_dates_without_continuation_end_no_other_forecast(run, tmp_path):
    late = write(tmp_path / "late.csv", VALUES[:20], first=12 * 8000 - 20)
    skipped, forecast = forecast_each(run[2].run, [late, write(tmp_path / "b.csv", VALUES[:20])])
    assert skipped.item == late
    assert "at most in the year 9999, but 6 steps after 9999-12" in skipped.error
    assert forecast.times[0] == "2001-09"


def test_a_run_is_exported_as_a_program_of_standardized_values(run, tmp_path):
    folder, _, result = run
    for name in ("model.stablehlo", "model.safetensors"):
        flaxdl.export(folder / "run", tmp_path / name)
    program = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    stored = json.loads((folder / "run" / "scaling.json").read_text())
    contexts = np.stack([VALUES[:8], VALUES[40:48], VALUES[88:]])
    inputs = ((contexts - stored["mean"]) / stored["std"]).astype(np.float32)
    expected = result.model.apply(result.variables, inputs)
    np.testing.assert_allclose(program.call({"inputs": inputs}), expected, rtol=1e-4, atol=1e-5)


def test_hidden_states_over_the_end_of_a_table_are_drawn(run, tmp_path):
    folder, config, _ = run
    figure = flaxdl.visualize(folder / "run", config.data.path, what="hidden-state")
    assert len(figure.axes[0].images[0].get_array().T) == 8
    with pytest.raises(flaxdl.UserError, match="saliency explains the class of an input"):
        flaxdl.visualize(folder / "run", config.data.path, what="saliency")


def test_setup_names_what_does_not_fit(run, tmp_path):
    _, config, _ = run
    path = config.data.path
    for changes, message in (
        ({"model": LinearForecaster(horizon=3)}, r"forecasts \[S, C\] = \[3, 2\], .* are \[6, 2\]"),
        ({"selection": Selection(metric="mean_squared_error")}, "must be a metric of validation"),
        (
            {"transform": flaxdl.data.Transform(), "model": LinearForecaster(horizon=6)},
            "scale is missing; use",
        ),
    ):
        with pytest.raises(flaxdl.UserError, match=message):
            train(config_of(path, **changes), tmp_path / "bad")

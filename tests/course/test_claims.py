"""Each experiment: its rule on both sides, its recorded results, its page."""

import copy
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxdl.cli import main
from flaxdl.course import EXPERIMENTS, order_in_sequences, pooling_sizes, record, rnn_gradients
from flaxdl.course.experiment import load_experiment

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "flaxdl" / "course" / "results"


@pytest.mark.quick
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_record_is_that_of_the_rule(name):
    recorded = record.read(name)
    experiment = load_experiment(name)
    assert recorded.claim == experiment.CLAIM
    assert recorded.seeds == tuple(range(experiment.SEEDS))
    assert not recorded.quick
    assert recorded.seconds <= 600
    assert recorded.verdict == experiment.verdict(recorded.results)
    assert (RECORDS / f"{name}.svg").read_text().count("</svg>") == 1
    page = (ROOT / "docs" / "course" / f"{name}.md").read_text("utf-8")
    assert f"```{{claim}} {name}\n" in page
    assert "## Try it yourself" in page


def test_there_are_no_other_records_or_pages():
    assert {path.stem for path in RECORDS.iterdir()} == set(EXPERIMENTS)
    pages = {path.stem for path in (ROOT / "docs" / "course").glob("*.md")}
    assert pages == {"index", *EXPERIMENTS}


@pytest.mark.parametrize("name", ["pooling_sizes", "rnn_formula"])
def test_exact_claims_are_measured(name):
    experiment = load_experiment(name)
    results = json.loads(json.dumps(experiment.measure(range(experiment.SEEDS), quick=False)))
    assert experiment.verdict(results).outcome == "exact"


def test_the_formula_of_an_rnn_without_its_second_bias_is_not_exact():
    experiment = load_experiment("rnn_formula")
    results = copy.deepcopy(record.read("rnn_formula").results)
    results["differences"][0][3] = 1e-11
    assert experiment.verdict(results).outcome == "does not hold here"


@pytest.mark.parametrize(("size", "matters"), [("16", False), ("17", True)])
def test_pooling_is_not_exact_if_other_rows_are_lost(size, matters):
    results = copy.deepcopy(record.read("pooling_sizes").results)
    results["last_row_matters"][size] = matters
    assert pooling_sizes.verdict(results).outcome == "does not hold here"


def test_gates_alone_halve_the_gradient_and_a_sum_keeps_it():
    with jax.enable_x64(True):
        halved = np.asarray(rnn_gradients.gradient_by_lag("LSTM, gates alone", 0))
        kept = np.asarray(rnn_gradients.gradient_by_lag("sum", 0))
    np.testing.assert_allclose(kept, kept[0], rtol=1e-12)
    lags = np.array(rnn_gradients.LAGS)
    rates = np.log2(halved[0] / halved[1:]) / (lags[1:] - 1)
    np.testing.assert_allclose(rates[3:], 1, atol=0.1)  # over at least 19 steps


def gradients(**fractions):
    """Results whose gradients at lag 40 are these fractions of those at lag 1, in five seeds."""
    lags = list(rnn_gradients.LAGS)
    arms = dict.fromkeys(rnn_gradients.ARMS, 1e-12) | {"sum": 1.0} | fractions
    norms = {arm: [[f if lag == 40 else 1.0 for lag in lags]] * 5 for arm, f in arms.items()}
    return {"lags": lags, "norms": norms}


@pytest.mark.parametrize(
    ("fractions", "outcome"),
    [
        ({"LSTM": 0.01}, "holds"),
        ({"LSTM": 0.009, "LSTM, chrono": 0.5}, "holds in part"),
        ({"LSTM, forget bias 1": 0.02}, "holds in part"),
        ({}, "does not hold here"),
        ({"LSTM": 0.5, "RNN": 2e-6}, "does not hold here"),  # nothing vanishes
        ({"LSTM": 0.5, "sum": 1e-3}, "does not hold here"),  # the control vanishes
    ],
)
def test_verdict_on_gradients(fractions, outcome):
    assert rnn_gradients.verdict(gradients(**fractions)).outcome == outcome


@pytest.mark.parametrize(
    ("rnn", "control", "outcome"),
    [
        (0.71, 1.0, "holds"),
        (0.69, 1.0, "does not hold here"),
        (1.0, 0.71, "does not hold here"),  # the bag fails where order does not matter
    ],
)
def test_verdict_on_order(rnn, control, outcome):
    accuracy = {
        "A before B?": {"bag of letters": [0.5] * 5, "RNN": [rnn] * 5},
        "does C occur?": {"bag of letters": [control] * 5, "RNN": [1.0] * 5},
    }
    assert order_in_sequences.verdict({"accuracy": accuracy}).outcome == outcome


@pytest.mark.parametrize("question", ["A before B?", "does C occur?"])
def test_labels_of_sequences(question):
    letters, label = order_in_sequences.make_sequences(jax.random.key(0), 500, question)
    assert 0.4 < label.mean() < 0.6
    for row, expected in zip(np.asarray(letters).tolist(), np.asarray(label), strict=True):
        if question == "does C occur?":
            assert (order_in_sequences.C in row) == expected
        else:
            assert (row.count(0), row.count(1)) == (1, 1)
            assert (row.index(0) < row.index(1)) == expected


def test_a_command_measures_a_claim(tmp_path, capsys):
    assert main(["course", "pooling_sizes", "--to", str(tmp_path / "course")]) == 0
    printed = capsys.readouterr().out
    assert "pooling_sizes: Max pooling with windows of 2 x 2" in printed
    assert "exact (" in printed
    recorded = record.read("pooling_sizes", tmp_path / "course")
    assert recorded.results == record.read("pooling_sizes").results
    assert (tmp_path / "course" / "pooling_sizes.svg").is_file()


def test_a_command_lists_the_claims(capsys):
    assert main(["course"]) == 0
    printed = capsys.readouterr().out
    for name in EXPERIMENTS:
        assert name in printed
        assert record.read(name).verdict.outcome in printed


def test_all_claims_run_once(tmp_path, monkeypatch, capsys):
    runs = []

    def run(name, seeds, *, quick):
        runs.append((name, seeds, quick))
        return record.read(name)

    monkeypatch.setattr("flaxdl.course.record.run", run)
    arguments = ["course", "--all", "--seeds", "5", "6", "--to", str(tmp_path)]
    assert main(arguments) == 0
    assert runs == [(name, (5, 6), False) for name in EXPERIMENTS]
    (tmp_path / "rnn_formula.json").unlink()
    reduced = dataclasses.replace(record.read("pooling_sizes"), quick=True)
    (tmp_path / "pooling_sizes.json").unlink()
    record.write("pooling_sizes", reduced, tmp_path)
    assert main(arguments) == 0
    again = sorted(name for name, *_ in runs[len(EXPERIMENTS) :])
    assert again == ["pooling_sizes", "rnn_formula"]
    assert "rnn_gradients: holds in part (measured on 2" in capsys.readouterr().out


def refuse(*_, **__):
    pytest.fail("measured although the result cannot be written")


def test_a_first_impression_does_not_replace_a_whole_record(tmp_path, monkeypatch, capsys):
    whole = record.read("pooling_sizes")
    record.write("pooling_sizes", whole, tmp_path)
    monkeypatch.setattr(pooling_sizes, "measure", refuse)
    assert main(["course", "pooling_sizes", "--quick", "--to", str(tmp_path)]) == 2
    message = "results of the whole experiment, which --quick does not"
    assert message in " ".join(capsys.readouterr().err.split())
    assert record.read("pooling_sizes", tmp_path) == whole


def test_a_folder_that_cannot_be_created_is_named_before_measuring(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(pooling_sizes, "measure", refuse)
    assert main(["course", "pooling_sizes", "--to", str(tmp_path / "file" / "course")]) == 2
    assert "cannot be written: Not a directory" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnn"], "there is no experiment 'rnn'"),
        (["rnn_gradients", "--seeds", "0", "1"], "at least 5 different integers of at least 0"),
        (["rnn_formula", "--seeds", "0", "0", "1", "2", "3"], "got 0 0 1 2 3"),
        (["rnn_formula", "--seeds", "-1", "0", "1", "2", "3"], "got -1 0 1 2 3"),
        (["pooling_sizes", "--seeds", "100"], "without 100 and 101"),
        (["rnn_formula", "--all"], "--all runs every experiment; omit the name 'rnn_formula'"),
    ],
)
def test_what_cannot_be_run_is_named(arguments, message, capsys):
    assert main(["course", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_broken_record_is_named(tmp_path, capsys):
    (tmp_path / f"{EXPERIMENTS[0]}.json").write_text("{}")
    assert main(["course", "--all", "--to", str(tmp_path)]) == 2
    message = f"{EXPERIMENTS[0]}.json is not a record of an experiment"
    assert message in capsys.readouterr().err

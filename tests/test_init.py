"""Runs that start from other weights, freeze a part, and learn from a part of the data."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
from helpers.sampling import sampled
from helpers.small_runs import small_config, train
from safetensors.numpy import save_file

import flaxdl
from flaxdl import Init
from flaxdl.data import Arrays, Transform
from flaxdl.exporters.hugging_face import export_hugging_face
from flaxdl.models import Bert, BertForPreTraining, BertForSequenceClassification
from flaxdl.runs import initial_weights
from flaxdl.runs.initial_weights import initial_state
from flaxdl.runs.restored import restore
from flaxdl.runs.setup import set_up
from flaxdl.training import Classification, Interrupted, Selection
from flaxdl.training.distributed.placement import create_on
from flaxdl.training.writers.console import ConsoleWriter
from flaxdl.weights import export_weights, state_dict


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run whose weights others start from."""
    workdir = tmp_path_factory.mktemp("base")
    return workdir, train(small_config(epochs=1.25), workdir)


def same_as(ours, theirs):
    return {key: np.array_equal(ours[key], theirs[key]) for key in theirs}


@pytest.mark.parametrize("as_file", [False, True])
def test_a_run_starts_from_another_run_or_a_file(base, tmp_path, capsys, as_file):
    workdir, result = base
    weights = state_dict(jax.device_get(result.variables))
    source = workdir
    if as_file:
        source = tmp_path / "weights.safetensors"
        save_file({name: np.ascontiguousarray(x) for name, x in weights.items()}, source)
    config = small_config(
        init=Init(weights=str(source), omit=("classifier.4.*",)),
        freeze=("features.*", "classifier.1.*"),
        epochs=1.25,
    )
    result = train(config, tmp_path / "run")
    same = same_as(state_dict(jax.device_get(result.variables)), weights)
    assert same == {key: not key.startswith("classifier.4.") for key in same}
    assert set(same.values()) == {True, False}
    step = "" if as_file else f", step {restore(workdir).state.step}"
    printed = capsys.readouterr().err.splitlines()
    initialized = "; initialized: classifier.4.bias, classifier.4.weight"
    assert f"weights from {source}{step}{initialized}" in printed
    train(config, tmp_path / "run")
    printed = capsys.readouterr().err
    assert "already finished: test (best checkpoint, step " in printed
    assert "weights from" not in printed
    assert "resuming" not in printed


def test_weights_that_do_not_fit_leave_no_workdir(base, tmp_path):
    weights = state_dict(jax.device_get(base[1].variables))
    wrong = tmp_path / "wrong.safetensors"
    save_file(weights | {"classifier.4.weight": np.zeros((6, 128), np.float32)}, wrong)
    for init, message in (
        (Init(weights="nowhere.safetensors"), "nowhere.safetensors"),
        (Init(weights=str(base[0]), omit=("fc9.*",)), "omit: the pattern .fc9"),
        (Init(weights=str(wrong)), "classifier.4.weight"),
    ):
        with pytest.raises(ValueError, match=message):
            train(small_config(init=init), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_weights_in_the_home_folder(base, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(base[0].parent))
    setup = set_up(small_config(init=Init(weights=f"~/{base[0].name}")))
    expected = base[1].variables["params"]
    jax.tree.map(np.testing.assert_array_equal, initial_state(setup).params, expected)
    export_weights(base[1].variables, "~/weights.safetensors")
    setup = set_up(small_config(init=Init(weights="~/weights.safetensors")))
    jax.tree.map(np.testing.assert_array_equal, initial_state(setup).params, expected)


BERT = {
    "vocab_size": 15,
    "hidden_size": 8,
    "num_layers": 1,
    "num_heads": 2,
    "feed_forward_size": 12,
    "max_length": 8,
}


def test_a_bert_is_fine_tuned_from_any_kind_of_checkpoint(tmp_path, monkeypatch):
    tokens = np.ones((8, 4), np.int32)
    config = small_config(
        model=BertForSequenceClassification(num_classes=2, **BERT),
        data=Arrays.from_memory(train_inputs=tokens, train_label=np.arange(8) % 2),
        transform=Transform(),
        init=Init(weights="nowhere", omit=("classifier.*",)),
        batch_size=4,
    )
    setup = set_up(config)
    state = create_on(setup.placement, setup.create_state)
    monkeypatch.setattr(initial_weights, "create_on", lambda *_: state)  # compiled once
    initial = state_dict({"params": state.params})
    rng = np.random.default_rng(0)
    fine_tuned = BertForSequenceClassification(num_classes=3, **BERT)
    for model in (BertForPreTraining(**BERT), Bert(**BERT), fine_tuned):
        shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
        variables = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), shapes)
        folder = tmp_path / type(model).__name__
        export_hugging_face(model, variables, folder)
        init = Init(weights=str(folder), omit=("classifier.*",))
        changed = dataclasses.replace(setup, config=dataclasses.replace(config, init=init))
        theirs = state_dict(variables)
        for key, value in state_dict({"params": initial_state(changed).params}).items():
            theirs_key = key.removeprefix("bert.") if isinstance(model, Bert) else key
            expected = initial[key] if key.startswith("classifier.") else theirs[theirs_key]
            np.testing.assert_array_equal(value, expected)


def frozen_at_first(**changes):
    return small_config(freeze=("features.*",), freeze_epochs=2.0, **changes)


def test_a_frozen_part_is_unfrozen_after_its_epochs(tmp_path):
    early = train(small_config(freeze=("features.*",), epochs=2.0), tmp_path / "early")
    result = train(frozen_at_first(), tmp_path / "run")
    start = restore(tmp_path / "early").steps.initial_state(restore(tmp_path / "early").examples)
    initial = state_dict(jax.device_get({"params": start.params}))
    frozen = same_as(state_dict(jax.device_get({"params": early.variables["params"]})), initial)
    unfrozen = same_as(state_dict(jax.device_get({"params": result.variables["params"]})), initial)
    assert frozen == {key: key.startswith("features.") for key in frozen}
    assert not any(unfrozen.values())
    assert flaxdl.evaluate(tmp_path / "run", config=frozen_at_first())["loss"] == pytest.approx(
        result.metrics["loss"], 1e-5
    )


@pytest.mark.parametrize(
    "step", sampled([5, 7, 8, 9], (7, 8).__contains__)
)  # the eighth step (from 0) is the first of all
def test_interrupted_around_unfreezing_it_ends_the_same(tmp_path, monkeypatch, step):
    whole = train(frozen_at_first(), tmp_path / "whole")
    progress = ConsoleWriter.progress

    def with_signal(self, at):
        progress(self, at)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleWriter, "progress", with_signal)
        with pytest.raises(Interrupted):
            train(frozen_at_first(), tmp_path / "run")
    resumed = train(frozen_at_first(), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, whole.variables)


def test_a_fraction_of_the_training_split_is_recorded(tmp_path):
    config = small_config(train_fraction=0.5, epochs=1.0, batch_size=8)
    train(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 36 // 8  # half of the 72 that are not held out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_epochs": 1.0}, "freeze_epochs 1.0 needs patterns"),
        ({"freeze": ("conv*",), "freeze_epochs": 9.0}, "between 0 and epochs = 4.5, got 9.0"),
        ({"train_fraction": 0.0}, "train_fraction must be in"),
    ],
)
def test_impossible_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(**changes)


def test_patterns_that_match_nothing_leave_no_workdir(tmp_path):
    with pytest.raises(ValueError, match="freeze: the pattern 'convv.*'"):
        train(small_config(freeze=("convv.*",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_patience_waits_for_unfreezing():
    lines = [{"step": step, "accuracy": 1 / step} for step in (2, 4, 6, 8, 10, 12)]
    patient = Selection(patience=1)
    over = [
        patient.should_stop(lines[:count], Classification(), after=8)
        for count in range(len(lines) + 1)
    ]
    assert over == [False] * 6 + [True]  # worse at step 12 than at 10, the first after unfreezing
    assert patient.should_stop(lines[:2], Classification())
    assert patient.best_step(lines, Classification()) == 2


@pytest.mark.parametrize(
    "changes", [{"freeze": (), "freeze_epochs": None}, {"freeze_epochs": 1.0}, {"batch_size": 40}]
)
def test_a_checkpoint_of_another_structure_is_refused_and_nothing_is_lost(tmp_path, changes):
    config = frozen_at_first(keep_checkpoints=1, selection=Selection(metric="loss"))
    stopped = dataclasses.replace(config, epochs=2.0, freeze_epochs=None)
    train(stopped, tmp_path)  # step 8, with all of it still frozen
    before = (tmp_path / "config.json").read_text()
    changed = dataclasses.replace(config, **changes)
    with pytest.raises(ValueError, match="another model, optimizer, `freeze`"):
        train(changed, tmp_path, accept_changes=True)
    assert (tmp_path / "config.json").read_text() == before
    train(stopped, tmp_path)


@pytest.mark.parametrize("freeze_epochs", [0.1, 4.45])
def test_unfreezing_outside_of_the_run_is_refused(tmp_path, freeze_epochs):
    with pytest.raises(ValueError, match="must end between the first and the last step"):
        train(small_config(freeze=("features.*",), freeze_epochs=freeze_epochs), tmp_path / "run")
    assert not (tmp_path / "run").exists()

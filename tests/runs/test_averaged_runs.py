"""Runs with moving averages: what is evaluated, selected, saved, predicted with and exported."""

import itertools
import json
import signal
from contextlib import closing

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.small_runs import bright_quadrants, interrupt_at, small_config, train
from PIL import Image
from safetensors.numpy import load_file

import flaxdl
from flaxdl import Init
from flaxdl.analysis.memory import memory_of, memory_table
from flaxdl.cli import main
from flaxdl.data import Images
from flaxdl.layers import BatchNorm, Linear
from flaxdl.runs.config_json import from_json, to_json
from flaxdl.runs.initial_weights import initial_state
from flaxdl.runs.restored import read_plan, restore
from flaxdl.runs.setup import set_up
from flaxdl.runs.summary import summarize
from flaxdl.training import EMA, SGD, Interrupted, Selection, SpikeRecovery
from flaxdl.training.checkpoints.manager import Checkpoints
from flaxdl.training.distributed.parallel import compile_train
from flaxdl.training.distributed.placement import create_on
from flaxdl.weights import state_dict

STEPS, EVALUATE_EVERY = 18, 5


class Normalized(nn.Module):
    """BatchNorm between two linear layers."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, images, train=False):
        x = Linear(16, name="fc1")(images.reshape(images.shape[0], -1))
        return Linear(self.num_classes, name="fc2")(nn.relu(BatchNorm(name="bn")(x, train)))


def config(**changes):
    settings = {
        "model": Normalized(),
        "transform": Images(mean=(0.5,), std=(0.25,)),
        "optimizer": SGD(learning_rate=4.0),  # too large, so parameters are better later
        "selection": Selection(metric="loss"),
        "ema": EMA(decay=0.8, every=2, warmup_steps=2),
    }
    return small_config(**(settings | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(config(), workdir)


@pytest.fixture(scope="module")
def states():
    """The states of the same run at its evaluations, from a loop over its steps."""
    return dict(states_of(set_up(config()), range(STEPS)))


def states_of(setup, numbers):
    """Yields step and state at each evaluation of a run on the batches of these numbers."""
    state = create_on(setup.placement, setup.create_state)
    one_step = compile_train(setup.steps, setup.mesh, "jit", state)
    with closing(setup.training_batches()) as batches:
        batches = list(itertools.islice(batches, max(numbers) + 1))
    for step, number in enumerate(numbers, 1):
        state = jax.block_until_ready(one_step(state, batches[number]))
        if step % EVALUATE_EVERY == 0 or step == len(numbers):
            yield step, jax.device_get(state)


def variables(tree):
    return {"params": tree.params, **tree.model_state}


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def metric_lines(workdir, split=None):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name != "examples_per_second"}
        for line in lines
        if split in (None, line["split"])
    ]


def checkpoint(workdir, run_config, step):
    plan = read_plan(workdir, run_config)
    with closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        return checkpoints.restore(plan.shapes(step), step)


def test_validation_selection_and_test_use_the_averages(whole, states):
    workdir, result = whole
    setup = set_up(config())
    batch, losses = validation_batch(setup), {}
    for step, state in states.items():
        logits = [Normalized().apply(variables(x), batch["inputs"]) for x in (state.average, state)]
        losses[step] = [float(setup.config.task.loss(x, batch)) for x in logits]
    lines = metric_lines(workdir, "validation")
    for line in lines:
        assert line["loss"] == pytest.approx(losses[line["step"]][0], rel=1e-4)
    best, best_params = (min(losses, key=lambda step: losses[step][i]) for i in range(2))
    assert best != best_params
    same(result.variables, variables(states[best].average))
    same(restore(workdir, config()).variables, result.variables)
    (test,) = metric_lines(workdir, "test")
    assert test["step"] == best
    measured = flaxdl.evaluate(workdir, config=config())
    assert measured == pytest.approx({name: test[name] for name in measured}, rel=1e-6)


def validation_batch(setup):
    batches = list(setup.evaluation_batches("validation"))
    batch = {name: np.concatenate([x[name] for x in batches]) for name in batches[0]}
    return batch | {"inputs": setup.transform.normalize(batch["inputs"])}


def test_training_and_its_metrics_are_those_without_averages(whole, tmp_path):
    result = train(config(ema=EMA()), tmp_path)
    assert metric_lines(tmp_path, "train") == metric_lines(whole[0], "train")
    same(
        checkpoint(tmp_path, config(ema=EMA()), STEPS),
        checkpoint(whole[0], config(), STEPS).replace(average=None),
    )
    assert metric_lines(tmp_path, "validation") != metric_lines(whole[0], "validation")
    assert result.run.state.average is None


def test_prediction_and_exports_use_the_averages(whole, tmp_path):
    workdir, result = whole
    pixels, _ = bright_quadrants(1, seed=5)
    Image.fromarray(pixels[0, ..., 0]).save(tmp_path / "one.png")
    inputs = result.run.transform.normalize(pixels)
    logits = result.model.apply(result.variables, inputs)
    (answer,) = flaxdl.predict(workdir, [str(tmp_path / "one.png")], config=config())
    expected = sorted(jax.nn.softmax(logits)[0])
    np.testing.assert_allclose(sorted(answer.probabilities.values()), expected, atol=1e-5)
    flaxdl.export(workdir, tmp_path / "model.safetensors", config=config())
    same(load_file(tmp_path / "model.safetensors"), state_dict(result.variables))
    flaxdl.export(workdir, tmp_path / "model.stablehlo", config=config())
    program = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    np.testing.assert_allclose(program.call({"inputs": pixels}), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", [2, 12])  # during the copies, and between two evaluations
def test_an_interrupted_run_ends_bit_for_bit_the_same(whole, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, signal.SIGTERM)
        with pytest.raises(Interrupted, match=f"saved at step {step}"):
            train(config(), tmp_path)
    train(config(), tmp_path)
    same(checkpoint(tmp_path, config(), STEPS), checkpoint(whole[0], config(), STEPS))
    assert metric_lines(tmp_path) == metric_lines(whole[0])


def test_rolling_back_restores_the_averages(tmp_path, monkeypatch):
    spiking = config(spike_recovery=SpikeRecovery(factor=2.0))
    spikes = {9}

    def is_spike(self, lines):
        step = lines[-1]["step"]
        if step not in spikes:
            return False
        spikes.remove(step)
        return True

    monkeypatch.setattr(SpikeRecovery, "is_spike", is_spike)
    train(spiking, tmp_path)
    taken = [*range(5), *range(9, STEPS + 4)]  # back from step 9 to step 5
    expected = dict(states_of(set_up(spiking), taken))[STEPS]
    found = checkpoint(tmp_path, spiking, STEPS)
    assert found.skipped == 4
    same((found.params, found.average), (expected.params, expected.average))


def test_other_averages_are_refused_when_resuming(whole, tmp_path):
    workdir, _ = whole
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    with pytest.raises(flaxdl.UserError, match=r"another config:\s+ema\.decay: 0\.8 → 0\.9"):
        train(config(ema=EMA(decay=0.9, every=2, warmup_steps=2)), workdir)
    message = "from another model, optimizer, `freeze` or `ema` setting"
    with pytest.raises(flaxdl.UserError, match=message):
        train(config(ema=EMA()), workdir, accept_changes=True)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_averages_begin_with_the_loaded_weights(whole, tmp_path):
    workdir, result = whole
    flaxdl.export(workdir, tmp_path / "weights.safetensors", config=config())
    init = Init(weights=str(tmp_path / "weights.safetensors"), omit=("fc2.*",))
    setup = set_up(config(init=init))
    state = initial_state(setup)
    same(variables(state.average), variables(state))
    same(state.average.params["fc1"], result.variables["params"]["fc1"])
    heads = [x["fc2"]["kernel"] for x in (state.params, result.variables["params"])]
    assert not np.array_equal(*heads)
    step = compile_train(setup.steps, setup.mesh, "jit", state)
    with closing(setup.training_batches()) as batches:  # donated, so no two share a buffer
        assert int(step(state, next(batches)).updates) == 1


def test_the_memory_and_the_summary_name_the_averages():
    setup = set_up(config())
    memory, shapes = memory_of(setup), setup.shapes()
    assert memory.average == sum(x.size * 4 for x in jax.tree.leaves(variables(shapes)))
    assert "moving averages" in list(memory_table(setup, memory).columns[0].cells)
    assert "--ema.decay None" in memory_table(setup, memory).caption
    assert "evaluated with EMA (decay 0.8)" in summarize(setup)


def test_a_warmup_that_does_not_end_is_refused():
    with pytest.raises(flaxdl.UserError, match=r"ema\.warmup_steps \+ ema\.every .* 18 steps"):
        set_up(config(ema=EMA(decay=0.9, warmup_steps=20)))


def test_flags_and_config_json(tmp_path, monkeypatch, capsys):
    assert from_json(json.loads(json.dumps(to_json(config().ema)))) == config().ema
    (tmp_path / "quadrants.py").write_text(
        "from helpers.small_runs import small_config\nconfig = small_config()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flaxdl.run.train", lambda config, *_, **__: found.append(config))
    found = []
    command = ["train", "--config", "quadrants.py"]
    assert main([*command, "--ema.decay", "0.99", "--ema.every", "4"]) == 0
    assert found[0].ema == EMA(decay=0.99, every=4)
    for flags, message in (
        (("--ema.decay", "1.5"), "ema.decay must be a number in (0, 1) or None, got 1.5"),
        (("--ema.every", "4"), "ema.every and ema.warmup_steps need ema.decay"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*command, *flags])
        assert stopped.value.code == 2
        assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())

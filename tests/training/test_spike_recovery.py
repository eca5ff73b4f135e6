"""Runs whose loss spikes roll back and skip batches, also if interrupted."""

import itertools
import json
import logging
import signal
from contextlib import closing

import jax
import numpy as np
import pytest
from helpers.small_runs import interrupt_at, small_config, train

from flaxdl.data import Arrays, Transform
from flaxdl.models import SimpleCNN
from flaxdl.runs.setup import set_up
from flaxdl.training import SGD, Classification, Diverged, Interrupted, SpikeRecovery
from flaxdl.training.distributed.parallel import compile_train
from flaxdl.training.distributed.placement import create_on, put_like

EPOCH = 4  # steps


def source(outliers=1):
    """Images of noise, some of them so bright that no training makes their loss small."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((80, 8, 8, 1)).astype(np.float32)
    inputs[:outliers] *= 30_000
    label = rng.integers(0, 4, 80).astype(np.int32)
    return Arrays.from_memory(train_inputs=inputs, train_label=label)


def config(outliers=1, factor=2.0):
    return small_config(
        model=SimpleCNN(num_classes=4),
        data=source(outliers),
        transform=Transform(),
        # Of large outputs the loss is large then, whatever the label.
        task=Classification(label_smoothing=0.1),
        optimizer=SGD(learning_rate=1e-4, clip_norm=1.0),
        log_every=1,
        evaluate_every=3 / EPOCH,
        spike_recovery=SpikeRecovery(factor=factor),
    )


def metric_lines(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "examples_per_second"} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(config(), workdir)


def test_a_spike_is_many_times_the_median_of_the_lines_before():
    recovery = SpikeRecovery(factor=2.0)
    lines = [{"loss": loss} for loss in (9.0, 9.0, 1.0, 1.2, 1.1, None, 1.0)]
    assert not recovery.is_spike(lines[:3])  # too few
    assert not recovery.is_spike(lines[:6])
    assert not recovery.is_spike([*lines, {"loss": 2.3}])  # median 1.15
    assert recovery.is_spike([*lines, {"loss": 2.31}])
    assert not recovery.is_spike([*lines, {"loss": None}])
    old = [{"loss": 9.0}] * 50
    assert recovery.is_spike([*old, *[{"loss": 1.0}] * 10, {"loss": 2.1}])  # only ten count
    assert not SpikeRecovery().is_spike([*lines, {"loss": 1e9}])
    message = "spike_recovery.factor must be greater than 1 or None, got 1"
    with pytest.raises(ValueError, match=message):
        SpikeRecovery(factor=1.0)


def test_the_run_is_that_without_the_batches_of_the_spikes(whole):
    workdir, result = whole
    setup = set_up(config())
    state = create_on(setup.placement, setup.create_state)
    one_step = compile_train(setup.steps, setup.mesh, "jit", state)
    with closing(setup.training_batches()) as batches:
        batches = list(itertools.islice(batches, 40))
    losses, states, number, rollbacks = [], {}, 0, 0
    while len(losses) < 18:
        state = jax.block_until_ready(one_step(state, batches[number]))
        number += 1
        losses.append(state.sums.means()["loss"])
        state = state.replace(sums=state.sums.zeros_like())
        step = len(losses)
        if step > 3 and losses[-1] > 2 * np.median(losses[-11:-1]):
            rollbacks += 1
            start = (step - 1) // 3 * 3
            state, losses = put_like(state, states[start]), losses[:start]
        elif step % 3 == 0:
            states[step] = jax.device_get(state)
    assert rollbacks == 3
    jax.tree.map(np.testing.assert_array_equal, state.params, result.variables["params"])

    lines = metric_lines(workdir)
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    train_lines = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in train_lines] == list(range(1, 19))
    assert [line["loss"] for line in train_lines] == losses
    assert train_lines[-1]["skipped_batches"] == number - 18


@pytest.mark.parametrize("step", [5, 14])
def test_stopped_around_a_spike_it_ends_the_same(whole, tmp_path, monkeypatch, step):
    workdir, result = whole
    for _ in range(2):  # at the same step again, which is a later batch
        with monkeypatch.context() as patch:
            interrupt_at(patch, step, signal.SIGTERM)
            with pytest.raises(Interrupted):
                train(config(), tmp_path)
    ours = train(config(), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, ours.variables, result.variables)
    assert metric_lines(tmp_path) == metric_lines(workdir)


def test_a_run_that_spikes_repeatedly_fails(tmp_path, caplog):
    with pytest.raises(Diverged, match="spiked again .* after 3 rollbacks to"):
        train(config(outliers=40, factor=1.000001), tmp_path)
    told = [record for record in caplog.records if "rolling back to step" in record.message]
    assert len(told) >= 3
    assert {record.levelno for record in told} == {logging.WARNING}

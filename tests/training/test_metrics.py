import json
import math
import os
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import pytest

from flaxdl.errors import SaveError
from flaxdl.training import Classification, LanguageModeling, Selection, SequenceToSequence, Task
from flaxdl.training.metrics import MetricSums
from flaxdl.training.writers.metrics_file import MetricsFile

pytestmark = pytest.mark.quick


def test_means_are_weighted_each_by_its_own_weights_and_add_up_over_batches():
    first = MetricSums.of(
        {
            "loss": (jnp.array([[1.0, 5.0]]), jnp.array([[1.0, 0.0]])),
            "exact_match": (jnp.array([1.0]), jnp.array([1.0])),
        }
    )
    second = MetricSums.of(
        {
            "loss": (jnp.array([[3.0, 2.0]]), jnp.array([[1.0, 1.0]])),
            "exact_match": (jnp.array([jnp.nan]), jnp.array([0.0])),
        }
    )
    assert (first + second).means() == pytest.approx({"loss": 2.0, "exact_match": 1.0})


def test_the_mean_over_nothing_is_not_a_number():
    assert math.isnan(MetricSums.zeros(("loss",)).means()["loss"])


def test_lines_come_back_as_written(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(3, "train", {"loss": 0.5})
    file.append(3, "validation", {"loss": float("nan"), "accuracy": 0.25})
    again = MetricsFile(tmp_path / "metrics.jsonl")
    assert (
        again.lines
        == file.lines
        == [
            {"step": 3, "split": "train", "loss": 0.5},
            {"step": 3, "split": "validation", "loss": None, "accuracy": 0.25},
        ]
    )
    assert again.has(3, "validation")
    assert not again.has(3, "test")
    assert not again.has(4, "train")


def test_a_line_cut_short_by_a_crash_is_measured_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps({"step": 1, "split": "train", "loss": 1.0})
    path.write_text(whole + "\n" + whole[:20])
    file = MetricsFile(path)
    assert len(file.lines) == 1
    file.truncate(1)
    assert path.read_text() == whole + "\n"


def test_a_line_is_written_whole_or_not_at_all(tmp_path, monkeypatch, caplog):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.append(1, "train", {"loss": 0.5})
    before = path.read_text()
    with monkeypatch.context() as patch:
        write = os.write
        patch.setattr(os, "write", lambda file, data: write(file, data[:7]))
        file.append(2, "train", {"loss": 0.4})
        assert path.read_text() == before
        with pytest.raises(SaveError, match="metrics.jsonl cannot be written: No space left"):
            file.finish()
    assert "cannot be written: No space left on device; will retry" in caplog.text
    file.append(3, "train", {"loss": 0.3})
    assert [line["step"] for line in MetricsFile(path).lines] == [1, 2, 3]


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"step": 1}',
        '{"step": 1, "split": "train", "accuracy": 0.5}',
        '{"step": 1, "split": "dev", "loss": 0.5}',
        '{"step": 1, "split": ["train"], "loss": 0.5}',
        '{"step": true, "split": "train"}',
        '{"step": 1e3, "split": "test"}',
        '{"step": 1, "split": "train", "loss": "1"}',
        "[" * 100_000,
        "\0" * 20,
        "\xff",
    ],
)
def test_what_is_no_line_of_metrics_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    sound = '{"step": 1, "split": "train", "loss": null}'
    path.write_text(sound + "\n" + line + "\n", encoding="latin-1")
    with pytest.raises(ValueError, match="metrics.jsonl, line 2: expected a line such as"):
        MetricsFile(path)


def test_truncating_drops_later_steps_from_the_file(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        file.append(step, "train", {"loss": float(step)})
    file.truncate(2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]


def test_truncating_writes_through_no_link(tmp_path):
    (tmp_path / "precious").write_text("mine")
    for name in ("metrics.tmp", "metrics.jsonl.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(1, "train", {"loss": 1.0})
    file.truncate(0)
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def make_folder(path):
    path.mkdir()


def make_endless(path):
    path.symlink_to("/dev/zero")


def make_dangling(path):
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("make", [make_folder, os.mkfifo, make_endless, make_dangling])
def test_what_is_no_file_is_not_read(tmp_path, make):
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="metrics.jsonl must be a regular file"):
        MetricsFile(tmp_path / "metrics.jsonl")


def test_what_is_written_is_synced_before_a_checkpoint_counts_on_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    file = MetricsFile(tmp_path / "metrics.jsonl")
    assert (file.sync(), synced) == (None, [])
    file.append(10, "train", {"loss": 1.0})
    assert file.sync() == 10
    assert synced == [(tmp_path / "metrics.jsonl").stat().st_size]
    MetricsFile(tmp_path / "metrics.jsonl", writes=False).sync()
    assert len(synced) == 1


def validation(*accuracies):
    return [
        {"step": 10 * (i + 1), "split": "validation", "accuracy": accuracy, "loss": accuracy}
        for i, accuracy in enumerate(accuracies)
    ]


def best_step(selection, *accuracies):
    return selection.best_step(validation(*accuracies), Classification())


def should_stop(patience, *accuracies):
    return Selection(patience=patience).should_stop(validation(*accuracies), Classification())


def test_the_best_is_the_highest_and_the_latest_of_equals():
    assert best_step(Selection(), 0.5, 0.9, 0.7, 0.9, 0.8) == 40
    assert best_step(Selection(metric="loss"), 0.5, 0.2, 0.7) == 20
    assert best_step(Selection(), None, 0.1, None) == 20
    assert best_step(Selection()) is None


def test_patience_counts_evaluations_since_the_best():
    assert not should_stop(2, 0.5, 0.9, 0.7)
    assert should_stop(2, 0.5, 0.9, 0.7, 0.8)
    assert not should_stop(None, 0.9, *[0.1] * 50)
    assert not should_stop(1)


def test_an_unknown_metric_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"of validation \(accuracy, loss\), got 'acuracy'"):
        best_step(Selection(metric="acuracy"), 0.1)


@pytest.mark.parametrize(
    ("task", "metric", "best"),
    [
        (Classification(), "loss", 10),
        (Classification(), "accuracy", 40),
        (Classification(), "top_5_accuracy", 40),
        (LanguageModeling(), "bits_per_token", 10),
        (LanguageModeling(), "accuracy", 40),
        (SequenceToSequence(), "exact_match", 40),
    ],
)
def test_each_metric_is_compared_in_its_direction(task, metric, best):
    lines = [
        {"step": step, "split": "validation", metric: value}
        for step, value in ((10, 0.5), (20, 0.7), (30, 0.8), (40, 0.9))
    ]
    assert Selection(metric=metric).best_step(lines, task) == best
    assert Selection(metric=metric, patience=3).should_stop(lines, task) == (best == 10)


def test_every_metric_of_a_task_has_a_direction():
    logits, label = jnp.zeros((2, 3, 12)), jnp.zeros((2, 3), jnp.int32)
    sequences = {"inputs": label, "label": label, "target_lengths": jnp.full(2, 3)}
    examples = {"label": label[:, 0]}
    for task, outputs, batch in (
        (Classification(), logits[:, 0], examples),
        (LanguageModeling(), logits, sequences),
        (SequenceToSequence(), logits, sequences),
    ):
        metrics = task.metrics(outputs, {**batch, "weight": jnp.ones(2)})
        assert {task.direction(name) for name in metrics} <= {"higher", "lower"}


def test_a_metric_without_a_direction_is_refused():
    lines = [{"step": 10, "split": "validation", "loss": 1.0, "regret": 0.1}]
    message = '\'regret\', but Task.better does not map .* add it, for example .* "regret": "lower'
    with pytest.raises(ValueError, match=message):
        Selection(metric="regret").best_step(lines, Task())


def test_a_direction_is_higher_or_lower():
    @dataclass(frozen=True, kw_only=True)
    class Mistaken(Task):
        better: ClassVar = {"accuracy": "max"}

    with pytest.raises(ValueError, match="Mistaken.better does not map .* got {'accuracy': 'max'}"):
        Selection().check(["accuracy"], Mistaken())


def test_lost_lines_are_noticed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    assert file.last_written is None
    assert file.missing(None) is None
    for step in (10, 20, 30):
        file.append(step, "train", {"loss": 1.0})
    assert file.last_written == 30
    assert file.missing(20) is None
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(b"\n") + 1])
    message = "metrics.jsonl ends at step 10, but lines up to step 30 were written"
    assert message in MetricsFile(path).missing(30)
    path.unlink()
    assert "ends at step 0" in MetricsFile(path).missing(30)


def test_a_line_that_cannot_be_written_yet_does_not_count_as_written(tmp_path, caplog):
    file = MetricsFile(tmp_path / "no folder" / "metrics.jsonl")
    file.append(10, "train", {"loss": 1.0})
    assert file.last_written is None

"""Metrics as events, read again by TensorBoard itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flaxdl.training.writers.tensorboard import TensorBoardWriter


def scalars(folder):
    """What TensorBoard shows of a folder: steps and values by name."""
    shown = EventAccumulator(str(folder)).Reload()
    return {
        name: [(event.step, event.value) for event in shown.Scalars(name)]
        for name in shown.Tags()["scalars"]
    }


def line(step, split="train", **values):
    return {"step": step, "split": split, **values}


def test_every_number_of_a_line_is_a_scalar_of_its_split(tmp_path):
    writer = TensorBoardWriter(tmp_path, step=0)
    writer.line(line(3, loss=0.5, accuracy=0.25))
    writer.line(line(6, loss=0.125, accuracy=None))
    # What was written is there to be looked at before the run has ended.
    assert scalars(tmp_path)["train/loss"] == [(3, 0.5), (6, 0.125)]
    writer.line(line(6, "validation", loss=2.0))
    writer.close()
    assert scalars(tmp_path) == {
        "train/loss": [(3, 0.5), (6, 0.125)],
        "train/accuracy": [(3, 0.25)],
        "validation/loss": [(6, 2.0)],
    }


def test_what_was_computed_again_is_shown_once(tmp_path):
    interrupted = TensorBoardWriter(tmp_path, step=0)
    for step in (3, 6, 9):
        interrupted.line(line(step, loss=1.0))
    interrupted.close()
    goes_on = TensorBoardWriter(tmp_path, step=6)
    goes_on.line(line(9, loss=0.5))
    goes_on.close()
    assert scalars(tmp_path) == {"train/loss": [(3, 1.0), (6, 1.0), (9, 0.5)]}


@pytest.mark.parametrize("moment", ["opening", "writing"])
def test_where_nothing_can_be_written_one_warning_says_so(tmp_path, moment, caplog):
    folder = tmp_path / "events"
    if moment == "opening":
        folder.write_text("a file where the folder should be")
        writer = TensorBoardWriter(folder, step=0)
    else:
        writer = TensorBoardWriter(folder, step=0)
        with open("/dev/full", "wb") as full:
            os.dup2(full.fileno(), writer._records._writer.fileno())
    writer.line(line(3, loss=0.5))
    writer.line(line(6, loss=0.5))
    writer.close()
    assert [record.message.partition(" (")[0] for record in caplog.records] == [
        f"TensorBoard events cannot be written to {folder}"
    ]


WITHOUT = """
import sys
sys.modules["tensorboard"] = None  # importing it raises an ImportError
import flaxdl
from helpers.small_runs import small_config, train
train(small_config(epochs=1.25), sys.argv[1])
"""


def test_without_tensorboard_a_run_says_what_to_install(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "TensorBoard" in line]
    assert "no TensorBoard events (" in warning
    assert warning.endswith("); to write them, run pip install 'flaxdl[tensorboard]'")
    assert not (tmp_path / "events").exists()
    assert '"split": "test"' in (tmp_path / "metrics.jsonl").read_text()

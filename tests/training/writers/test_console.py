"""What a run says while it trains, on a terminal and elsewhere."""

import io
import re

import pytest
from rich.console import Console

from flaxdl.training.writers import console
from flaxdl.training.writers.console import ConsoleWriter

pytestmark = pytest.mark.quick


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is moved."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def written(clock, terminal, *, start=0, seconds_per_step=0.5, log_every=20, until=100):
    """The output of a run of 1000 steps up to some step, whose compilation takes a minute."""
    output = io.StringIO()
    writer = ConsoleWriter(1000, Console(file=output, **{"width": 100} | terminal))
    for step in range(start, until):
        if step > start and step % log_every == 0:
            writer.line({"step": step, "split": "train", "loss": 1 / step})
        writer.progress(step)
        clock.now += 60 if step == start else seconds_per_step
    writer.line({"step": until, "split": "validation", "loss": 0.25, "accuracy": 0.5})
    writer.close()
    return output.getvalue()


def test_the_duration_is_told_once_from_steps_that_were_not_compiled(clock):
    lines = written(clock, {}).splitlines()
    assert lines[0] == "about 8 min to go at this pace"  # 980 steps of half a second
    assert lines[1] == "step   20/1000  train       loss 0.0500"
    assert lines[-1] == "step  100/1000  validation  loss 0.2500  accuracy 0.5000"
    assert len(lines) == 6


def test_a_resumed_run_counts_from_where_it_went_on(clock):
    assert "about 64 s to go" in written(clock, {}, start=900, until=960, seconds_per_step=0.8)


def test_a_few_steps_are_no_ground_for_an_estimate(clock):
    assert "to go" not in written(clock, {}, log_every=5, until=10)


@pytest.mark.parametrize(
    ("environment", "has_bar", "has_colour"),
    [
        ({"TERM": "xterm-256color"}, True, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_a_terminal_gets_what_it_can_show_and_is_left_clean(
    clock, environment, has_bar, has_colour
):
    text = written(clock, {"force_terminal": True, "_environ": environment})
    assert ("\x1b[?25l" in text) == has_bar  # the cursor is hidden, and comes back
    assert text.count("\x1b[?25h") == text.count("\x1b[?25l")
    assert ("\x1b[38;5;" in text or "\x1b[3" in text.replace("\x1b[3m", "")) == has_colour
    assert ("train       loss 0.0500" in text) == (not has_bar)


def test_on_a_terminal_training_is_printed_with_what_follows(clock):
    text = written(clock, {"force_terminal": True, "_environ": {"TERM": "xterm"}})
    plain = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", text)
    printed = [line for line in re.split("[\r\n]+", plain) if re.match("step +[0-9]+/1000  ", line)]
    assert printed == [
        "step   80/1000  train       loss 0.0125",
        "step  100/1000  validation  loss 0.2500  accuracy 0.5000",
    ]


def test_a_narrow_terminal_shows_steps_and_time_before_all_else(clock):
    width = {"force_terminal": True, "width": 60, "_environ": {"TERM": "xterm"}}
    output = io.StringIO()
    writer = ConsoleWriter(1000, Console(file=output, **width))
    for step in range(3):
        writer.progress(step)
    line = {"step": 500, "split": "train", "loss": 0.25, "accuracy": 0.5, "gradient_norm": 3.0}
    writer.line(line | {"learning_rate": 1e-3, "examples_per_second": 12345.0})
    writer._progress.refresh()
    writer.close()
    last = [line for line in re.split("[\r\n]", output.getvalue()) if "━" in line][-1]
    shown = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", last)
    assert shown.startswith("step 500/1000 ━")
    assert re.search("[0-9-]:[0-9-]{2}", shown)  # what is left
    assert "loss 0.2500" in shown
    assert "compiling" not in shown


def test_the_live_line_leaves_room_for_what_the_terminal_writes(clock):
    narrow = {"force_terminal": True, "width": 40, "_environ": {"TERM": "xterm"}}
    text = written(clock, narrow, until=21)
    lines = [re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", line) for line in re.split("[\r\n]", text)]
    assert max(len(line) for line in lines if "━" in line) == 38


def test_any_name_of_a_metric_is_shown_as_it_is(clock):
    line = {"step": 3, "split": "validation", "loss": 0.5, "f1{macro}": 0.25, "at [red] 5": None}
    expected = "loss 0.5000  f1{macro} 0.2500  at [red] 5 not finite"
    assert console.describe(line) == expected
    for terminal in ({}, {"force_terminal": True, "_environ": {"TERM": "xterm"}}):
        output = io.StringIO()
        writer = ConsoleWriter(9, Console(file=output, width=200, **terminal))
        writer.progress(3)
        writer.line(line | {"split": "train"})
        writer._progress.refresh()
        writer.line(line)
        writer.close()
        plain = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", output.getvalue())
        assert plain.count(expected) >= 2

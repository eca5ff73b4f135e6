"""Console output of a run, on a terminal and when piped."""

import io
import re

import pytest
from rich.console import Console
from rich.text import Text

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


def a_writer(total_steps=1000, **terminal):
    """A writer for a run of epochs of 50 steps, and its output."""
    output = io.StringIO()
    writer = ConsoleWriter(
        Console(file=output, **{"width": 100} | terminal),
        total_steps=total_steps,
        steps_per_epoch=50,
        has_validation=True,
    )
    return writer, output


def written(clock, terminal, *, start=0, seconds_per_step=0.5, log_every=20, until=100):
    """The output of a run of 1000 steps up to some step, whose compilation takes a minute."""
    writer, output = a_writer(**terminal)
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
    assert lines[0] == "about 8 min remaining"  # 980 steps of half a second
    assert lines[1] == "step   20/1000  train       loss 0.0500"
    assert lines[-1] == "step  100/1000  validation  loss 0.2500  accuracy 0.5000"
    assert len(lines) == 6


def test_a_resumed_run_counts_from_where_it_went_on(clock):
    assert "about 64 s remaining" in written(clock, {}, start=900, until=960, seconds_per_step=0.8)


def test_a_few_steps_are_no_ground_for_an_estimate(clock):
    assert "remaining" not in written(clock, {}, log_every=5, until=10)


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


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (30, "step 434/1000 BAR --:--"),
        (40, "step 434/1000 BAR --:-- loss 0.1482"),
        (60, "step 434/1000 43% epoch 8.7/20 BAR --:-- loss 0.1482"),
        (80, "step 434/1000 43% epoch 8.7/20 BAR --:-- loss 0.1482 accuracy 0.9942"),
        (
            110,
            "step 434/1000 43% epoch 8.7/20 BAR --:-- loss 0.1482 accuracy 0.9942 lr 1.81e-03 "
            "2,091 examples/s",
        ),
        (
            150,
            "step 434/1000 43% epoch 8.7/20 BAR --:-- loss 0.1482 accuracy 0.9942 lr 1.81e-03 "
            "norm 0.497 2,091 examples/s",
        ),
    ],
)
def test_the_live_line_fits_the_terminal_and_drops_the_least_important_values(clock, width, shown):
    writer, output = a_writer(force_terminal=True, width=width, _environ={"TERM": "xterm"})
    for step in range(3):
        writer.progress(step)
    line = {"step": 434, "split": "train", "loss": 0.1482, "accuracy": 0.9942}
    line |= {"learning_rate": 1.81e-3, "gradient_norm": 0.497, "examples_per_second": 2091.3}
    writer._progress._remaining = lambda task: Text("--:--")
    writer.line(line)
    writer._progress.refresh()
    writer.close()
    last = [line for line in re.split("[\r\n]", output.getvalue()) if "━" in line][-1]
    plain = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", last).rstrip()
    assert re.sub("[━╸╺]+", "BAR", plain) == shown
    assert len(plain) <= width - 2
    assert 5 <= len(re.findall("[━╸╺]", plain)) <= 20


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
        writer, output = a_writer(9, width=200, **terminal)
        writer.progress(3)
        writer.line(line | {"split": "train"})
        writer._progress.refresh()
        writer.line(line)
        writer.close()
        plain = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", output.getvalue())
        assert plain.count(expected) >= 2


def test_the_test_line_names_its_checkpoint(clock):
    writer, output = a_writer()
    writer.line({"step": 600, "split": "test", "loss": 0.25, "accuracy": 0.5})
    writer.close()
    expected = "test (best checkpoint, step 600)  loss 0.2500  accuracy 0.5000\n"
    assert output.getvalue() == expected
    assert console.describe_test(600, is_best=False) == "test (step 600)"

"""Console output during training: a live progress line on a terminal, plain lines otherwise."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import Progress, Task, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flaxdl.training.writers.writer import Writer

_FORMATS = {
    "top_5_accuracy": "top-5 accuracy {:.4f}",
    "learning_rate": "lr {:.2e}",
    "gradient_norm": "norm {:.3g}",
    "skipped_batches": "{:,} batches skipped",
    "examples_per_second": "{:,.0f} examples/s",
}
_LEAST_IMPORTANT = ("skipped_batches", "learning_rate", "examples_per_second", "gradient_norm")
_BAR = (5, 20)  # narrowest and widest progress bar, in columns
_MIN_MEASURED = 10  # minimum number of measured steps for an estimate of the duration


def describe(line: dict[str, Any]) -> str:
    """Formats the metrics of a line, as in `loss 0.3120  accuracy 0.9200  lr 3.00e-04`."""
    return "  ".join(_descriptions(line).values())


def describe_test(step: int, *, is_best: bool) -> str:
    """Returns the name of the test metrics, such as `test (best checkpoint, step 600)`."""
    return f"test ({'best checkpoint, ' if is_best else ''}step {step})"


def _descriptions(line: dict[str, Any]) -> dict[str, str]:
    return {
        name: _described(name, value)
        for name, value in line.items()
        if name not in ("step", "split")
    }


def _described(name: str, value: float | None) -> str:
    if value is None:
        return f"{name} not finite"
    if name in _FORMATS:
        return _FORMATS[name].format(value)
    return f"{name.replace('_', ' ')} {value:.4f}"


class _LiveLine(Progress):
    """Progress line that fits its terminal: the least important values are omitted.

    Its task has the fields `steps_per_epoch` and `values`, a dict from names to texts.
    """

    _remaining = TimeRemainingColumn(compact=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yields the line, narrower than the terminal by the width of `^C`.

        A terminal echoes `^C` on the line, and a line that wraps cannot be cleared.
        """
        for task in self.tasks:
            remaining = self._remaining(task)
            room = self.console.width - len("^C") - cell_len(str(remaining)) - 1
            start, values = _fitted(_position(task), task.fields["values"], room - _BAR[0])
            bar = max(_BAR[0], min(room - _width([*start, *values]), _BAR[1]))
            line = Table.grid(padding=(0, 1))
            cells = [*start, ProgressBar(task.total, task.completed, bar), remaining, *values]
            for _ in cells:
                line.add_column(no_wrap=True)
            line.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
            yield line


def _position(task: Task) -> list[str]:
    """Returns step, percentage and epoch of a task."""
    step, total = int(task.completed), int(task.total or 1)
    epoch, epochs = (f"{n / task.fields['steps_per_epoch']:.1f}" for n in (step, total))
    return [
        f"step {step}/{total}",
        f"{100 * step // total}%",
        f"epoch {epoch}/{epochs.removesuffix('.0')}",
    ]


def _fitted(
    start: Sequence[str], values: Mapping[str, str], width: int
) -> tuple[list[str], list[str]]:
    """Drops the least important strings until the others fit in `width` columns.

    Args:
        start: step, percentage and epoch, the most important first.
        values: strings by name, the most important first, except those in `_LEAST_IMPORTANT`.
        width: total number of columns, including one space after each string.
    """
    start, values = list(start), dict(values)
    metrics = [name for name in values if name not in _LEAST_IMPORTANT]
    optional = [*metrics[1:], *(name for name in _LEAST_IMPORTANT if name in values)]
    while optional and _width([*start, *values.values()]) > width:
        del values[optional.pop()]
    while len(start) > 1 and _width([*start, *values.values()]) > width:
        start.pop()
    if _width([*start, *values.values()]) > width:
        values.clear()
    return start, list(values.values())


def _width(texts: Iterable[str]) -> int:
    return sum(cell_len(text) + 1 for text in texts)


class ConsoleWriter(Writer):
    """Prints lines of metrics to the console, with a live progress line on a terminal.

    On a terminal, training metrics only update the live line, and the last ones before an
    evaluation are printed with it. The remaining time is estimated once, from the first steps after
    compilation.

    Args:
        console: the console to print to.
        total_steps: length of the run in steps.
        steps_per_epoch: length of an epoch in steps.
        has_validation: True if there is a validation split; the test split is then evaluated with
            the best checkpoint rather than with the last one.
    """

    def __init__(
        self, console: Console, *, total_steps: int, steps_per_epoch: int, has_validation: bool
    ):
        self._console = console
        self._width = len(str(total_steps))
        self._total_steps = total_steps
        self._has_validation = has_validation
        self._first_step: int | None = None
        self._compiled: float | None = None  # time when compilation of that step had finished
        self._has_estimate = False
        self._training: dict[str, Any] | None = None  # the last line, not printed yet
        self._progress = _LiveLine(
            console=console, transient=True, disable=not console.is_interactive
        )
        values = {"": "compiling"}
        self._task = self._progress.add_task(
            "", total=total_steps, steps_per_epoch=steps_per_epoch, values=values
        )
        self._progress.start()

    def progress(self, step: int) -> None:
        """Advances the progress bar."""
        if self._first_step is None:
            self._first_step = step
        elif self._compiled is None:
            self._compiled = time.perf_counter()
            if self._training is None:
                self._progress.update(self._task, values={})
        self._progress.update(self._task, completed=step)

    def line(self, line: dict[str, Any]) -> None:
        """Prints a line of metrics, or shows it in the live line."""
        if line["split"] == "train":
            self._print_estimate(line["step"])
        if line["split"] == "train" and self._console.is_interactive:
            self._progress.update(self._task, completed=line["step"], values=_descriptions(line))
            self._training = line
            return
        # After a rollback the last line may be from steps that are repeated.
        if self._training is not None and self._training["step"] <= line["step"]:
            self._print(self._training)
        self._training = None
        self._print(line)

    def _print(self, line: dict[str, Any]) -> None:
        if line["split"] == "test":
            start = describe_test(line["step"], is_best=self._has_validation)
        else:
            start = f"step {line['step']:>{self._width}}/{self._total_steps}  {line['split']:<10}"
        self._console.print(
            f"{start}  {describe(line)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def _print_estimate(self, step: int) -> None:
        if self._first_step is None or self._compiled is None or self._has_estimate:
            return
        measured, left = step - self._first_step - 1, self._total_steps - step
        if measured < _MIN_MEASURED or left == 0:
            return
        seconds = (time.perf_counter() - self._compiled) / measured * left
        self._console.print(f"about {_duration(seconds)} remaining", highlight=False)
        self._has_estimate = True

    def close(self) -> None:
        """Clears the live line and restores the cursor."""
        self._progress.stop()


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

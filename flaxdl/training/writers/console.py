"""What a person sees while a run trains: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from flaxdl.training.writers.writer import Writer

_FORMATS = {
    "learning_rate": "lr {:.2e}",
    "gradient_norm": "norm {:.3g}",
    "skipped_batches": "{:,} batches left out",
    "examples_per_second": "{:,.0f} examples/s",
}
_FEWEST_MEASURED = 10  # steps, on which an estimate may rest


def describe(line: dict[str, Any]) -> str:
    """The metrics of a line as words: `loss 0.3120  accuracy 0.9200  lr 3.00e-04`."""
    return "  ".join(
        _described(name, value) for name, value in line.items() if name not in ("step", "split")
    )


def _described(name: str, value: float | None) -> str:
    if value is None:
        return f"{name} not finite"
    if name in _FORMATS:
        return _FORMATS[name].format(value)
    return f"{name.replace('_', ' ')} {value:.4f}"


class _Cut(TextColumn):
    """A text that is cut where there is no room for it, so that the other columns have theirs."""

    def __init__(self, text: str):
        super().__init__(text, table_column=Column(), markup=False)

    def render(self, task: Task) -> Text:
        """The text on one line."""
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


class _LiveLine(Progress):
    """A bar that can be cleared even where the terminal has written `^C` behind it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, so narrow that this stays on its line."""
        yield from map(_WithRoom, super().get_renderables())


class _WithRoom:
    def __init__(self, renderable: RenderableType):
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width - len("^C")
        yield from console.render(self._renderable, options.update(width=width))


class ConsoleWriter(Writer):
    """Writes lines of metrics to the console, and a live progress line if it is a terminal.

    There a line of training only moves the live line; the last one before a line of another split
    is printed with it.
    How long the run will take is said once, from the first steps that were measured.
    """

    def __init__(self, total_steps: int, console: Console):
        self._console = console
        self._width = len(str(total_steps))
        self._total_steps = total_steps
        self._first_step: int | None = None
        self._compiled: float | None = None  # when that step had been compiled
        self._is_told = False
        self._training: dict[str, Any] | None = None  # the last line, not printed yet
        self._progress = _LiveLine(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=20),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            _Cut("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_interactive,
        )
        self._task = self._progress.add_task("compiling", total=total_steps)
        self._progress.start()

    def progress(self, step: int) -> None:
        """Moves the bar."""
        if self._first_step is None:
            self._first_step = step
        elif self._compiled is None:
            self._compiled = time.perf_counter()
            if self._training is None:
                self._progress.update(self._task, description="")
        self._progress.update(self._task, completed=step)

    def line(self, line: dict[str, Any]) -> None:
        """Moves the live line, or prints."""
        if line["split"] == "train":
            self._tell_duration(line["step"])
        if line["split"] == "train" and self._console.is_interactive:
            self._progress.update(self._task, completed=line["step"], description=describe(line))
            self._training = line
            return
        # After a rewind the last one may be of steps that are taken again.
        if self._training is not None and self._training["step"] <= line["step"]:
            self._print(self._training)
        self._training = None
        self._print(line)

    def _print(self, line: dict[str, Any]) -> None:
        step = f"step {line['step']:>{self._width}}/{self._total_steps}"
        self._console.print(
            f"{step}  {line['split']:<10}  {describe(line)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def _tell_duration(self, step: int) -> None:
        if self._first_step is None or self._compiled is None or self._is_told:
            return
        measured, left = step - self._first_step - 1, self._total_steps - step
        if measured < _FEWEST_MEASURED or left == 0:
            return
        seconds = (time.perf_counter() - self._compiled) / measured * left
        self._console.print(f"about {_duration(seconds)} to go at this pace", highlight=False)
        self._is_told = True

    def close(self) -> None:
        """Takes the live line away and gives the cursor back."""
        self._progress.stop()


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

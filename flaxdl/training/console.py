"""What a person sees while a run trains: a live line on a terminal, plain lines elsewhere."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_FORMATS = {
    "learning_rate": "lr {:.2e}",
    "gradient_norm": "norm {:.3g}",
    "examples_per_second": "{:,.0f} examples/s",
}


def describe(line: dict[str, Any]) -> str:
    """The metrics of a line as words: `loss 0.3120  accuracy 0.9200  lr 3.00e-04`."""
    return "  ".join(
        f"{name} not finite"
        if value is None
        else _FORMATS.get(name, name.replace("_", " ") + " {:.4f}").format(value)
        for name, value in line.items()
        if name not in ("step", "split")
    )


class ConsoleWriter:
    """Writes lines of metrics to the console, and a live progress line if it is a terminal."""

    def __init__(self, total_steps: int, console: Console):
        self._console = console
        self._width = len(str(total_steps))
        self._total_steps = total_steps
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("compiling", total=total_steps)
        self._progress.start()

    def progress(self, step: int) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=step)

    def line(self, line: dict[str, Any]) -> None:
        """Training lines update the live line on a terminal; all others are printed."""
        if line["split"] == "train" and self._console.is_terminal:
            self._progress.update(self._task, completed=line["step"], description=describe(line))
        else:
            step = f"step {line['step']:>{self._width}}/{self._total_steps}"
            self._console.print(
                f"{step}  {line['split']:<10}  {describe(line)}", highlight=False, soft_wrap=True
            )

    def close(self) -> None:
        """Takes the live line away and gives the cursor back."""
        self._progress.stop()

"""The directive `configs`: a section for each file in configs/, and a table of their results.

Everything comes from the files, which are read and not executed. The docstring of a config says in
one sentence what it does, then has the command, then the result and how long it took.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

CONFIGS = Path(__file__).parents[2] / "configs"
_RESULT = re.compile(r"Test ([\w ]+): ([^(]+?) \((\w+ seeds?)")
_TIME = re.compile(r"(?:in|[.;]) ([^.;,()]+?)(?: from start to end)? on two (?:busy )?CPU cores")
_NOT_MEASURED = re.compile(r"\bnot (been )?measured\b", re.IGNORECASE)
_SECTIONS = (
    "Images",
    "Time series",
    "Sounds",
    "Texts",
    "Language modeling",
    "Text to text",
    "Fine-tuning of pretrained weights",
)


@dataclass(frozen=True)
class ConfigFile:
    """A config file as text."""

    name: str
    section: str
    summary: str
    """The first sentence of the docstring, without its period."""
    command: str
    details: str
    """The docstring after the command."""
    code: str
    """The file without its docstring."""

    @property
    def result(self) -> str:
        """The measured result."""
        text = " ".join(self.details.split())
        found = _RESULT.search(text)
        if found is not None:
            metric, value, seeds = found.groups()
            return f"{value} {metric} ({seeds})" if metric != "loss" else f"{value} ({seeds})"
        if _NOT_MEASURED.search(text) is None:
            raise ValueError(f"configs/{self.name}.py has no result, nor says that there is none")
        return "not measured"

    @property
    def time(self) -> str:
        """The time of a run on two CPU cores."""
        found = _TIME.search(" ".join(self.details.split()))
        if found is None and self.result != "not measured":
            raise ValueError(f"configs/{self.name}.py has a result, but no time")
        if found is None:
            return "–"
        text = found[1][0].lower() + found[1][1:]
        return re.sub(r"(?<=\d) (?=s\b)", "\u00a0", text)  # keeps the unit on the line


def read_config(path: Path) -> ConfigFile:
    """Reads a config file without executing it."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    summary, command, details = (ast.get_docstring(tree) or "").split("\n\n", 2)
    code = "".join(source.splitlines(keepends=True)[tree.body[0].end_lineno or 0 :])
    return ConfigFile(
        name=path.stem,
        section=_section(tree),
        summary=" ".join(summary.split()).rstrip("."),
        command=command,
        details=details,
        code=code.strip(),
    )


def _section(tree: ast.Module) -> str:
    """Returns the section of a config: by the arguments of its `Config(...)`."""
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Config"
    ]
    arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if "init" in arguments:
        return "Fine-tuning of pretrained weights"
    if "LanguageModeling(" in arguments.get("task", ""):
        return "Language modeling"
    if "SequenceToSequence(" in arguments.get("task", ""):
        return "Text to text"
    if "Forecasting(" in arguments.get("task", ""):
        return "Time series"
    if arguments["transform"].startswith(("LogMel(", "Spectrogram(", "Waveforms(")):
        return "Sounds"
    return "Images" if arguments["transform"].startswith("Image") else "Texts"


def _indented(text: str) -> list[str]:
    return [f"   {line}".rstrip() for line in text.splitlines()]


def _table(configs: list[ConfigFile]) -> list[str]:
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: auto", ""]
    rows = [("Config", "What", "Result", "Time")]
    rows += [(f"`{c.name}`_", c.summary, c.result, c.time) for c in configs]
    for first, *others in rows:
        lines += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
    return [*lines, ""]


def _section_lines(config: ConfigFile) -> list[str]:
    return [
        *(config.name, "~" * len(config.name), ""),
        *(f"{config.summary}.", ""),
        *(".. code-block:: console", "", f"   $ {config.command}", ""),
        *(config.details, ""),
        *(".. code-block:: python", f"   :caption: configs/{config.name}.py", ""),
        *(*_indented(config.code), ""),
    ]


class Configs(SphinxDirective):
    """Inserts the table and the sections."""

    def run(self) -> list[nodes.Node]:
        """Reads the files, which the page depends on from then on."""
        paths = sorted(CONFIGS.glob("*.py"))
        for path in paths:
            self.env.note_dependency(path)
        configs = sorted(map(read_config, paths), key=lambda c: _SECTIONS.index(c.section))
        lines = _table(configs)
        for section in _SECTIONS:
            lines += [section, "-" * len(section), ""]
            for config in configs:
                lines += _section_lines(config) if config.section == section else []
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds the directive."""
    app.add_directive("configs", Configs)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

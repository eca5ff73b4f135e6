"""The directives `claims` and `claim`: the course's claims, from flaxdl/course/results.

`claims` inserts the table of all claims with their verdicts; `claim` inserts the verdict, the
figure and the code of one.
"""

from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from flaxdl.course import CHAPTERS
from flaxdl.course.experiment import load_experiment
from flaxdl.course.record import Record, read

COURSE = Path(__file__).parents[2] / "flaxdl" / "course"


def read_record(name: str) -> Record:
    """Reads the record of an experiment."""
    recorded = read(name, COURSE / "results")
    if recorded is None:
        raise ValueError(f"{name} has no recorded results")
    return recorded


class Claims(SphinxDirective):
    """Inserts a table of the claims of each chapter."""

    def run(self) -> list[nodes.Node]:
        """Reads the records, which the page depends on from then on."""
        lines = []
        for chapter, names in CHAPTERS.items():
            lines += [f"| {chapter} | verdict |", "|---|---|"]
            for name in names:
                self.env.note_dependency(COURSE / "results" / f"{name}.json")
                record = read_record(name)
                lines.append(f"| [{record.claim}]({name}.md) | {record.verdict.outcome} |")
            lines.append("")
        return self.parse_text_to_nodes("\n".join(lines))


class Claim(SphinxDirective):
    """Inserts the verdict, the figure and the code of a claim, as Markdown."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Reads the record and the figure, which the page depends on from then on."""
        (name,) = self.arguments
        for suffix in ("json", "svg"):
            self.env.note_dependency(COURSE / "results" / f"{name}.{suffix}")
        record = read_record(name)
        verdict, seeds = record.verdict, record.seeds
        expected = load_experiment(name).EXPECTED
        figure = (COURSE / "results" / f"{name}.svg").read_text(encoding="utf-8")
        shown = "seed 0" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
        lines = [
            *(f"**Claim.** {record.claim}", ""),
            *(f"**Expected.** {expected[0].upper()}{expected[1:]}.", ""),
            *(f"**Verdict: {verdict.outcome}.** {verdict.reason}", ""),
            *("```{raw} html", _figure(figure[figure.index("<svg") :], record.claim), "```", ""),
            f"Measured on {record.date} with {shown} in {record.seconds:.0f} s "
            f"({record.processor}; jax {record.versions['jax']}). To measure it again:",
            *("", "```{code-block} console", f"$ flaxdl course {name}", "```", ""),
            f"```{{literalinclude}} ../../flaxdl/course/{name}.py",
            *(":language: python", f":caption: flaxdl/course/{name}.py", "```"),
        ]
        return self.parse_text_to_nodes("\n".join(lines))


def _figure(svg: str, label: str) -> str:
    return f'<figure class="claim" role="img" aria-label="{escape(label)}">\n{svg}\n</figure>'


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds the directives."""
    app.add_directive("claims", Claims)
    app.add_directive("claim", Claim)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

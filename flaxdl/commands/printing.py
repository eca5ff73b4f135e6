"""Predictions as a person or a program reads them."""

import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from flaxdl.prediction import Prediction, Writing


def print_answers(found: Sequence[Prediction | Writing], *, as_json: bool = False) -> None:
    """Prints texts as they are, and labels as a table; or one JSON object a line."""
    table = Table("input", "label", "probability", "otherwise")
    for one in found:
        if as_json:
            label = {"label": one.label} if isinstance(one, Prediction) else {}
            print(json.dumps(label | dataclasses.asdict(one)))
        elif isinstance(one, Writing):
            print(one.text)
        else:
            (label, probability), *others = one.probabilities.items()
            rest = ", ".join(f"{name} {share:.1%}" for name, share in others[:2])
            table.add_row(one.item, label, f"{probability:.1%}", rest)
    if table.row_count:
        Console().print(table)

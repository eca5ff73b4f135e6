"""Formatting of --help where tyro has no option for it."""

import inspect
from dataclasses import replace
from typing import Any

from tyro import _arguments, _strings

_help_of = _arguments.generate_argument_helptext


def set_up() -> None:
    """Makes --help rewrap the paragraphs of docstrings and show empty tuples as "none"."""
    _strings.remove_single_line_breaks = _paragraphs
    _arguments.generate_argument_helptext = _with_empty_default


def _paragraphs(text: str) -> str:
    """Joins the lines of each paragraph of a docstring, so that --help can rewrap them.

    tyro itself does not join indented lines, such as those of an attribute's docstring.
    """
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _with_empty_default(argument: Any, *others: Any, **keywords: Any) -> Any:
    """Returns the help of an argument; tyro would show an empty tuple as `(default: )`."""
    field = argument.field
    if isinstance(field.default, tuple) and not field.default:
        field.argconf = replace(field.argconf, help_behavior_hint="(default: none)")
    return _help_of(argument, *others, **keywords)

"""Documents dataclasses and Linen modules as they are used: by their own fields.

Autodoc would document the evaluated defaults, the fields that Linen adds to every module, and a
function that is a default as a method. Here types and defaults are those of the source.
"""

import ast
import dataclasses
import functools
import inspect
import sys
import textwrap
from abc import ABC
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import flax.linen as nn
from flax import struct
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

# Linen's fields, and bases that say nothing to a reader.
_FIELDS_OF_LINEN = ("parent", "name")
_PLAIN_BASES = (object, ABC, nn.Module, struct.PyTreeNode)
_COLON = "\ue000"  # stands for a colon while napoleon parses, see `_hide_colons`


@dataclasses.dataclass(frozen=True)
class Attribute:
    """An attribute in the body of a class, as its source has it."""

    type: str | None
    value: str | None
    doc: str


@functools.cache
def attributes(cls: type) -> dict[str, Attribute]:
    """Returns the public attributes that the body of a class declares, by name."""
    if not cls.__module__.startswith("flaxdl"):
        return {}
    source = textwrap.dedent(inspect.getsource(cls))
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statement, following in pairwise([*definition.body, None]):
        match statement:
            case ast.AnnAssign(target=ast.Name(name), annotation=kind, value=value):
                pass
            case ast.Assign(targets=[ast.Name(name)], value=value):
                kind = None
            case _:
                continue
        match following:
            case ast.Expr(ast.Constant(str(doc))):
                pass
            case _:
                doc = ""
        if not name.startswith("_"):
            texts = (_text(source, _annotated(kind)), _text(source, _default(value)))
            found[name] = Attribute(*texts, inspect.cleandoc(doc))
    return found


def _annotated(kind: ast.expr | None) -> ast.expr | None:
    """Returns a type without `ClassVar`."""
    match kind:
        case ast.Subscript(value=ast.Name("ClassVar"), slice=inner):
            return inner
    return kind


def _default(value: ast.expr | None) -> ast.expr | None:
    """Returns a default without `field(...)`."""
    match value:
        case ast.Call(func=ast.Name("field"), keywords=keywords):
            return {keyword.arg: keyword.value for keyword in keywords}.get("default")
    return value


def _text(source: str, node: ast.expr | None) -> str | None:
    if isinstance(node, ast.Constant) and node.value == "Tokenizer":  # a type to import
        return "Tokenizer"
    return None if node is None else " ".join((ast.get_source_segment(source, node) or "").split())


def _inherited(cls: type, name: str) -> Iterator[Attribute]:
    """Yields the declarations of an attribute, nearest first."""
    for base in cls.__mro__:
        if name in attributes(base):
            yield attributes(base)[name]


def signature(cls: Any) -> str:
    """Returns the constructor of a dataclass without types, which its fields show."""
    parts, keywords = [], []
    for field in dataclasses.fields(cls):
        if not field.init or (issubclass(cls, nn.Module) and field.name in _FIELDS_OF_LINEN):
            continue
        value = next(_inherited(cls, field.name)).value
        text = field.name if value is None else f"{field.name}={value}"
        (keywords if field.kw_only else parts).append(text)
    return f"({', '.join([*parts, *(['*'] if keywords else []), *keywords])})"


def _is_documented(cls: type, name: str) -> bool:
    """Returns whether an attribute belongs on the page: it has a docstring, or it is a field."""
    is_field = dataclasses.is_dataclass(cls) and name in {f.name for f in dataclasses.fields(cls)}
    return is_field or bool(attributes(cls)[name].doc)


def _attribute_lines(cls: type) -> Iterator[str]:
    for name, attribute in attributes(cls).items():
        if not _is_documented(cls, name):
            continue
        yield f".. py:attribute:: {name}"
        if attribute.type is not None:
            yield f"   :type: {attribute.type}"
        if attribute.value is not None:
            yield f"   :value: {attribute.value}"
        doc = next((one.doc for one in _inherited(cls, name) if one.doc), "")
        yield from ("", *textwrap.indent(doc, "   ").splitlines(), "")


def _base_lines(cls: type) -> Iterator[str]:
    bases = [base for base in cls.__bases__ if base not in _PLAIN_BASES]
    if bases:
        names = [
            f":py:class:`~{base.__module__}.{base.__qualname__}`".replace("~builtins.", "")
            for base in bases
        ]
        yield from (f"Base class: {', '.join(names)}", "")


def _data_lines(name: str, value: Any) -> list[str]:
    """Returns the docstring of a constant, which is in the module that defines it."""
    package, _, short = name.rpartition(".")
    for module in [m for m in sys.modules if m.startswith(f"{package}.")]:
        if getattr(sys.modules[module], short, None) is value:
            analyzer = ModuleAnalyzer.for_module(module)
            analyzer.analyze()
            if ("", short) in analyzer.attr_docs:
                return list(analyzer.attr_docs["", short])
    return []


def _write_signature(app: Sphinx, what: str, name: str, obj: Any, *_: Any) -> Any:
    if what == "class" and dataclasses.is_dataclass(obj):
        return signature(obj), None
    return None


def _skip_attributes(app: Sphinx, what: str, name: str, member: Any, *_: Any) -> bool | None:
    """Leaves out all attributes, which `_write_docstring` documents instead."""
    if what not in ("class", "exception"):
        return None
    is_property = isinstance(member, property | functools.cached_property)
    is_method = getattr(member, "__name__", None) == name
    return None if is_property or is_method else True


def _hide_colons(app: Sphinx, what: str, *arguments: Any) -> None:
    """Keeps napoleon from reading the docstring "Device mesh: how ..." as a type."""
    lines = arguments[-1]
    if what in ("attribute", "property", "data"):
        lines[:] = [line.replace(":", _COLON) for line in lines]


def _write_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    if what == "data":
        lines[:] = [*_data_lines(name, obj), ""]
    lines[:] = [line.replace(_COLON, ":") for line in lines]
    if what in ("class", "exception"):
        lines += ["", *_base_lines(obj), *_attribute_lines(obj)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the functions; napoleon has the priority 500."""
    app.connect("autodoc-process-signature", _write_signature)
    app.connect("autodoc-skip-member", _skip_attributes)
    app.connect("autodoc-process-docstring", _hide_colons, priority=400)
    app.connect("autodoc-process-docstring", _write_docstring, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

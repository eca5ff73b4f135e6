"""Classes of labels that are written as text, in one or several spellings."""

import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

_LOGGER = logging.getLogger(__name__)


def class_key(label: str) -> str:
    """Returns what all spellings of a class have in common.

    Blanks at the ends do not matter, nor does the Unicode form of accents; `1` and `1.0` are equal.
    """
    label = unicodedata.normalize("NFC", label.strip())
    return re.sub(r"^([+-]?[0-9]+)\.0+$", r"\1", label)


def class_names(labels: Iterable[str], where: str) -> dict[str, str]:
    """Names each class as its labels are written, the shortest spelling where there are several.

    Warns of several spellings, and of names that differ in case alone.

    Args:
        labels: the labels of all examples.
        where: where they come from, for the warnings.

    Returns:
        Key → name, in the order of `ordered`.
    """
    spellings: dict[str, set[str]] = defaultdict(set)
    for label in set(labels):
        spellings[class_key(label)].add(unicodedata.normalize("NFC", label.strip()))
    names = {
        key: min(written, key=lambda name: (len(name), name)) for key, written in spellings.items()
    }
    names = {key: names[key] for name in ordered(names.values()) for key in (class_key(name),)}
    for key, name in names.items():
        others = spellings[key] - {name}
        if others:
            _LOGGER.warning("%s: labels %s and %s are one class", where, name, _listed(others))
    _warn_of_case(names, where)
    return names


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Names in their order in the alphabet, or by value where all are whole numbers."""
    names = sorted(names)
    if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names):
        names.sort(key=int)
    return tuple(names)


def _warn_of_case(names: Mapping[str, str], where: str) -> None:
    same: dict[str, list[str]] = defaultdict(list)
    for name in names.values():
        same[name.casefold()].append(name)
    for similar in same.values():
        if len(similar) > 1:
            _LOGGER.warning("%s: classes %s differ in case alone", where, _listed(similar))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))

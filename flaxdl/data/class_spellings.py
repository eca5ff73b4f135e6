"""Class names from text labels that may be spelled in several ways."""

import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

_LOGGER = logging.getLogger(__name__)


def class_key(label: str) -> str:
    """Returns a key that is equal for all spellings of a class.

    Ignores surrounding whitespace and the Unicode form of accents; `1` and `1.0` are equal.
    """
    label = unicodedata.normalize("NFC", label.strip())
    return re.sub(r"^([+-]?[0-9]+)\.0+$", r"\1", label)


def class_names(labels: Iterable[str], where: str) -> dict[str, str]:
    """Names each class by the shortest spelling of its labels.

    Warns about several spellings of a class and about names that differ only in case.

    Args:
        labels: the labels of all examples.
        where: path of the file that contains the labels, for warnings.

    Returns:
        The class names by their `class_key`, in the order of `sort_names`.
    """
    spellings: dict[str, set[str]] = defaultdict(set)
    for label in set(labels):
        spellings[class_key(label)].add(unicodedata.normalize("NFC", label.strip()))
    names = {
        key: min(written, key=lambda name: (len(name), name)) for key, written in spellings.items()
    }
    names = {key: names[key] for name in sort_names(names.values()) for key in (class_key(name),)}
    for key, name in names.items():
        others = spellings[key] - {name}
        if others:
            _LOGGER.warning(
                "%s: labels %s and %s are treated as one class", where, name, _listed(others)
            )
    _warn_about_case(names, where)
    return names


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """Sorts names alphabetically, or by value if all are integers."""
    names = sorted(names)
    if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names):
        names.sort(key=int)
    return tuple(names)


def _warn_about_case(names: Mapping[str, str], where: str) -> None:
    same: dict[str, list[str]] = defaultdict(list)
    for name in names.values():
        same[name.casefold()].append(name)
    for similar in same.values():
        if len(similar) > 1:
            _LOGGER.warning("%s: classes %s differ only in case", where, _listed(similar))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))

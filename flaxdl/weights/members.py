"""Selection of the weights in a PyTorch checkpoint; `FILE:KEY` selects a dictionary by name."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from flaxdl.checks import did_you_mean
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path
from flaxdl.weights.pickles import OpaqueObject, Tensor, describe

_LOGGER = logging.getLogger(__name__)

# Common keys of the weights in training checkpoints, preferred over all others.
USUAL_KEYS = ("state_dict", "model_state_dict", "model")
USUAL_PATHS = [(key,) for key in USUAL_KEYS]
MAX_DEPTH = 8  # levels of dictionaries and lists to search
MAX_MEMBERS = 100_000  # values to search, from the outside in
MAX_SHOWN = 20
MAX_NAME_LENGTH = 200


class Member(NamedTuple):
    """A value in a checkpoint, and the keys that lead to it."""

    path: tuple[str, ...]
    value: Any

    @property
    def name(self) -> str:
        """Keys joined with dots, truncated to `MAX_NAME_LENGTH`."""
        return ".".join(key[:MAX_NAME_LENGTH] for key in self.path)[:MAX_NAME_LENGTH]


def select_weights(checkpoint: Any, name: str | None = None) -> dict[str, Tensor]:
    """Returns the weights in a checkpoint: the checkpoint itself, or a dictionary of tensors in it.

    Without a name, the dictionary under one of `USUAL_KEYS` is selected, or else the only
    dictionary of tensors. Optimizer states and dictionaries of scalars are never selected.

    Args:
        checkpoint: the object passed to `torch.save`, as returned by `read_pickle`.
        name: keys that lead to the dictionary, joined with dots.

    Raises:
        UserError: if there is no dictionary of tensors, if there are several (the message lists
            their names), or if the selected one contains other values (the message states the
            first).
    """
    if isinstance(checkpoint, OpaqueObject) and checkpoint.is_module:
        raise UserError(_whole_model(checkpoint, ""))
    if not isinstance(checkpoint, dict | list | tuple):
        raise UserError(f"contains {describe(checkpoint)}, expected names and tensors")
    members = list(islice(_members(checkpoint), MAX_MEMBERS))
    candidates = _candidates(members)
    found = _named(members, candidates, name) if name else _default(checkpoint, candidates)
    if found is None:
        raise UserError(_no_weights(checkpoint, members))
    if not name:
        _log_alternatives(found, members, candidates)
    for key, value in found.value.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"contains {describe(value)} under {_shown([*found.path, key])}, "
                "expected only tensors"
            )
    return found.value


def split_member(path: str | Path) -> tuple[Path, str | None]:
    """Splits `FILE:KEY` into the path of the file and the key, which is None if there is no key.

    A path is not split if it exists, or if no file exists with the name before any of its colons.

    >>> from flaxdl.weights.members import split_member
    >>> split_member("resnet18.safetensors:teacher")
    (PosixPath('resnet18.safetensors'), 'teacher')
    """
    path = local_path(path)
    if not path.exists():
        text = str(path)
        for position in [place for place, letter in enumerate(text) if letter == ":"][::-1]:
            file = Path(text[:position])
            if position and text[position + 1 :] and file.exists():
                return file, text[position + 1 :]
    return path, None


def _members(checkpoint: Any) -> Iterator[Member]:
    """Yields all dictionaries, lists and modules, from the outside in.

    The contents of an object that is reachable by several paths are listed once, so the work is
    proportional to the length of the pickle. The contents of optimizer states are skipped.
    """
    waiting = deque([Member((), checkpoint)])
    expanded: set[int] = set()
    while waiting:
        member = waiting.popleft()
        yield member
        value = member.value
        if id(value) in expanded or len(member.path) == MAX_DEPTH or _is_optimizer_state(value):
            continue
        expanded.add(id(value))
        if isinstance(value, dict):
            items = value.items()
        elif isinstance(value, list | tuple):
            items = enumerate(value)
        else:
            continue
        inside = (item for item in items if _is_searched(item[1]))
        waiting.extend(
            Member((*member.path, str(key)), inner)
            for key, inner in islice(inside, MAX_MEMBERS - min(len(waiting), MAX_MEMBERS))
        )


def _is_searched(value: Any) -> bool:
    return isinstance(value, dict | list | tuple) or (
        isinstance(value, OpaqueObject) and value.is_module
    )


def _is_optimizer_state(value: Any) -> bool:
    return isinstance(value, dict) and "state" in value and "param_groups" in value


def _candidates(members: list[Member]) -> list[Member]:
    """Returns the innermost dictionaries of mostly tensors, or else those with any tensors."""
    # Numbers of tensors that are not scalars, and of all tensors.
    counts: dict[int, tuple[int, int]] = {}
    for _, value in members:
        if isinstance(value, dict) and id(value) not in counts and not _is_optimizer_state(value):
            ranks = [len(x.shape) for x in value.values() if isinstance(x, Tensor)]
            counts[id(value)] = sum(map(bool, ranks)), len(ranks)

    outer: set[tuple[str, ...]] = set()  # paths of dictionaries that contain candidates

    def with_tensors(min_fraction: float) -> list[Member]:
        """Returns the dictionaries in which more than a fraction of the values are tensors."""
        found = []
        for member in reversed(members):
            arrays, tensors = counts.get(id(member.value), (0, 0))
            if arrays and member.path not in outer and tensors > min_fraction * len(member.value):
                outer.update(member.path[:length] for length in range(len(member.path)))
                found.append(member)
        return found[::-1]

    return with_tensors(0.5) or with_tensors(0.0)


def _default(checkpoint: Any, candidates: list[Member]) -> Member | None:
    """Returns the dictionary to read if no name is given."""
    if isinstance(checkpoint, dict) and _holds_tensors(checkpoint, all):
        return Member((), checkpoint)
    usual = [member for member in candidates if member.path in USUAL_PATHS]
    if not usual and isinstance(checkpoint, dict):
        # These contain values other than tensors; the caller raises an error about them.
        usual = [
            Member((key,), checkpoint[key])
            for key in USUAL_KEYS
            if _holds_tensors(checkpoint.get(key), any)
        ]
    several = usual or candidates
    if len(several) > 1:
        raise UserError(
            f"contains several dictionaries of tensors: {_listed(several)}; "
            f"append one of these names to the path, such as FILE:{_printable(several[-1].name)}"
        )
    return several[0] if several else None


def _log_alternatives(taken: Member, members: list[Member], candidates: list[Member]) -> None:
    """Logs the other dictionaries and models that the user may have intended to read."""
    where = _shown(taken.path)
    others = [member for member in candidates if member.path and member.path != taken.path]
    if others:
        _LOGGER.warning(
            "read the weights under %s; to read others, use FILE:%s", where, _listed(others)
        )
    models = [member for member in members if isinstance(member.value, OpaqueObject)]
    if models and taken.path not in USUAL_PATHS:
        _LOGGER.warning(
            "read the weights under %s; the whole model under %s cannot be read",
            where,
            _shown(models[0].path),
        )


def _named(members: list[Member], candidates: list[Member], name: str) -> Member:
    for member in members:
        if isinstance(member.value, dict) and member.path and member.name == name:
            return member
    inside = [member for member in candidates if member.path]
    there = f"tensors are under {_listed(inside)}" if inside else "it contains only tensors"
    near = did_you_mean(name, [member.name for member in inside[:MAX_SHOWN]])
    raise UserError(f"contains no dictionary under {name!r}; {there}{near}")


def _no_weights(checkpoint: Any, members: list[Member]) -> str:
    for path, value in members:
        if isinstance(value, OpaqueObject) and value.is_module:
            return _whole_model(value, f" under {_shown(path)}")
    if not isinstance(checkpoint, dict):
        return f"contains {describe(checkpoint)}, expected names and tensors"
    if not checkpoint:
        return "is an empty dictionary, expected names and tensors"
    if _is_optimizer_state(checkpoint):
        return "contains the state of an optimizer, expected names and tensors"
    key, value = next(item for item in checkpoint.items() if not isinstance(item[1], Tensor))
    return (
        "contains no dictionary of names and tensors; for example, "
        f"under {_shown([key])} it contains {describe(value)}"
    )


def _whole_model(model: OpaqueObject, where: str) -> str:
    return (
        f"contains a whole model{where}, a {describe(model)}, which only its own code can build; "
        "load it with PyTorch and save model.state_dict()"
    )


def _holds_tensors(value: Any, how_many: Callable[[Iterable[bool]], bool]) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and how_many(isinstance(x, Tensor) for x in value.values())
    )


def _shown(path: Sequence[str]) -> str:
    return repr(Member(tuple(path), None).name)


def _listed(members: list[Member]) -> str:
    shown = ", ".join(_printable(member.name) for member in members[:MAX_SHOWN])
    more = len(members) - MAX_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _printable(name: str) -> str:
    """Escapes control characters, so that a file cannot send them to the terminal."""
    return repr(name)[1:-1]

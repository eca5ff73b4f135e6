"""Which of the dictionaries in a checkpoint of PyTorch holds the weights; `FILE:KEY` names one."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from flaxdl.checks import did_you_mean
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path
from flaxdl.weights.pickles import Foreign, Tensor, describe

_LOGGER = logging.getLogger(__name__)

# Where training scripts keep the weights; one of these is taken whatever else there is.
USUAL_KEYS = ("state_dict", "model_state_dict", "model")
USUAL_PATHS = [(key,) for key in USUAL_KEYS]
DEEPEST = 8  # levels of dictionaries and lists that are searched
MOST_MEMBERS = 100_000  # of those that are looked at, from the outside in
MOST_SHOWN = 20
LONGEST_NAME = 200


class Member(NamedTuple):
    """A value in a checkpoint, and the keys that lead to it."""

    path: tuple[str, ...]
    value: Any

    @property
    def name(self) -> str:
        """The keys, joined with dots, and cut off where they are longer than any name."""
        return ".".join(key[:LONGEST_NAME] for key in self.path)[:LONGEST_NAME]


def choose(checkpoint: Any, name: str | None = None) -> dict[str, Tensor]:
    """The weights in a checkpoint: itself, or a dictionary of tensors that it holds.

    Without a name it is the one under one of `USUAL_KEYS`, or else the only one. The state of an
    optimizer, and dictionaries of single numbers, are never meant.

    Args:
        checkpoint: what `torch.save` was given, as `read_pickle` returns it.
        name: the keys that lead to the dictionary, joined with dots.

    Raises:
        UserError: if there is none, or several, with their names; or if it holds anything but
            tensors, naming the first.
    """
    if isinstance(checkpoint, Foreign) and checkpoint.is_module:
        raise UserError(_whole_model(checkpoint, ""))
    if not isinstance(checkpoint, dict | list | tuple):
        raise UserError(f"holds {describe(checkpoint)}, needed names and tensors")
    members = list(islice(_members(checkpoint), MOST_MEMBERS))
    candidates = _candidates(members)
    found = _named(members, candidates, name) if name else _default(checkpoint, candidates)
    if found is None:
        raise UserError(_without_weights(checkpoint, members))
    if not name:
        _mention_others(found, members, candidates)
    for key, value in found.value.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"holds {describe(value)} under {_shown([*found.path, key])}, needed tensors alone"
            )
    return found.value


def split_member(path: str | Path) -> tuple[Path, str | None]:
    """The file or folder, and the name behind a colon that follows it.

    A path that exists is taken as it is, colons included; where nothing exists, so is the whole.

    >>> split_member("runs/student.ckpt:teacher")
    (PosixPath('runs/student.ckpt'), 'teacher')
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
    """All dictionaries, lists and modules, from the outside in.

    What is in a dictionary that several keys lead to is listed once, so the work is proportional
    to the length of the pickle. The state of optimizers is left out.
    """
    waiting = deque([Member((), checkpoint)])
    expanded: set[int] = set()
    while waiting:
        member = waiting.popleft()
        yield member
        value = member.value
        if id(value) in expanded or len(member.path) == DEEPEST or _is_of_optimizer(value):
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
            for key, inner in islice(inside, MOST_MEMBERS - min(len(waiting), MOST_MEMBERS))
        )


def _is_searched(value: Any) -> bool:
    return isinstance(value, dict | list | tuple) or (
        isinstance(value, Foreign) and value.is_module
    )


def _is_of_optimizer(value: Any) -> bool:
    return isinstance(value, dict) and "state" in value and "param_groups" in value


def _candidates(members: list[Member]) -> list[Member]:
    """The dictionaries of tensors, or else those of tensors and other things, innermost."""
    of_each: dict[int, tuple[int, int]] = {}  # tensors with axes, and those without, in each
    for _, value in members:
        if isinstance(value, dict) and id(value) not in of_each and not _is_of_optimizer(value):
            ranks = [len(x.shape) for x in value.values() if isinstance(x, Tensor)]
            of_each[id(value)] = sum(map(bool, ranks)), len(ranks)

    outside: set[tuple[str, ...]] = set()  # of a dictionary that holds weights further inside

    def those(least: float) -> list[Member]:
        """The dictionaries of which more than a fraction `least` are tensors."""
        found = []
        for member in reversed(members):
            arrays, tensors = of_each.get(id(member.value), (0, 0))
            if arrays and member.path not in outside and tensors > least * len(member.value):
                outside.update(member.path[:length] for length in range(len(member.path)))
                found.append(member)
        return found[::-1]

    return those(0.5) or those(0.0)


def _default(checkpoint: Any, candidates: list[Member]) -> Member | None:
    """The dictionary that is meant where none is named."""
    if isinstance(checkpoint, dict) and _holds_tensors(checkpoint, all):
        return Member((), checkpoint)
    usual = [member for member in candidates if member.path in USUAL_PATHS]
    if not usual and isinstance(checkpoint, dict):
        # Tensors and other things, which are then named.
        usual = [
            Member((key,), checkpoint[key])
            for key in USUAL_KEYS
            if _holds_tensors(checkpoint.get(key), any)
        ]
    several = usual or candidates
    if len(several) > 1:
        raise UserError(
            f"holds several dictionaries of tensors: {_listed(several)}; "
            f"append one of these names to the path, such as FILE:{_printable(several[-1].name)}"
        )
    return several[0] if several else None


def _mention_others(taken: Member, members: list[Member], candidates: list[Member]) -> None:
    """Logs what else could have been meant."""
    where = _shown(taken.path)
    others = [member for member in candidates if member.path and member.path != taken.path]
    if others:
        _LOGGER.warning(
            "the weights under %s were read; others are read as FILE:%s", where, _listed(others)
        )
    models = [member for member in members if isinstance(member.value, Foreign)]
    if models and taken.path not in USUAL_PATHS:
        _LOGGER.warning(
            "the weights under %s were read; the whole model under %s cannot be",
            where,
            _shown(models[0].path),
        )


def _named(members: list[Member], candidates: list[Member], name: str) -> Member:
    for member in members:
        if isinstance(member.value, dict) and member.path and member.name == name:
            return member
    inside = [member for member in candidates if member.path]
    there = f"tensors are under {_listed(inside)}" if inside else "all that it holds are tensors"
    near = did_you_mean(name, [member.name for member in inside[:MOST_SHOWN]])
    raise UserError(f"holds no dictionary under {name!r}; {there}{near}")


def _without_weights(checkpoint: Any, members: list[Member]) -> str:
    for path, value in members:
        if isinstance(value, Foreign) and value.is_module:
            return _whole_model(value, f" under {_shown(path)}")
    if not isinstance(checkpoint, dict):
        return f"holds {describe(checkpoint)}, needed names and tensors"
    if not checkpoint:
        return "holds nothing, needed names and tensors"
    if _is_of_optimizer(checkpoint):
        return "holds the state of an optimizer, needed names and tensors"
    key, value = next(item for item in checkpoint.items() if not isinstance(item[1], Tensor))
    return (
        f"holds no dictionary of names and tensors; for example, under {_shown([key])} it holds "
        f"{describe(value)}"
    )


def _whole_model(model: Foreign, where: str) -> str:
    return (
        f"holds a whole model{where}, a {describe(model)}, which only its own code can build; "
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
    shown = ", ".join(_printable(member.name) for member in members[:MOST_SHOWN])
    more = len(members) - MOST_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _printable(name: str) -> str:
    """Keeps control characters in a file from the terminal."""
    return repr(name)[1:-1]

"""Mapping of the keys in a weight file to the parameter names of a model."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from flaxdl.errors import UserError
from flaxdl.weights.names import TIED_KEYS, matches_any

# Components that DataParallel, torch.compile, FSDP and trainers insert anywhere in keys.
WRAPPERS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
# State-dict entries that are not weights: counters, and constants of Hugging Face's BERT.
BUFFERS = ("num_batches_tracked", "n_averaged", "position_ids", "token_type_ids")
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
ENCODER = "bert."


class Renaming(NamedTuple):
    """Names in the model for the keys of a file."""

    names: dict[str, str]
    """Name for each key. Keys without a parameter in the model also lose the dropped prefix."""
    changes: list[str]
    """Short descriptions of the dropped and added prefixes."""


class _Prefix(NamedTuple):
    """Prefix of keys in a file, and its replacement in the model."""

    dropped: str
    added: str


def rename_keys(
    keys: Collection[str], targets: Collection[str], omit: Sequence[str] = ()
) -> Renaming:
    """Returns the model's name for every key, except buffers that the model does not have.

    Components inserted by wrappers, such as `module`, are dropped anywhere in a key. A prefix such
    as `model.` or `net.backbone.` is dropped if the remaining keys match the model. Keys without
    this prefix, such as those of a loss, stay unchanged. The prefix `bert.` is added if only the
    model has it, and the old parameter names `gamma` and `beta` of LayerNorm are replaced.

    >>> from flaxdl.weights.renaming import rename_keys
    >>> rename_keys(["net.module.weight", "net.bias", "loss.scale"], ["weight", "bias"]).names
    {'net.module.weight': 'weight', 'net.bias': 'bias', 'loss.scale': 'loss.scale'}

    Args:
        keys: keys in the file.
        targets: parameter names of the model.
        omit: patterns of parameter names. Matching targets need not be found, and matching keys are
            ignored in the search for a prefix.

    Raises:
        UserError: if several prefixes match; the message lists them.
    """
    names = {key: key for key in keys if key in targets or key.rpartition(".")[2] not in BUFFERS}
    for old, new in OLD_NAMES.items():
        names = {
            key: name.removesuffix(old) + new if name.endswith(old) else name
            for key, name in names.items()
        }
    changes = []
    for word in WRAPPERS:
        wrapped = [key for key, name in names.items() if word in name and word in name.split(".")]
        if wrapped and not any(word in target.split(".") for target in targets):
            names |= {key: _without(word, names[key]) for key in wrapped}
            changes.append(f"dropped '{word}.' from {len(wrapped)} names")

    prefix = _prefix(names.values(), targets, omit)
    renamed = {key: _replaced(name, prefix, targets) for key, name in names.items()}
    count = sum(renamed[key] != name for key, name in names.items())
    if count and prefix.dropped:
        changes.append(f"dropped {prefix.dropped!r} from {count} names")
    elif count:
        changes.append(f"added {prefix.added!r} to {count} names")
    return Renaming(renamed, changes)


def _without(word: str, name: str) -> str:
    return ".".join(part for part in name.split(".") if part != word)


def _prefix(names: Collection[str], targets: Collection[str], omit: Sequence[str]) -> _Prefix:
    """Returns the prefix under which the keys contain all needed targets, or else most of them."""
    needed = [target for target in targets if not matches_any(target, omit)] or list(targets)
    if {*names}.issuperset(needed):
        return _Prefix("", "")
    found: dict[_Prefix, dict[str, str]] = {_Prefix("", ""): {}}
    ends = _ends(needed)
    deepest = max((target.count(".") for target in needed), default=0)
    for name in names:
        if matches_any(name, omit):
            continue
        for dropped, end in _splits(name, deepest):
            for added, meant in ends.items():
                if end in meant:
                    keys = found.setdefault(_Prefix(dropped, added), {})
                    keys.setdefault(meant[end], name)

    most = max(map(len, found.values()))
    fitting = [prefix for prefix, keys in found.items() if len(keys) == most]
    best = min(fitting, key=lambda prefix: (len(prefix.dropped), prefix))
    others = [prefix for prefix in fitting if found[prefix] != found[best]]
    if most == len(needed) and others and best.dropped:
        raise UserError(
            f"contain the model's parameters more than once, under "
            f"{_listed(sorted({best.dropped, *(prefix.dropped for prefix in others)}))}; "
            f"omit all but one of them, as in omit=({others[-1].dropped + '*'!r},)"
        )
    return best


def _ends(needed: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
    """Returns, for each possible replacement of a prefix, the target for each end of a key."""
    ends = {"": {target: target for target in needed}}
    for duplicate, original in TIED_KEYS.items():
        if original in ends[""]:
            ends[""].setdefault(duplicate, original)
    if any(target.startswith(ENCODER) for target in needed):
        ends[ENCODER] = {target.removeprefix(ENCODER): target for target in needed}
    return ends


def _splits(name: str, deepest: int) -> Iterator[tuple[str, str]]:
    """Yields all ways to split a key into a prefix and an end with at most `deepest` dots."""
    end = len(name)
    for _ in range(deepest + 1):
        end = name.rfind(".", 0, end)
        yield name[: end + 1], name[end + 1 :]
        if end < 0:
            return


def _replaced(name: str, prefix: _Prefix, targets: Collection[str]) -> str:
    if name.startswith(prefix.dropped):
        name = name.removeprefix(prefix.dropped)
    else:  # a head next to the encoder
        name = name.removeprefix(prefix.dropped.removesuffix(ENCODER))
    return prefix.added + name if prefix.added + name in targets else name


def _listed(prefixes: Sequence[str]) -> str:
    shown = ", ".join(map(repr, prefixes[:20]))
    return f"{shown} and {len(prefixes) - 20} more" if len(prefixes) > 20 else shown

"""The manifest of a checkpoint: its step, and a checksum of every file, read by `sha256sum -c`.

SHA-256, since no damage passes it by chance or by intent, processors have instructions for it (more
than 1 GB a second, outside the Python interpreter), and anyone can check it without flaxdl.
"""

import hashlib
import json
import re
from pathlib import Path

NAME = "SHA256SUMS"
_FACTS = "flaxdl.json"


def write_manifest(folder: Path, step: int, last_line: int | None = None) -> None:
    """Writes the step and the checksums of all files of a folder, which are then final.

    Args:
        folder: the checkpoint.
        step: its step.
        last_line: step of the newest line of metrics at that time, None without any.
    """
    facts = {"step": step, "last_line": last_line}
    (folder / _FACTS).write_text(json.dumps(facts) + "\n")
    (folder / NAME).write_bytes(_text(_checksums(folder)))


def last_line(folder: Path) -> int | None:
    """The step of the newest line of metrics when a sound checkpoint was saved, if recorded."""
    return _facts(folder).get("last_line")


def damage_of(folder: Path, step: int) -> str | None:
    """Describes how a folder differs from the checkpoint of a step; None if it does not.

    Checkpoints of earlier versions, which do not state their step, fit any step.
    """
    if not (folder / NAME).is_file():
        return f"its {NAME} is missing" if folder.is_dir() else "it is gone"
    try:
        manifest = (folder / NAME).read_bytes()
        found = _checksums(folder)
    except OSError as error:
        if not folder.is_dir():
            return "it is gone"
        name = error.filename and Path(error.filename).relative_to(folder).as_posix()
        return f"{name or 'it'} cannot be read ({error.strerror})"
    if manifest == _text(found):
        stated = _facts(folder).get("step", step)
        return None if stated == step else f"it is the checkpoint of step {stated}, renamed"
    lines = [re.fullmatch(rb"([0-9a-f]{64})  (.+)", line) for line in manifest.splitlines()]
    listed = {line[2].decode(errors="replace"): line[1].decode() for line in lines if line}
    if None in lines or not listed:
        return f"its {NAME} is damaged"
    kinds = {
        "missing": sorted(listed.keys() - found.keys()),
        "changed": sorted(n for n in listed.keys() & found.keys() if listed[n] != found[n]),
        "not in its manifest": sorted(found.keys() - listed.keys()),
    }
    described = [f"{_some(names)} {kind}" for kind, names in kinds.items() if names]
    return "; ".join(described) or f"its {NAME} is damaged"


def _facts(folder: Path) -> dict[str, int | None]:
    path = folder / _FACTS
    return json.loads(path.read_text()) if path.exists() else {}


def _checksums(folder: Path) -> dict[str, str]:
    """Path within the folder → SHA-256, for each file but the manifest itself."""
    checksums = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != NAME:
            with path.open("rb") as file:
                checksums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums


def _text(checksums: dict[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in checksums.items()).encode()


def _some(names: list[str]) -> str:
    more = [f"{len(names) - 2} more"] if len(names) > 2 else []
    return " and ".join([*names[:2], *more])

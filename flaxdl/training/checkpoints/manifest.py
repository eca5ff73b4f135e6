"""The manifest of a checkpoint: its step, and checksums of all files in `sha256sum` format.

SHA-256 detects any corruption. Processors have instructions for it (more than 1 GB per second,
without the GIL), and `sha256sum -c` verifies the files without flaxdl.
"""

import hashlib
import json
import re
from pathlib import Path

NAME = "SHA256SUMS"
_METADATA = "flaxdl.json"


def write_manifest(folder: Path, step: int, last_line: int | None = None) -> None:
    """Writes the step and the checksums of a checkpoint's files; they must not change later.

    Args:
        folder: folder of the checkpoint.
        step: step of the checkpoint.
        last_line: step of the newest line of metrics; None if there is none.
    """
    metadata = {"step": step, "last_line": last_line}
    (folder / _METADATA).write_text(json.dumps(metadata) + "\n")
    (folder / NAME).write_bytes(_text(_checksums(folder)))


def last_line(folder: Path) -> int | None:
    """Returns the step of the newest line of metrics at the time of saving; None if unknown.

    The checkpoint must be undamaged.
    """
    return _metadata(folder).get("last_line")


def find_damage(folder: Path, step: int) -> str | None:
    """Describes how a folder differs from the undamaged checkpoint of a step, or returns None.

    Checkpoints written by earlier versions do not record their step and match any step.
    """
    if not (folder / NAME).is_file():
        return f"its {NAME} is missing" if folder.is_dir() else "it no longer exists"
    try:
        manifest = (folder / NAME).read_bytes()
        found = _checksums(folder)
    except OSError as error:
        if not folder.is_dir():
            return "it no longer exists"
        name = error.filename and Path(error.filename).relative_to(folder).as_posix()
        return f"{name or 'it'} cannot be read ({error.strerror})"
    if manifest == _text(found):
        stated = _metadata(folder).get("step", step)
        return None if stated == step else f"it is a renamed checkpoint of step {stated}"
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


def _metadata(folder: Path) -> dict[str, int | None]:
    path = folder / _METADATA
    return json.loads(path.read_text()) if path.exists() else {}


def _checksums(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file except the manifest, by path relative to the folder."""
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

"""The manifest of a checkpoint: a checksum of every file in it, as `sha256sum -c` reads it.

SHA-256, since no damage passes it by chance or by intent, processors have instructions for it (more
than 1 GB a second, beside the Python interpreter), and anyone can check it without flaxdl.
"""

import hashlib
import re
from pathlib import Path

NAME = "SHA256SUMS"


def write_manifest(folder: Path) -> None:
    """Writes the checksums of all files of a folder, which nothing may change from now on."""
    (folder / NAME).write_bytes(_text(_checksums(folder)))


def damage_of(folder: Path) -> str | None:
    """Says what is wrong with a folder: which files are not those of its manifest; None if all are.

    Whatever can be read is judged; what cannot is damaged.
    """
    try:
        manifest = (folder / NAME).read_bytes()
        found = _checksums(folder)
    except FileNotFoundError:
        return f"its {NAME} is missing" if folder.is_dir() else "it is gone"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if manifest == _text(found):
        return None
    lines = [re.fullmatch(rb"([0-9a-f]{64})  (.+)", line) for line in manifest.splitlines()]
    listed = {line[2].decode(errors="replace"): line[1].decode() for line in lines if line}
    if None in lines or not listed:
        return f"its {NAME} is damaged"
    kinds = {
        "missing": sorted(listed.keys() - found.keys()),
        "changed": sorted(n for n in listed.keys() & found.keys() if listed[n] != found[n]),
        "not in its manifest": sorted(found.keys() - listed.keys()),
    }
    told = [f"{_some(names)} {kind}" for kind, names in kinds.items() if names]
    return "; ".join(told) or f"its {NAME} is damaged"


def _checksums(folder: Path) -> dict[str, str]:
    """By path within the folder, the SHA-256 of each file but the manifest itself."""
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

"""Writes THIRD_PARTY.md: the packages that flaxdl requires, with their licenses.

python docs/third_party.py

Reads the metadata of the installed packages, and the reasons from the comments in pyproject.toml.
"""

import re
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
HEAD = """# Third-party packages

Packages that `pip install flaxdl` installs on Linux, without extras. flaxdl contains no code of
theirs. The licenses are those that the packages declare in their metadata.
`python docs/third_party.py` writes this file.

| package | license | needed for |
|---|---|---|
"""


def reasons() -> dict[str, str]:
    """Returns the reason for each dependency of flaxdl."""
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    lines = block[1].splitlines()
    found = [re.fullmatch(r' +"([\w.-]+)[^"]*", +# (.+)', line) for line in lines]
    missing = [line for line, match in zip(lines, found, strict=True) if match is None]
    if missing:
        raise SystemExit(f"dependencies without a reason: {missing}")
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def dependents(names: list[str]) -> dict[str, set[str]]:
    """Returns the packages that require each other package, starting from these."""
    found: dict[str, set[str]] = {name: set() for name in names}
    waiting = [Requirement(name) for name in names]
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        name = canonicalize_name(requirement.name)
        for text in distribution(name).requires or []:
            lower = Requirement(text)
            marker, extras = lower.marker, ("", *requirement.extras)
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                lower.marker = None  # the same requirement under any marker is one
                found.setdefault(canonicalize_name(lower.name), set()).add(name)
                waiting.append(lower)
    return {name: above - {name} for name, above in found.items()}  # extras of itself


def license_of(package: Distribution) -> str:
    """Returns the license that a package declares."""
    expression = package.metadata.get("License-Expression")
    if expression:
        return expression
    declared = (package.metadata.get("License") or "").strip()
    if declared and "\n" not in declared:
        return declared
    for classifier in package.metadata.get_all("Classifier") or []:
        if classifier.startswith("License :: "):
            return classifier.rpartition(" :: ")[2]
    first = declared.partition("\n")[0]
    if not first:
        raise SystemExit(f"{package.name} declares no license")
    return first


def main() -> None:
    """Writes the file."""
    why = reasons()
    rows = []
    for name, above in sorted(dependents(list(why)).items()):
        reason = why.get(name) or ", ".join(sorted(above))
        rows.append(f"| {name} | {license_of(distribution(name))} | {reason} |\n")
    (ROOT / "THIRD_PARTY.md").write_text(HEAD + "".join(rows))


if __name__ == "__main__":
    main()

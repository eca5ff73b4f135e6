"""Who may import whom, and what importing the package costs."""

import ast
import importlib
import itertools
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "flaxdl"

# Package or module of flaxdl → those it may import, besides itself.
_BASE = {"errors", "checks", "filesystem", "tracebacks", "version"}
_LAYERS = {*_BASE, "backend", "ops", "layers"}
_TRAINING = {*_LAYERS, "weights", "data", "training"}
_RUNS = {*_TRAINING, "models", "config", "config_files"}
ALLOWED = {
    "errors": set(),
    "checks": {"errors"},
    "tracebacks": {"errors"},
    "version": set(),
    "filesystem": {"errors"},
    "backend": {"errors", "filesystem"},
    "ops": _BASE,
    "layers": {*_BASE, "ops"},
    "models": {*_BASE, "ops", "layers"},
    "weights": _BASE,
    "data": {*_BASE, "weights"},
    "training": {*_BASE, "ops", "weights"},
    "config": {*_BASE, "data", "training"},
    "config_files": {*_BASE, "config"},
    "runs": _RUNS,
    "pretrained": {*_TRAINING, "models"},
    "analysis": {*_RUNS, "runs"},
    "exporters": {*_RUNS, "runs"},
    "report": {*_RUNS, "runs", "analysis"},
    "run": {*_RUNS, "runs", "analysis", "report"},
    "course": {*_RUNS, "runs", "analysis", "report", "run"},
    "cli": {*_RUNS, "course", "runs", "pretrained", "analysis", "exporters", "report", "run"},
    "__init__": {
        *("backend", "config", "config_files", "errors", "training", "version", "weights"),
        *("runs", "pretrained", "analysis", "exporters", "run"),
    },
    "__main__": {"cli"},
}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "flaxdl":
            yield from (f"flaxdl.{name.name}" for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def name_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_file_belongs_to_a_known_package():
    assert {name_of(path) for path in PACKAGE.rglob("*.py")} == set(ALLOWED)


def test_every_package_says_what_belongs_there():
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.quick
@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_packages_import_only_what_they_may(name):
    paths = [path for path in PACKAGE.rglob("*.py") if name_of(path) == name]
    for path in paths:
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[0] == "flaxdl":
                assert len(parts) > 1, f"{path} imports all of flaxdl"
                assert parts[1] in {name, *ALLOWED[name]}, f"{path} imports {module}"
            assert parts[0] not in ("train", "configs", "tests"), f"{path} imports {module}"


def test_nothing_imports_a_package_above_it():
    above = {name: {name} for name in ALLOWED}
    for _ in ALLOWED:
        above = {name: {name}.union(*(above[n] for n in ALLOWED[name])) for name in ALLOWED}
    for name, allowed in ALLOWED.items():
        assert not any(name in above[other] for other in allowed - {name}), name


def above(lower):
    """Package → all that it imports, directly or not, from what it imports directly."""
    found = {name: set(names) for name, names in lower.items()}
    for _ in lower:
        found = {
            name: names.union(*(found.get(n, ()) for n in names)) for name, names in found.items()
        }
    return {name: names - _BASE for name, names in found.items() if names - _BASE}


def test_the_diagram_for_contributors_is_true():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    drawn = {}
    for line in text.partition("Imports go one way:\n\n```\n")[2].partition("```")[0].splitlines():
        parts = [part.strip().split(", ") for part in line.split("←")]
        for lower, upper in itertools.pairwise(parts):
            for name in upper:
                drawn.setdefault(name, set()).update(lower)
    allowed = {n: lower for n, lower in ALLOWED.items() if not n.startswith("__")}
    assert above(drawn) == above(allowed)


def test_nothing_imports_tensorflow_or_clu():
    for path in PACKAGE.rglob("*.py"):
        for module in imported_modules(path):
            assert module.split(".")[0] not in ("tensorflow", "clu"), path


PACKAGES = [path.parent for path in PACKAGE.rglob("__init__.py")]


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_no_name_of_a_package_hides_one_of_its_modules(folder):
    name = ".".join(("flaxdl", *folder.relative_to(PACKAGE).parts))
    package = importlib.import_module(name)
    for info in pkgutil.iter_modules([str(folder)]):
        if info.name != "__main__":
            module = importlib.import_module(f"{name}.{info.name}")
            assert getattr(package, info.name) is module


def in_a_fresh_process(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


@pytest.mark.quick
def test_importing_loads_nothing_heavy():
    heavy = (
        "tensorflow",
        "torch",
        "orbax",
        "sklearn",
        "matplotlib",
        "jinja2",
        "tensorflow_datasets",
        "grain",
        "tensorboard",
        "PIL",
        "tokenizers",
        "babel",
        "pyarrow",
        "requests",
        "huggingface_hub",
    )
    code = (
        "import sys, flaxdl, flaxdl.models, flaxdl.layers, flaxdl.weights, flaxdl.data\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    assert in_a_fresh_process(code) == "[]"


def test_importing_is_quick():
    code = (
        "import time\n"
        "start = time.process_time()\n"
        "import jax, flax.linen, optax, chex\n"
        "between = time.process_time()\n"
        "import flaxdl\n"
        "print((time.process_time() - between) / (between - start))"
    )
    # The least of three ratios of processor time: a busy machine must not fail the test.
    assert min(float(in_a_fresh_process(code)) for _ in range(3)) < 0.55

"""Who may import whom, and what importing the package costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "flaxdl"

# Room → the rooms of flaxdl it may import. Files beside the rooms tie everything together.
ALLOWED = {
    "layers": {"layers", "shapes"},
    "models": {"models", "layers", "shapes"},
    "weights": {"weights", "atomic_write", "locks", "paths", "shapes", "spelling"},
    "data": {"data", "weights", "locks", "paths", "shapes", "spelling"},
    "report": {"report"},
    "training": {"training", "atomic_write", "shapes", "spelling", "weights"},
}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_every_room_is_known():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == {*ALLOWED, "commands"}  # commands tie everything together


@pytest.mark.quick
@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_rooms_import_only_what_they_may(room):
    for path in (PACKAGE / room).rglob("*.py"):
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[0] == "flaxdl":
                assert len(parts) > 1, f"{path} imports the whole package"
                assert parts[1] in ALLOWED[room], f"{path} imports {module}"
            assert parts[0] not in ("train", "configs", "tests"), f"{path} imports {module}"


def test_nothing_imports_tensorflow_or_clu():
    for path in PACKAGE.rglob("*.py"):
        for module in imported_modules(path):
            assert module.split(".")[0] not in ("tensorflow", "clu"), path


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
        "import time, jax, flax.linen, optax, chex\n"
        "start = time.process_time()\n"
        "import flaxdl\n"
        "print(time.process_time() - start)"
    )
    # Processor time, and the least of three: a busy machine must not fail the test.
    assert min(float(in_a_fresh_process(code)) for _ in range(3)) < 0.3

"""Executes quickstart.ipynb from top to bottom and stores its outputs, in a few minutes.

pip install -e '.[dev,parity]'
python notebooks/execute.py

The working directory is a temporary folder, as in Colab. A hash of the code is stored with the
outputs, so that a test can tell whether they are those of the current code.
"""

import base64
import hashlib
import io
import re
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

NOTEBOOK = Path(__file__).parent / "quickstart.ipynb"


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Returns the code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_hash(notebook: NotebookNode) -> str:
    """Returns the SHA-256 of the code of a notebook."""
    return hashlib.sha256("\0".join(x.source for x in code_cells(notebook)).encode()).hexdigest()


def override(notebook: NotebookNode, settings: Mapping[str, object]) -> None:
    """Changes values in the cell tagged `parameters`.

    Raises:
        ValueError: if the cell does not have exactly one line for a setting.
    """
    (cell,) = (x for x in code_cells(notebook) if "parameters" in x.metadata.get("tags", ()))
    for name, value in settings.items():
        cell.source, count = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value!r}", cell.source)
        if count != 1:
            raise ValueError(f"{name} must be set once in the settings, is set {count} times")


def execute(notebook: NotebookNode, folder: Path, *, kernel: str = "python3") -> None:
    """Executes a notebook in a working directory; its outputs are kept in the notebook.

    Raises:
        CellExecutionError: if a cell fails.
    """
    NotebookClient(
        notebook,
        kernel_name=kernel,
        timeout=1800,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    ).execute()


def compress(notebook: NotebookNode) -> None:
    """Reduces the pictures in the outputs to 256 colors."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if png := output.get("data", {}).get("image/png"):
                with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
                    reduced = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
                content = io.BytesIO()
                reduced.save(content, format="png", optimize=True)
                output.data["image/png"] = base64.b64encode(content.getvalue()).decode()


def main() -> None:
    """Executes the notebook and replaces its file."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    metadata = dict(notebook.metadata)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    seconds = time.perf_counter() - start
    compress(notebook)
    # Without the version of Python and other facts about this machine.
    notebook.metadata = metadata | {"code_sha256": code_hash(notebook)}
    nbformat.write(notebook, NOTEBOOK)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"executed in {seconds:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor time; "
        f"{NOTEBOOK.stat().st_size / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()

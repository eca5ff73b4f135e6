"""notebooks/quickstart.ipynb runs from top to bottom on a CPU, and reaches what it promises."""

import base64
import io
import re
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from PIL import Image

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"


def test_it_is_kept_without_outputs():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs"), cell.source
        assert cell.get("execution_count") is None


@pytest.mark.filterwarnings("default")  # those of Jupyter's own threads and sockets
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.delenv("XLA_FLAGS")  # one device, as on Colab
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert float(re.search(r"([\d.]+)% of 360 right", printed)[1]) > 95
    for letter in "ABC":
        assert re.search(rf"my_images/{letter}/\d+.png → {letter}", printed)
    if find_spec("torch") is not None:
        difference = re.search(r"largest difference of a logit: (\S+)", printed)[1]
        assert float(difference) < 1e-4
    curves = [
        output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})
    ]
    assert len(curves) == 6  # of both runs, the doubtful digits, and three looks inside
    for picture in curves:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert len(image.convert("RGB").getcolors(2**20)) > 50

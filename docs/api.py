"""Writes the API page, build/api/index.html, from the docstrings.

pip install -e '.[test]'
python docs/api.py
"""

import sys
from pathlib import Path

import pdoc
import pdoc.render

PACKAGES = (
    "flaxdl",
    "flaxdl.layers",
    "flaxdl.layers.recurrent",
    "flaxdl.models",
    "flaxdl.models.bert_options",
    "flaxdl.models.transformer_stack",
    "flaxdl.weights",
    "flaxdl.data",
    "flaxdl.training",
    "flaxdl.training.writers",
    "flaxdl.pretrained",
    "flaxdl.exporters.hugging_face",
    "flaxdl.exporters.stablehlo",
)


def write(folder: Path) -> None:
    """Writes a page for each package that others may use, and for what their classes share."""
    template = Path(__file__).parent / "api_template"
    pdoc.render.configure(docformat="google", template_directory=template)
    pdoc.pdoc(*PACKAGES, output_directory=folder)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/api")
    write(folder)
    print(f"wrote {folder / 'index.html'}")

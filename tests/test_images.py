"""Pictures of README and docs: all are made by docs/images.py, and all that it makes are there."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("docs_images", ROOT / "docs" / "images.py")
images = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(images)

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SUFFIXES = (".png", ".svg", ".jpg", ".jpeg", ".gif", ".webp")


def pictures(text):
    """The local files that a page shows by Markdown or HTML."""
    found = re.findall(r"!\[[^\]]*\]\(([^)\s]+)|<img[^>]*\ssrc=\"([^\"]+)", text)
    links = [one or other for one, other in found]
    return [link for link in links if not link.startswith(("http:", "https:", "data:"))]


def texts():
    for path in PAGES:
        yield path, path.read_text()
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        yield path, "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def test_every_picture_of_a_page_is_made_by_the_script():
    shown = set()
    for path, text in texts():
        for link in pictures(text):
            file = (path.parent / link).resolve()
            assert file.parent == images.FOLDER, f"{path.name} shows {link}"
            assert file.name in images.IMAGES, f"docs/images.py does not make {link}"
            shown.add(file.name)
    assert {"training.svg", "report.png"} <= shown  # which proves that links are found


def test_files_that_commands_read_are_made_by_the_script():
    for path, text in texts():
        for name in re.findall(r"docs/images/([\w.-]+)", text):
            assert name in images.IMAGES, f"{path.name} names docs/images/{name}"


def test_the_folder_holds_exactly_what_the_script_makes():
    assert sorted(path.name for path in images.FOLDER.iterdir()) == sorted(images.IMAGES)
    assert {Path(name).suffix for name in images.IMAGES} <= set(SUFFIXES)


def test_the_script_says_what_it_makes():
    described = re.findall(r"^([\w.]+\.(?:png|svg)) {2,}\S", images.__doc__, re.MULTILINE)
    assert tuple(described) == images.IMAGES

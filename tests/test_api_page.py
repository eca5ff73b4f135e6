"""The API page: made from the docstrings, of every public name, and without broken links."""

import importlib
import importlib.util
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SCRIPT = Path(__file__).parent.parent / "docs" / "api.py"


class Page(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.links |= {named["href"]} if tag == "a" and "href" in named else set()
        self.anchors |= {named["id"]} if "id" in named else set()


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """The script, and its pages by their paths."""
    spec = importlib.util.spec_from_file_location("api", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path_factory.mktemp("api")
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        script.write(folder)
    # A name that cannot be resolved is a warning; that one is in a type of optax.
    messages = [str(one.message) for one in complaints]
    assert [message for message in messages if "ArrayTree" not in message] == []
    return script, {path: Page(path.read_text()) for path in folder.rglob("*.html")}


def test_no_link_leads_nowhere(api):
    _, pages = api
    followed = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme == "https", f"{path.name}: {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target in pages, f"{path.name}: {link}"
            if parts.fragment:
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.name}: {link}"
            followed += 1
    assert followed > 200


def test_every_public_name_has_a_place(api):
    script, pages = api
    anchors = {path.stem: page.anchors for path, page in pages.items()}
    for package in script.PACKAGES:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            if not name.startswith("_"):
                assert name in anchors[package.rpartition(".")[2]], f"{package}.{name}"
    assert "ResNet.__call__" in anchors["models"]
    assert "SimpleCNN.parent" not in anchors["models"]

"""The documentation: it is built without a warning, complete, and works without a network."""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from email.message import Message
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import filelock
import pytest

pytest.importorskip("sphinx")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NOTEBOOK_FILES = ("digits.safetensors", "digits.stablehlo")  # which it writes when it is run
# Package → the page of its public names.
PACKAGES = {
    name: f"api/{name.removeprefix('flaxdl.')}.html"
    for name in (
        *("flaxdl", "flaxdl.models", "flaxdl.layers", "flaxdl.data", "flaxdl.training"),
        *("flaxdl.training.writers", "flaxdl.weights", "flaxdl.ops"),
    )
}
PAGES = ("index", "api/flaxdl", "api/layers", "configs", "models", "changelog", "notebook")
# Attributes that make a browser load something.
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


@dataclass
class Page(HTMLParser):
    """The links, anchors and loaded files of a page."""

    text: str
    links: set[str] = field(default_factory=set)
    anchors: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)

    def __post_init__(self):
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.anchors |= {named["id"]} if "id" in named else set()
        self.links |= {named["href"]} if tag == "a" and "href" in named else set()
        if tag in LOADED and LOADED[tag] in named:
            self.loaded.add(named[LOADED[tag]])


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the documentation, built once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    built = folder / "site"
    with filelock.FileLock(folder / "site.lock"):
        if not built.exists():
            command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"]
            command += ["-d", str(folder / "doctrees"), str(DOCS), str(folder / "unchecked")]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            (folder / "unchecked").rename(built)
    return built


@pytest.fixture(scope="module")
def pages(site):
    """The pages by their paths."""
    return {
        path.relative_to(site).as_posix(): Page(path.read_text()) for path in site.rglob("*.html")
    }


def extension(name):
    """One of the extensions in docs/extensions."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "extensions" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def target(page, link):
    """The path and the fragment of a link to another file of the site; None for other links."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    path = os.path.normpath(Path(page).parent / unquote(parts.path)) if parts.path else page
    return path, unquote(parts.fragment)


def test_no_link_leads_nowhere(site, pages):
    followed = 0
    for name, page in pages.items():
        for link in page.links | page.loaded:
            found = target(name, link)
            if found is None:
                assert link.startswith("https://"), f"{name}: {link}"
                continue
            path, fragment = found
            if name == "notebook.html" and link in NOTEBOOK_FILES:
                continue
            assert (site / path).is_file(), f"{name}: {link}"
            if fragment:
                assert fragment in pages[path].anchors, f"{name}: {link}"
            followed += 1
    assert followed > 2000


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_an_anchor(pages, package):
    names = {f"{package}.{name}" for name in importlib.import_module(package).__all__}
    assert names - pages[PACKAGES[package]].anchors == set()


def test_modules_show_their_own_members(pages):
    anchors = pages["api/models.html"].anchors | pages["api/layers.html"].anchors
    assert "flaxdl.models.ResNet.__call__" in anchors
    assert "flaxdl.models.ResNet.small_images" in anchors
    assert "flaxdl.layers.Linear.kernel_init" in anchors
    assert "flaxdl.layers.recurrent.Recurrent.hidden_size" in anchors
    assert not [name for name in anchors if re.search(r"\.(parent|name|setup|scope)$", name)]


def test_signatures_can_be_read(pages):
    for name in pages:
        if name.startswith("api/"):
            text = re.sub(r"<[^>]+>", "", pages[name].text)
            assert not re.search(r" at 0x[0-9a-f]|&lt;function|&lt;lambda|_Sentinel", text), name
    config = re.sub(r"<[^>]+>|\s", "", pages["api/flaxdl.html"].text)
    assert "classflaxdl.Config(*,model,data,transform=Transform(),task=Classification()," in config


def test_the_navigation_of_each_page_has_the_titles_of_all(pages):
    sources = {
        path.relative_to(DOCS) for ending in ("md", "rst") for path in DOCS.rglob(f"*.{ending}")
    }
    expected = {path.with_suffix(".html").as_posix() for path in sources} | {"notebook.html"}
    for name, page in pages.items():
        tree = page.text.partition('<div class="sidebar-tree">')[2].partition("</div>")[0]
        links = re.findall(r'<a [^>]*href="([^"]*)"', tree)
        # The page itself is linked as "#", and no section of a page is linked.
        found = {name if link == "#" else target(name, link)[0] for link in links}
        assert len(links) == len(found), name
        assert found == expected - {"index.html"}, name
        assert ("current-page" in tree) == (name in found), name


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for name, page in pages.items():
        for link in page.loaded:
            assert link.startswith("data:") or target(name, link) is not None, f"{name}: {link}"
    for sheet in site.rglob("*.css"):
        urls = re.findall(r"url\(\s*[\"']?([^)\"']+)|@import\s+[\"']([^\"']+)", sheet.read_text())
        assert not [url for url in sum(urls, ()) if "//" in url.partition("data:")[0]], sheet


def test_names_in_backticks_are_links(pages):
    links = pages["changelog.html"].links
    assert "api/weights.html#flaxdl.weights.load_weights" in links
    assert "api/data.html#flaxdl.data.Text.bucket_lengths" in links
    assert "configs.html#finetune-bert" in links
    assert "_modules/flaxdl/models/resnet.html" in pages["models.html"].links
    assert not [link for link in links if link.endswith("#flaxdl.export")]  # a plain word


def test_search_finds_names_and_words(site):
    index = (site / "searchindex.js").read_text()
    assert '"LSTM"' in index
    assert '"lstm"' in index


def test_every_config_is_on_its_page(pages):
    page = pages["configs.html"]
    text = re.sub(r"<[^>]+>", "", page.text)
    read_config = extension("config_pages").read_config
    configs = [read_config(path) for path in (ROOT / "configs").glob("*.py")]
    assert len(configs) > 20
    for config in configs:
        assert config.name.replace("_", "-") in page.anchors
        assert f"$ {config.command}" in text
        assert config.name in config.command
    assert re.search(r"99\.44 % ± 0\.28 accuracy \(five seeds\)\s+15\ss\s", text)


@pytest.mark.parametrize(
    ("details", "result", "time"),
    [
        ("Test accuracy: 98.5 % ± 0.2 (five seeds, 98 to 99), in 3 s on two\nCPU cores.",
         "98.5 % ± 0.2 accuracy (five seeds)", "3\xa0s"),
        ("Needs data. Test loss: 1.9 bits (one seed). Half an hour on two busy CPU cores.",
         "1.9 bits (one seed)", "half an hour"),
        ("Downloads 3 MB. Not measured here.", "not measured", "–"),
    ],
)  # fmt: skip
def test_results_are_read_from_docstrings(tmp_path, details, result, time):
    file = tmp_path / "one.py"
    code = "config = Config(model=M(), transform=Images())"
    file.write_text(f'"""A model.\n\npython train.py\n\n{details}\n"""\n\n{code}\n')
    config = extension("config_pages").read_config(file)
    assert (config.result, config.time) == (result, time)
    assert (config.summary, config.section, config.code) == ("A model", "Images", code)


def test_a_config_without_a_result_is_an_error(tmp_path):
    file = tmp_path / "one.py"
    file.write_text('"""A model.\n\npython train.py\n\nFast.\n"""\nConfig(transform=Text())\n')
    config = extension("config_pages").read_config(file)
    with pytest.raises(ValueError, match="one.py has no result"):
        _ = config.result


def test_the_repository_is_that_of_the_metadata(monkeypatch):
    links = extension("links")
    metadata = Message()
    monkeypatch.setattr(links.metadata, "metadata", lambda _: metadata)
    assert links.repository() is None
    metadata["Project-URL"] = "Documentation, https://example.com/docs"
    metadata["Project-URL"] = "Repository, https://example.com/code/"
    assert links.repository() == "https://example.com/code"


def build_pages(folder, project_url, texts):
    """Builds Markdown pages with the extension `links`, and flaxdl's metadata as given."""
    metadata = folder / "path" / "flaxdl-1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: flaxdl\nVersion: 1\n{project_url}\n")
    source = folder / "source"
    source.mkdir()
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(DOCS / 'extensions')!r})\n"
        "extensions = ['myst_parser', 'links']\n"
    )
    for name, text in texts.items():
        (source / name).write_text(f"---\norphan: true\n---\n# {name}\n\n{text}\n")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", str(source), str(folder / "built")]
    paths = os.pathsep.join([str(folder / "path"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("project_url", "security"),
    [
        ("", None),
        (
            "Project-URL: Repository, https://example.com/code",
            "https://example.com/code/blob/main/SECURITY.md",
        ),
    ],
)
def test_links_to_files_of_the_repository(tmp_path, project_url, security):
    text = "[A](CHANGELOG.md) [B](SECURITY.md) [C](docs/changelog.md) [D](../README.md)"
    done = build_pages(tmp_path, project_url, {"index.md": text, "changelog.md": "Changes."})
    assert done.returncode == 0, done.stderr
    built = (tmp_path / "built" / "index.html").read_text()
    found = re.findall(r'<a class="reference [^"]*" href="([^"]*)">(?:<span[^>]*>)*([A-D])<', built)
    links = {letter: link for link, letter in found}
    assert links.pop("B", None) == security
    assert links == {"A": "changelog.html", "C": "changelog.html", "D": "#"}
    assert re.search(r"\bB\b", re.sub(r"<[^>]+>", "", built))


def test_a_link_to_a_missing_file_is_a_warning(tmp_path):
    done = build_pages(tmp_path, "", {"index.md": "[A](ABSENT.md)", "changelog.md": ""})
    assert done.returncode != 0
    assert "ABSENT.md" in done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_pages_work_from_files_and_on_phones(site):
    from playwright.sync_api import sync_playwright

    requests, errors = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        for name in PAGES:
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, name
        page.goto(f"{(site / 'search.html').as_uri()}?q=LSTM")
        page.wait_for_selector("#search-results li a")
        assert "flaxdl.layers.LSTM" in page.inner_text("#search-results")
        browser.close()
    assert not errors
    assert {urlsplit(url).scheme for url in requests} <= {"file", "data"}

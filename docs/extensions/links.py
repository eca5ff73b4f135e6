"""Links from names in backticks to the API, and from paths of the repository to pages.

`load_weights`, `Config.batch_size`, `flaxdl/models/resnet.py` and `digits_cnn` become links
wherever they stand in backticks, in docstrings as in the guides; all else stays code.
"""

import importlib
import inspect
import posixpath
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# A name is documented in the first of these packages that exports it.
PACKAGES = (
    "flaxdl.training.writers",
    "flaxdl.training",
    "flaxdl.weights",
    "flaxdl.layers",
    "flaxdl.models",
    "flaxdl.data",
    "flaxdl.ops",
    "flaxdl.pretrained",
    "flaxdl",
)


def public_names(package: str) -> list[str]:
    """Returns the names that a package or module exports."""
    module = importlib.import_module(package)
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == package and not name.startswith("_")
    ]


HOMES: dict[str, str] = {}
for _package in PACKAGES:
    for _name in public_names(_package):
        HOMES.setdefault(_name, f"{_package}.{_name}")


def repository() -> str | None:
    """Returns the URL of the repository from the metadata of the package, without a final slash."""
    for entry in metadata.metadata("flaxdl").get_all("Project-URL") or ():
        label, _, url = entry.partition(", ")
        if label == "Repository":
            return url.rstrip("/")
    return None


class Elsewhere(SphinxDirective):
    """Lists names that a package exports too, with links to where they are documented."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Creates the list, in which each name has the anchor that it would have in the package."""
        package = self.env.ref_context["py:module"]
        module = importlib.import_module(package)
        domain = cast(PythonDomain, self.env.get_domain("py"))
        items = nodes.bullet_list()
        for name in self.arguments[0].split():
            anchor = f"{package}.{name}"
            domain.note_object(anchor, "data", anchor, aliased=True, location=self.get_location())
            summary = (inspect.getdoc(getattr(module, name)) or "").partition("\n\n")[0]
            text, _ = self.parse_inline(f"`{name}`: {' '.join(summary.split())}")
            items += nodes.list_item("", nodes.paragraph("", "", *text), ids=[anchor])
        return [items]


class LinkTransform(SphinxPostTransform):
    """Resolves the links, before MyST and Sphinx resolve all others."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        """Replaces literals and links to files that are not part of the documentation."""
        for literal in list(self.document.findall(nodes.literal)):
            if not _is_inside(literal, nodes.reference, nodes.title, addnodes.pending_xref):
                self._replace(literal, self._object(literal.astext(), literal))
                self._replace(literal, self._page(literal.astext(), literal))
        for kind in (addnodes.pending_xref, addnodes.download_reference):
            for link in list(self.document.findall(kind)):
                if link.get("reftype") == "myst":
                    self._resolve(link)

    def _replace(self, node: nodes.Element, reference: nodes.Node | None) -> None:
        if reference is not None and node.parent is not None:
            node.replace_self(reference)

    def _object(self, text: str, literal: nodes.Element) -> nodes.Node | None:
        """Returns a link to a public object, if the text is the name of one."""
        name = text.removesuffix("()")
        first, _, member = name.partition(".")
        is_word = name.islower() and "_" not in name and not member and name == text
        if not is_word and first in HOMES:  # a single word is often a plain word: `train`
            name = f"{HOMES[first]}.{member}".rstrip(".")
        objects = cast(PythonDomain, self.env.get_domain("py")).objects
        if name not in objects:  # perhaps a module without a page: its source
            return self._page(f"{text.replace('.', '/')}.py", literal) if "." in text else None
        if "." not in name and objects[name].objtype != "module":
            return None
        entry = objects[name]
        return self._link(entry.docname, entry.node_id, literal.deepcopy())

    def _page(self, path: str, content: nodes.Element) -> nodes.Node | None:
        """Returns a link to the page of a file in the repository, if there is one."""
        path = path.rstrip("/")
        if path.startswith("docs/") and path.endswith(".md"):
            docname = path.removeprefix("docs/").removesuffix(".md")
        else:
            docname = {
                "README.md": "index",
                "CHANGELOG.md": "changelog",
                "CONTRIBUTING.md": "contributing",
                "notebooks/quickstart.ipynb": "notebook",
                "configs": "configs",
            }.get(path, "")
        if docname in self.env.all_docs:
            return self._link(docname, "", content.deepcopy())
        name = path.removeprefix("configs/").removesuffix(".py")
        if (ROOT / "configs" / f"{name}.py").exists() and "configs" in self.env.all_docs:
            return self._link("configs", nodes.make_id(name), content.deepcopy())
        module = path.removesuffix(".py").replace("/", ".")
        if path.endswith(".py") and getattr(self.env, "_viewcode_modules", {}).get(module):
            return self._link(f"_modules/{module.replace('.', '/')}", "", content.deepcopy())
        return None

    def _resolve(self, link: nodes.Element) -> None:
        """Resolves a Markdown link to a file of the repository that is not a page of docs/."""
        path = self._path(link)
        if path is None:
            return
        content = nodes.inline("", "", *[child.deepcopy() for child in link.children])
        reference = self._page(path.relative_to(ROOT).as_posix(), content)
        if reference is None and (url := repository()) is not None:
            kind = "tree" if path.is_dir() else "blob"
            target = f"{url}/{kind}/main/{path.relative_to(ROOT).as_posix()}"
            reference = nodes.reference("", "", content, refuri=target)
        if reference is not None or isinstance(link, addnodes.pending_xref):
            link.replace_self(reference or content)

    def _path(self, link: nodes.Element) -> Path | None:
        """Returns the file that a link leads to, if it is in the repository and not a page."""
        target = link["reftarget"].partition("#")[0]
        if link.get("refdomain") == "doc":  # MyST has removed the suffix
            if target in self.env.all_docs:
                return None
            candidates = [Path(target + suffix) for suffix in self.config.source_suffix]
        else:
            # Links in included files, such as CHANGELOG.md, are relative to the root.
            here = DOCS / posixpath.dirname(self.env.docname)
            candidates = [folder / target for folder in (here, ROOT) if target]
        found = [path.resolve() for path in candidates if path.exists()]
        return next((path for path in found if path.is_relative_to(ROOT)), None)

    def _link(self, docname: str, anchor: str, content: nodes.Element) -> nodes.Node:
        builder = self.env.app.builder
        return make_refnode(builder, self.env.docname, docname, anchor, content)


def _add_defined_names(app: Sphinx, document: nodes.document) -> None:
    """Gives each object a second anchor: its name in the module that defines it.

    The pages of the source link back to it.
    """
    for signature in document.findall(addnodes.desc_signature):
        package, name = signature.get("module"), signature.get("fullname")
        found = getattr(sys.modules.get(package), (name or "").partition(".")[0], None)
        defined = f"{getattr(found, '__module__', package)}.{name}"
        if defined.startswith("flaxdl.") and defined not in signature["ids"]:
            signature["ids"].append(defined)


def _link_back_to_defined_names(app: Sphinx, env: BuildEnvironment) -> None:
    modules: dict[str, Any] = getattr(env, "_viewcode_modules", {})
    for module, entry in modules.items():
        if entry:
            modules[module] = (*entry[:3], module)


def _is_inside(node: nodes.Node, *kinds: type[nodes.Node]) -> bool:
    while node.parent is not None:
        node = node.parent
        if isinstance(node, kinds):
            return True
    return False


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds the directive, the transform and the anchors."""
    app.add_directive("elsewhere", Elsewhere)
    app.add_post_transform(LinkTransform)
    app.connect("doctree-read", _add_defined_names)
    app.connect("env-updated", _link_back_to_defined_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

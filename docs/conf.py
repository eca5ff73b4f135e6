"""Configuration of the documentation, which is built by `sphinx-build -W docs build/docs`."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

from links import repository

project = "flaxdl"
author = "the flaxdl contributors"
copyright = author
version = release = metadata.version("flaxdl")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "config_pages",
    "course_pages",
    "flax_modules",
    "links",
    "navigation",
]
nitpicky = True
nitpick_ignore_regex = [
    # Types of other packages; their documentation cannot be looked up without a network.
    (r"py:.*", r"(collections|flax|jax|nn|np|numpy|optax|orbax|pathlib|signal|typing)\..*"),
    (r"py:class", r"datetime|Figure|Tokenizer"),
    # Internal types of public objects.
    (
        r"py:class",
        r"(.*\.)?((Evaluation|Metric)Sums|Average|LossScale|Placement|SkippedExamples|"
        r"Training(Run|Session))",
    ),
    (r"py:class", r"Better|Examples|Initializer|Parallel"),
]

autodoc_default_options = {
    "members": True,
    "special-members": "__call__",
    "exclude-members": "setup",
}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 88
python_trailing_comma_in_multi_line_signatures = False
default_role = "literal"

nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "flaxdl"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # would fetch pages, which browsers refuse for files
pygments_dark_style = "a11y-dark"
if (url := repository()) is not None:
    html_theme_options = {
        "source_edit_link": f"{url}/edit/main/docs/{{filename}}",
        "top_of_page_buttons": ["edit"],
    }

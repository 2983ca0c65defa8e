"""The site: make site. Its pages are the Markdown files and notebooks of this repository as they
are, and the docstrings; here stands only how Sphinx reads them.
"""
import re
import sys
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parent))   # where Sphinx looks for conf.notebook
project, author, language = "minattn", "the authors of minattn", "en"
html_title = "minattn"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.apidoc", "sphinx-mathjax-offline"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "lessons/*.md", "lessons/*.ipynb",
                    "results/**/table.md", "build/api/*.rst"]
# tables of results have no title of their own and are reached by links
suppress_warnings = ["myst.header", "toc.not_included"]
highlight_language = "text"                      # of a block that names none
html_theme = "furo"
html_show_sphinx = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"                        # the notebooks have their outputs
nb_custom_formats = {".ipynb": ["conf.notebook", {}, False]}

apidoc_modules = [{"path": "../minattn", "destination": "build/api", "separate_modules": True,
                   "module_first": True, "exclude_patterns": ["**/__main__.py"]}]
autodoc_mock_imports = ["torch", "jax", "onnx", "onnxruntime", "distributed", "bokeh"]
autodoc_default_options = {"ignore-module-all": True}       # each function where it is defined
autodoc_member_order = "bysource"

# in the order of the tables of lessons/README.md, which is the order to read them in
_index = (Path(__file__).parents[1] / "lessons/README.md").read_text(encoding="utf-8")
LESSONS = [f"lessons/{name}" for name in re.findall(r"\((\d\d_\w+)\.ipynb\)", _index)]
CONTENTS = {"Lessons": ["lessons/README", "lessons/NOTATION", *LESSONS],
            "Pages": ["docs/README", "docs/*"],
            "Reference": ["build/api/modules", "CHANGELOG", "CONTRIBUTING"]}


def notebook(text):
    """A notebook's text -> what Sphinx shows: figures described, the code that draws them folded"""
    found = nbformat.reads(text, as_version=4)
    for cell in found.cells:
        if "plot" in cell.metadata.get("tags", []):
            cell.metadata["tags"].append("hide-input")
        for output in cell.get("outputs", []):
            if alt := output.get("metadata", {}).get("alt"):
                cell.metadata["mystnb"] = {"image": {"alt": alt}}
    return found


def add_contents(app, name, source):
    """The front page is the README; the table of contents beside every page comes from here."""
    if name == root_doc:
        for caption, pages in CONTENTS.items():
            source[0] += "\n".join(["", "```{toctree}", ":hidden:", ":glob:",
                                    f":caption: {caption}", *pages, "```", ""])


def as_it_stands(app, what, name, thing, options, lines):
    """Docstrings are plain text with formulas and tables of shapes, not reStructuredText."""
    if any(lines):
        lines[:] = ["::", "", *("    " + line for line in lines), ""]


def setup(app):
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", as_it_stands)

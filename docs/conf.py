"""Sphinx: MyST pages, notebooks executed at build time, reference from the docstrings."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import bnengine
from docutils import nodes

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "bnengine"
author = "the bnengine developers"
project_copyright = author
version = release = bnengine.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "mathml"]
html_math_renderer = "mathml"
exclude_patterns = ["_build", "jupyter_execute", "cuda_on_paper.md"]  # the last is part of cuda.md

# Pages
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Notebooks: executed whenever they are read, so that no number outlives the code that gave it (see noxfile.py).
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_render_markdown_format = "myst"  # tables in outputs
nb_execution_in_temp = True  # pages write files
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # pages call bnengine

os.environ["REPOSITORY"] = str(Path(__file__).parents[1])  # pages read benchmarks/results

# Reference
default_role = "py:obj"  # docstrings write `batch_norm` for a name
autosummary_generate = False  # a page for a topic, not for a name
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections say the types in words
numpydoc_show_class_members = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = f"bnengine {release}"
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}


def tidied(app, what, name, obj, options, lines):
    """Drop the docstring that namedtuple gives a field which has none; `.name` is a field, not a link to any `name`."""
    if any(line.startswith("Alias for field number") for line in lines):
        lines.clear()
    lines[:] = [re.sub(r"(?<!`)`(\.\w+)`(?!`)", r"``\1``", line) for line in lines]


def drop_magic(app, doctree):
    """Show what a cell gives to the shell, without the line that tells IPython to do so."""
    for block in doctree.findall(nodes.literal_block):
        if block.astext().startswith("%%sh\n"):
            block.children[:] = [nodes.Text(block.astext().removeprefix("%%sh\n"))]
            block["language"] = "sh"


def setup(app):
    app.connect("autodoc-process-docstring", tidied)
    app.connect("doctree-read", drop_magic)

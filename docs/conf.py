"""Sphinx: the API site of Riffle. Built by scripts/docs.sh, with the repository's root as the source folder."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python"))

project = "Riffle"
author = "The Riffle authors"
copyright = "The Riffle authors. Apache License 2.0"  # noqa: A001: Sphinx's name
version = ".".join(re.findall(r"VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", (ROOT / "include/riffle/version.h").read_text()))
release = version

root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/api/*.md",
    "docs/lab/*.md",
    "engine/README.md",
]
exclude_patterns = ["build*", ".venv*", ".deps", "fuzz"]  # not walked through
extensions = ["breathe", "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

breathe_projects = {"riffle": str(ROOT / "build/docs/doxygen/xml")}
breathe_default_project = "riffle"

# The docstrings are in Python files; what they call need not be built to read them.
autodoc_mock_imports = ["riffle._core"]
autodoc_typehints = "none"
autodoc_preserve_defaults = True

myst_heading_anchors = 3
# Links to sources and folders are no pages; scripts/docs_check.py says whether they exist.
suppress_warnings = ["myst.xref_missing", "myst.header", "misc.highlighting_failure"]

html_theme = "furo"
html_title = f"Riffle {version}"
html_static_path = []

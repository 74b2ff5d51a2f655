#!/usr/bin/env python3
"""Checks the pages against the sources: files that pages name in `backticks` exist, and so do the targets of relative links.

    scripts/docs_check.py
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOP = ["README.md", "HACKING.md", "CONTRIBUTING.md", "SECURITY.md", "engine/README.md"]
CODE = re.compile(r"^```.*?^```$", re.M | re.S)
NAMED = re.compile(r"`([\w./-]+)`")
PLACEHOLDER = re.compile(r"(^|/)[A-Z]+($|/|_)")  # src/ROOM
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]*)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.M)


def top_folders():
    """What a path of the repository begins with; other words with a slash are not paths."""
    return {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(("build", "."))}


def anchors(page):
    """The fragments that GitHub gives to the headings of a page."""
    found = set()
    for heading in HEADING.findall(CODE.sub("", page.read_text())):
        words = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return found


def broken_references(page):
    text = CODE.sub("", page.read_text())
    for name in NAMED.findall(text):
        generated = name.startswith(("build/", "dist/", ".venv/", ".deps/"))
        if PLACEHOLDER.search(name):
            continue
        if "/" in name and name.split("/")[0] in top_folders() and not generated and not (ROOT / name).exists():
            yield f"names {name}, which does not exist"
    for target in LINK.findall(text):
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"links to {target}, which does not exist"
        elif fragment and file.suffix == ".md" and fragment not in anchors(file):
            yield f"links to {target}, but no heading of that page is called so"


def main():
    pages = [ROOT / name for name in TOP if (ROOT / name).exists()] + sorted((ROOT / "docs").rglob("*.md"))
    found = [f"{page.relative_to(ROOT)}: {problem}" for page in pages for problem in broken_references(page)]
    sys.exit("\n".join(found) if found else 0)


if __name__ == "__main__":
    main()

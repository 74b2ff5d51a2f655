#!/usr/bin/env python3
"""Writes every C++ block of README.md and docs/*.md to a folder: PAGE_N.cc, a whole program, and PAGE_N.txt, what it must print.

    scripts/cpp_blocks.py FOLDER

A block of output, ``` without a language, right after a block of C++ is what the program must print; without one it must only succeed.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```cpp\n(.*?)^```\n(?:```\n(.*?)^```$)?", re.M | re.S)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    count = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for number, (code, printed) in enumerate(BLOCK.findall(page.read_text()), 1):
            name = f"{page.stem.lower()}_{number}"
            (folder / f"{name}.cc").write_text(code)
            if printed:
                (folder / f"{name}.txt").write_text(printed)
            count += 1
    if count == 0:
        sys.exit("cpp_blocks.py: no page has a block of C++")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""A filter for Doxygen: the headers' own comments, // before a declaration and behind a member, as comments that it reads.

    docs/doxygen_comments.py include/riffle/topk.h

The comment at the top becomes that of the file. Indented lines, which name shapes and are lined up by hand, stay as they are.
"""

import re
import sys

BEHIND = re.compile(r"^(?P<code>.*\S)(?P<space>\s+)// (?P<text>.*)$")
ALONE = re.compile(r"^(?P<indent>\s*)//(?P<text>.*)$")


def filtered(lines):
    lines = list(lines)
    at = 0
    while at < len(lines):
        block = []
        while at < len(lines) and (alone := ALONE.match(lines[at])):
            block.append(alone["text"])
            indent = alone["indent"]
            at += 1
        if block:
            if at == len(block):
                yield "/// \\file"
            yield from (f"{indent}///{text}" for text in with_code(block))
        elif behind := BEHIND.match(lines[at]):
            column = lines[at].index("// ", len(behind["code"]))
            text = [behind["text"]]
            at += 1
            while at < len(lines) and (alone := ALONE.match(lines[at])) and len(alone["indent"]) == column:
                text.append(alone["text"].strip())
                at += 1
            yield f"{behind['code']}  ///< {escape(' '.join(text))}"
        else:
            yield lines[at]
            at += 1


def with_code(block):
    """Escaped lines; those that are indented by more than one space between commands that leave them as they are."""
    code = False
    for text in block:
        if text.startswith("  ") != code:
            code = not code
            yield " \\code{.unparsed}" if code else " \\endcode"
        yield text if code else escape(text)
    if code:
        yield " \\endcode"


def escape(text):
    """Doxygen's commands and HTML are no part of the headers' language."""
    return re.sub(r"([@\\<>#&])", r"\\\1", text)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf8") as f:
        print("\n".join(filtered(f.read().splitlines())))

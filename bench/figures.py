#!/usr/bin/env python3
"""Runs the commands of docs/performance.md again and puts what they print in the place of what they printed.

    bench/figures.py                      every `riffle bench ...` that stands before a block of output
    bench/figures.py --only linear        the commands that contain a text
    bench/figures.py --runs 3             the middle one of three runs, by the sum of its times

Let nothing else run meanwhile. Sentences and tables beside a block are for you to hold against it.
"""

import argparse
import os
import pathlib
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
# A paragraph that begins with the command and ends before a block, and the block.
BLOCK = re.compile(r"(?<=^`)((?:\w+=\w+ )?riffle bench [^`]+)(`(?:(?!\n\n|```).)*?:\n```\n)(.*?)(?=^```$)", re.M | re.S)
UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def run(command):
    words = shlex.split(command)
    env = dict(os.environ)
    while "=" in words[0]:
        name, value = words.pop(0).split("=", 1)
        env[name] = value
    words[0] = str(ROOT / "build" / "release" / words[0])
    return subprocess.run(words, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


def seconds(output):
    """The sum of the first time in each line."""
    times = (re.search(r"\b([\d.]+) (ns|us|ms|s)\b", line) for line in output.splitlines())
    return sum(float(m[1]) * UNITS[m[2]] for m in times if m)


def middle_run(command, runs):
    outputs = []
    for i in range(runs):
        print(f"{command}  ({i + 1} of {runs})", file=sys.stderr, flush=True)
        outputs.append(run(command))
    return sorted(outputs, key=seconds)[len(outputs) // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="commands that contain TEXT")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="runs of each command; the middle one is kept")
    args = parser.parse_args()
    page = PAGE.read_text()
    commands = [command for command, _, _ in BLOCK.findall(page) if args.only in command]
    if not commands or args.runs < 1:
        parser.error(f"no command of {PAGE.relative_to(ROOT)} contains {args.only!r}" if args.runs > 0 else "--runs < 1")
    for command in commands:
        output = middle_run(command, args.runs)
        page = BLOCK.sub(lambda m: m[1] + m[2] + output if m[1] == command else m[0], page)  # noqa: B023
        PAGE.write_text(page)  # what is done is kept


if __name__ == "__main__":
    main()

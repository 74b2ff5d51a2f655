"""The programs of examples/ run, and check their own answers."""

import pathlib
import subprocess
import sys

import pytest

PROGRAMS = sorted((pathlib.Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_program(program):
    done = subprocess.run([sys.executable, "-P", program], capture_output=True, text=True, timeout=300, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_there_are_programs():
    assert len(PROGRAMS) >= 2

"""The pages are those of the sources, and the programs that say so notice when they are not."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def load(path):
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("check", ["scripts/architecture.py --check", "bench/figures.py --check", "scripts/docs_check.py"])
def test_pages_are_current(check):
    done = subprocess.run([sys.executable, *check.split()], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def tree(tmp_path):
    """Sources of three rooms: b and c include a."""
    for name, text in {
        "include/riffle/a.h": "",
        "src/b/b.cc": '#include "riffle/a.h"\n',
        "src/c/c.h": "",
        "src/c/c.cc": '#include "c/c.h"\n  #  include <riffle/a.h>\n',
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def architecture(tree):
    program = load("scripts/architecture.py")
    program.ROOT = tree
    return program


def test_architecture_has_the_includes_between_rooms(tree):
    program = architecture(tree)
    assert program.find_rooms() == ["src/b", "src/c", "include/riffle"]
    assert sorted(program.find_arrows(program.find_rooms())) == [("src/b", "include/riffle"), ("src/c", "include/riffle")]


def test_architecture_leaves_out_what_follows(tree):
    (tree / "src/b/b.cc").write_text('#include "riffle/a.h"\n#include "c/c.h"\n')
    program = architecture(tree)
    arrows = program.find_arrows(program.find_rooms())
    assert ("src/b", "include/riffle") in arrows
    assert program.leave_out_implied(arrows) == [("src/b", "src/c"), ("src/c", "include/riffle")]


def test_architecture_changes_with_an_include_and_with_nothing_else(tree):
    before = architecture(tree).draw()
    (tree / "src/b/b.cc").write_text('// a comment\n#include "riffle/a.h"\n')
    assert architecture(tree).draw() == before
    (tree / "src/b/b.cc").write_text('#include "c/c.h"\n')
    assert architecture(tree).draw() != before


def test_architecture_refuses_a_circle(tree):
    (tree / "include/riffle/a.h").write_text('#include "c/c.h"\n')
    with pytest.raises(SystemExit, match="src/c -> include/riffle -> src/c|include/riffle -> src/c -> include/riffle"):
        architecture(tree).draw()


def test_docs_check_names_what_does_not_exist(tree):
    program = load("scripts/docs_check.py")
    program.ROOT = tree
    page = tree / "page.md"
    page.write_text(
        "# A heading: `code`\n`src/b/b.cc` `src/b/gone.cc` `not/a/path` `src/ROOM` [x](src/c/c.h) [y](gone.md) [z](#a-heading-code)"
        " [w](#gone) [v](https://example.org/)\n```\n`src/also/gone.cc`\n```\n"
    )
    assert list(program.broken_references(page)) == [
        "names src/b/gone.cc, which does not exist",
        "links to gone.md, which does not exist",
        "links to #gone, but no heading of that page is called so",
    ]


def test_figures_reads_every_kind_of_result(tmp_path):
    program = load("bench/figures.py")
    program.RESULTS = tmp_path
    (tmp_path / "bench.txt").write_text(
        "$ riffle bench x\nriffle 0.1.0\n\n"
        "name    shape      k  type pages        time  read   GB/s  share  GFLOP/s     peak   share\n"
        "one  32 x 201088  64  bf16  80% 2M 105.616 ms  2.5 us  133.4    71%  325      466     70%\n"
    )
    (tmp_path / "table.md").write_text("| case | riffle | faiss |\n|---|---|---|\n| one | 0.5 ms | 2 ms, 1 GB/s |\n")
    one = program.read_cases("bench.txt")["one"]
    assert (one["shape"], one["pages"], one["time"], one["share"], one["peak share"]) == (
        "32 x 201088", "80% 2M", "105.616 ms", "71%", "70%",
    )  # fmt: skip
    other = program.read_cases("table.md")["one"]
    assert program.ratio(other["faiss"], other["riffle"]) == "4 x"
    assert program.ratio("- (no bfloat16)", "0.5 ms") == "no bfloat16"
    page = "a <!--= bench.txt one time -->old<!--/--> b\n"
    assert program.render(page) == "a <!--= bench.txt one time -->105.616 ms<!--/--> b\n"


def test_figures_fails_on_a_case_that_is_gone(tmp_path):
    program = load("bench/figures.py")
    program.RESULTS = tmp_path
    (tmp_path / "bench.txt").write_text("name  time\none  1 us\n")
    with pytest.raises(KeyError, match="two"):
        program.render("<!--= bench.txt two time -->old<!--/-->")

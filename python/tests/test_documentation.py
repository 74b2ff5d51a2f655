"""Signatures and examples are those that are shipped."""

import ast
import doctest
import importlib.metadata
import inspect
import pathlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import riffle

FOLDER = pathlib.Path(riffle.__file__).parent
STUB = ast.parse((FOLDER / "_core.pyi").read_text())  # of the extension; public signatures are in riffle/*.py alone
FUNCTIONS = [name for name in riffle.__all__ if inspect.isfunction(getattr(riffle, name))]


def stub_of(body):
    return {node.name: node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def taken(function):
    """How many arguments a function of the extension takes, by its own signature."""
    inside = function.__doc__.split("(", 1)[1].split(") ->")[0] if function.__doc__ else ""
    return len([part for part in inside.split(", ") if part not in ("", "self", "/")])


@pytest.mark.parametrize("name", sorted(stub_of(STUB.body)))
def test_stub(name):
    node, actual = stub_of(STUB.body)[name], getattr(riffle._core, name)
    if isinstance(node, ast.FunctionDef):
        assert len(node.args.posonlyargs) == taken(actual) and not node.args.args
    elif name == "KvCache":
        methods = stub_of(node.body)
        assert set(methods) - {"__init__"} == {method for method in vars(actual) if not method.startswith("_")}
        for method, stub in methods.items():
            assert len(stub.args.posonlyargs + stub.args.args) - 1 == taken(getattr(actual, method)), method


def test_stub_is_complete():
    said = set(stub_of(STUB.body)) | {n.target.id for n in STUB.body if isinstance(n, ast.AnnAssign)}
    assert {name for name in vars(riffle._core) if not name.startswith("__")} | {"__version__"} <= said
    assert said - {"Array", "xla_handlers"} <= set(vars(riffle._core))


def test_signatures_are_typed():
    for name in FUNCTIONS:
        signature = inspect.signature(getattr(riffle, name))
        assert signature.return_annotation is not inspect.Signature.empty, name
        assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values()), name
    assert riffle.TopK._fields == ("values", "indices")
    assert riffle.TopKStats._fields == ("kth_value", "ties_at_kth", "elements_examined", "depth")


def test_names():
    for name in set(riffle.__all__) - {"__version__"}:
        public = getattr(riffle, name)
        assert public.__module__ == "riffle" and public.__doc__, name


def test_bfloat16_is_there_after_a_plain_install():
    """The page pool is bfloat16 by default, which NumPy has from ml_dtypes."""
    needed = [text for text in (importlib.metadata.requires("riffle-llm") or ()) if "extra ==" not in text]
    assert any(text.startswith("ml_dtypes") or text.startswith("ml-dtypes") for text in needed), needed


def test_typed():
    assert (FOLDER / "py.typed").exists()


def test_results_can_be_pickled():
    top = riffle.top_k(np.arange(6, dtype=np.float32).reshape(2, 3), 2)
    copy = pickle.loads(pickle.dumps(top))
    assert type(copy) is riffle.TopK and copy.indices.tolist() == [[2, 1], [2, 1]]


def test_examples():
    result = doctest.testmod(riffle, optionflags=doctest.NORMALIZE_WHITESPACE)  # of all that is public
    assert result.failed == 0 and result.attempted >= 20


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_an_example(name):
    if not name.startswith("set_"):
        assert ">>>" in inspect.getdoc(getattr(riffle, name))


# ---- The pages: README.md and docs/*.md. Blocks of a page run in order, as one program. A comment `<!-- python ... -->` holds
# what a reader need not see. "python not-run" marks a block that needs another library: it is only parsed.

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(?:```python|<!-- python)\n(.*?)^(?:```|-->)$", re.M | re.S)
NOT_RUN = re.compile(r"^```python not-run\n(.*?)^```$", re.M | re.S)
OTHERS = ("torch", "jax", "transformers")


def program(page):
    """The page with everything but its code blanked, so that line numbers are the page's."""
    code, at = "", 0
    text = page.read_text()
    for block in BLOCK.finditer(text):
        if not block[1].startswith(">>>"):
            code += "\n" * text.count("\n", at, block.start(1)) + block[1]
            at = block.end(1)
    return code


def with_blocks(pages, found):
    return [pytest.param(page, id=page.name) for page in pages if found(page)]


@pytest.mark.parametrize("page", with_blocks(PAGES, lambda page: program(page)))
def test_blocks_run(page):
    code = program(page)
    for name in OTHERS:
        if f"riffle.{name}" in code:
            pytest.importorskip(name)
    run = "import sys; exec(compile(sys.stdin.read(), sys.argv[1], 'exec'), {'__name__': '__main__'})"
    done = subprocess.run(
        [sys.executable, "-P", "-c", run, str(page)], input=code, text=True, capture_output=True, timeout=300, cwd="/"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", with_blocks(PAGES, lambda page: NOT_RUN.search(page.read_text())))
def test_blocks_that_are_not_run_parse(page):
    for block in NOT_RUN.findall(page.read_text()):
        ast.parse(block)


@pytest.mark.parametrize("page", with_blocks(PAGES, lambda page: ">>> " in page.read_text()))
def test_sessions(page):
    result = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 5 and result.failed == 0


def test_pages_have_blocks():
    pages = {page.name for page in PAGES if program(page)}
    assert pages >= {"README.md", "migration.md", "python.md"}

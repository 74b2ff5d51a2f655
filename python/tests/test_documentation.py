"""Signatures and examples are those that are shipped."""

import ast
import doctest
import inspect
import pathlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import riffle

STUB = ast.parse((pathlib.Path(riffle.__file__).parent / "__init__.pyi").read_text())
FUNCTIONS = [
    pytest.param(getattr(riffle, owner, riffle) if owner else riffle, node, id=f"{owner}.{node.name}".lstrip("."))
    for owner, body in [("", STUB.body)] + [(n.name, n.body) for n in STUB.body if isinstance(n, ast.ClassDef)]
    for node in body
    if isinstance(node, ast.FunctionDef) and "property" not in map(ast.unparse, node.decorator_list)
]
TUPLES = [node for node in STUB.body if isinstance(node, ast.ClassDef) and "NamedTuple" in map(ast.unparse, node.bases)]


def parameters(node):
    """(name, kind, default, annotation) of each, as the stub has them."""
    args = node.args
    defaults = [None] * (len(args.posonlyargs) + len(args.args) - len(args.defaults)) + args.defaults
    kinds = [(a, inspect.Parameter.POSITIONAL_ONLY) for a in args.posonlyargs]
    kinds += [(a, inspect.Parameter.POSITIONAL_OR_KEYWORD) for a in args.args]
    kinds = list(zip(kinds, defaults)) + [
        ((a, inspect.Parameter.KEYWORD_ONLY), default) for a, default in zip(args.kwonlyargs, args.kw_defaults)
    ]
    for (argument, kind), default in kinds:
        value = inspect.Parameter.empty if default is None else ast.literal_eval(default)
        yield argument.arg, kind, value, text(argument.annotation)


def text(annotation):
    """An annotation in one spelling: of an object, of the source, or none."""
    if annotation in (None, inspect.Parameter.empty):
        return ""
    return ast.unparse(annotation if isinstance(annotation, ast.AST) else ast.parse(annotation, mode="eval"))


@pytest.mark.parametrize("owner,node", FUNCTIONS)
def test_signatures(owner, node):
    signature = inspect.signature(getattr(owner, node.name))
    actual = [(p.name, p.kind, p.default, text(p.annotation)) for p in signature.parameters.values()]
    assert actual == list(parameters(node))
    assert text(signature.return_annotation) == text(node.returns)


@pytest.mark.parametrize("node", TUPLES, ids=lambda node: node.name)
def test_tuples(node):
    fields = [item.target.id for item in node.body if isinstance(item, ast.AnnAssign)]
    assert getattr(riffle, node.name)._fields == tuple(fields)


def test_names():
    stub = {n.name for n in STUB.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    assert stub | {"__version__"} == set(riffle.__all__)
    for name in stub:
        public = getattr(riffle, name)
        assert public.__module__ == "riffle" and public.__doc__, name


def test_typed():
    assert (pathlib.Path(riffle.__file__).parent / "py.typed").exists()


def test_results_can_be_pickled():
    top = riffle.top_k(np.arange(6, dtype=np.float32).reshape(2, 3), 2)
    copy = pickle.loads(pickle.dumps(top))
    assert type(copy) is riffle.TopK and copy.indices.tolist() == [[2, 1], [2, 1]]


def test_examples():
    result = doctest.testmod(riffle, optionflags=doctest.NORMALIZE_WHITESPACE)  # of all that is public
    assert result.failed == 0 and result.attempted >= 20


@pytest.mark.parametrize("name", [n.name for n in STUB.body if isinstance(n, ast.FunctionDef)])
def test_every_function_has_an_example(name):
    if not name.startswith("set_"):
        assert ">>>" in inspect.getdoc(getattr(riffle, name))


# ---- The pages: README.md and docs/*.md. Blocks of a page run in order, as one program. A comment `<!-- python ... -->` holds
# what a reader need not see. "python not-run" marks what needs another library: it must parse.

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

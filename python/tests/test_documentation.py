"""Signatures and examples are those that are shipped."""

import ast
import doctest
import inspect
import pathlib
import pickle

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


def test_readme():
    readme = pathlib.Path(__file__).parents[2] / "README.md"
    result = doctest.testfile(str(readme), module_relative=False)
    assert result.attempted > 5 and result.failed == 0

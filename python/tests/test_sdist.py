"""The source distribution of a checkout that people work in has the wheel's sources and nothing else."""

import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = ["CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", ".gitignore"]
FOLDERS = ["cmake", "include", "src", "python"]
# Files that scripts fetch and that a build needs.
BROUGHT = [
    ".deps/highway/LICENSE",
    ".deps/highway/hwy/highway.h",
    ".deps/highway/hwy/targets.cc",
    ".deps/highway/hwy/ops/set_macros-inl.h",
    ".deps/random123/include/Random123/philox.h",
    ".deps/random123/include/Random123/features/gccfeatures.h",
]
# What work leaves behind; each was part of an sdist once, or looks like what was.
LEFT_BEHIND = [
    ".venv/include/python3.11/Python.h",
    ".venv/lib/python3.11/site-packages/numpy/core/include/numpy/arrayobject.h",
    ".venv/lib/python3.11/site-packages/x/python/src/x.py",
    ".deps/highway/CMakeLists.txt",
    ".deps/highway/cmake/x.cmake",
    ".deps/highway/hwy/targets_test.cc",
    ".deps/highway/hwy/contrib/sort/vqsort.h",
    "build/release/src/libriffle.a",
    "build/python/python/_core.abi3.so",
    "build-mine/include/x.h",
    "dist/riffle-0.1.0.tar.gz",
    "notes/src/x.cc",
    "model.gguf",
    "logits.npy",
    "src/topk/__pycache__/x.pyc",
    "python/riffle/__pycache__/x.cpython-311.pyc",
    "python/riffle/_core.abi3.so",
    "bench/x.cc",
    "cli/main.cc",
    "tests/src/x.cc",
]


def test_sdist_of_a_checkout_in_use(tmp_path):
    pytest.importorskip("scikit_build_core")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, checkout / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    wanted = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()} - {".gitignore"}
    wanted.update(BROUGHT)
    for name in BROUGHT + LEFT_BEHIND:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("left behind")
    build = "import sys, scikit_build_core.build as b; print(b.build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=checkout, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert names - {"PKG-INFO", ".gitignore"} == wanted
    assert archive.stat().st_size < 2_000_000

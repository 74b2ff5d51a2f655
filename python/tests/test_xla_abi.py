"""The structures that riffle's handlers share with XLA are those of the installed jaxlib, member by member."""

import os
import pathlib
import shutil
import subprocess

import pytest

jaxlib = pytest.importorskip("jaxlib", reason="JAX is not installed")
ROOT = pathlib.Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_layout_is_that_of_jaxlib():
    include = pathlib.Path(jaxlib.__file__).parent / "include"
    if not (include / "xla/ffi/api/c_api.h").is_file():
        pytest.skip("this jaxlib has no header of XLA's foreign function interface")
    command = [COMPILER, "-std=c++20", "-fsyntax-only", "-isystem", include, "-I", ROOT / "python"]
    done = subprocess.run([*command, ROOT / "python/tests/xla_abi_check.cpp"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_the_comparison_notices_a_difference(tmp_path):
    include = pathlib.Path(jaxlib.__file__).parent / "include"
    if not (include / "xla/ffi/api/c_api.h").is_file():
        pytest.skip("this jaxlib has no header of XLA's foreign function interface")
    text = (ROOT / "python/xla_abi.h").read_text()
    for was, now in (("  int64_t rank;\n", "  int32_t rank;\n"), ("kF64 = 12", "kF64 = 13"), ("  void* context;\n", "")):
        assert text.count(was) == 1
        (tmp_path / "xla_abi.h").write_text(text.replace(was, now))
        command = [COMPILER, "-std=c++20", "-fsyntax-only", "-isystem", include, "-I", tmp_path]
        done = subprocess.run([*command, ROOT / "python/tests/xla_abi_check.cpp"], capture_output=True, text=True)
        assert "static assertion failed" in done.stderr, was

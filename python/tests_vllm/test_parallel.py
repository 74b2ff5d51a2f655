"""Tensor parallelism: two processes, and two hosts made of network namespaces, give the tokens of one process."""

import json
import os
import pathlib
import subprocess
import sys

import llama_case
import pytest

llama_case.in_one_process()
vllm = pytest.importorskip("vllm", reason="vLLM is not installed")

import generate_llama  # noqa: E402

TESTS = pathlib.Path(__file__).parent
TWO_HOSTS = TESTS.parents[1] / "scripts" / "two_hosts.sh"


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return generate_llama.tokens(vllm.LLM(llama_case.model(), **llama_case.ENGINE))


def run(command: list, **environment: str) -> subprocess.CompletedProcess:
    full = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", **environment}
    full.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
    return subprocess.run(command, env=full, cwd=TESTS, timeout=1800, capture_output=True, text=True)


def test_two_processes(tmp_path, expected):
    out = tmp_path / "tokens.json"
    done = run([sys.executable, TESTS / "generate_llama.py", llama_case.model(), out, "2"])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    result = json.loads(out.read_text())
    assert result["tokens"] == expected
    assert len(result["workers"]) == 2
    assert all("sampler" in parts and threads == 1 for parts, threads, _ in result["workers"])


def test_two_hosts(tmp_path, expected):
    if not TWO_HOSTS.exists():
        pytest.skip("scripts/two_hosts.sh is in the sources only")
    out = tmp_path / "tokens.json"
    generate = [sys.executable, TESTS / "generate_llama.py", llama_case.model(), out, "2"]
    done = run([TWO_HOSTS, *generate, "0", "--", *generate, "1"])
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    result = json.loads(out.read_text())
    assert result["tokens"] == expected
    assert [host for _, _, host in result["workers"]] == ["host0", "host1"]
    assert all("sampler" in parts for parts, _, _ in result["workers"])

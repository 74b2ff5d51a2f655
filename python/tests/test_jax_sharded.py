"""JAX arrays that several CPU devices hold: gathered, and results replicated over the same devices."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("jax", reason="JAX is not installed")

PROGRAM = """
import jax, numpy as np, riffle
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
assert jax.device_count() == 4
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("i", "j"))
plain = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
for dtype in ("float32", "bfloat16", "float16"):
    x = jax.numpy.asarray(plain, dtype)
    want = riffle.top_k(x, 3)
    least, stats = riffle.top_k(x, 3, largest=False, return_stats=True)
    token = riffle.sample(x, temperature=0.7, seed=3)
    for spec in (P("i"), P(None, "j"), P("i", "j"), P(("i", "j")), P()):
        sharding = NamedSharding(mesh, spec)
        shards = jax.device_put(x, sharding)
        got = riffle.top_k(shards, 3)
        for a, b in zip(got, want):
            assert isinstance(a, jax.Array) and a.dtype == b.dtype and len(a.devices()) == 4
            assert np.array_equal(np.asarray(a), np.asarray(b))
        jax.jit(lambda a, b: a.sum() + b.sum())(shards, got.values)  # one set of devices
        again, again_stats = riffle.top_k(shards, 3, largest=False, return_stats=True)
        assert np.array_equal(np.asarray(again.indices), np.asarray(least.indices))
        assert np.array_equal(np.asarray(again_stats.kth_value), np.asarray(stats.kth_value))
        heat = jax.device_put(np.full(4, 0.7, np.float32), NamedSharding(mesh, P("i")))
        for logits in (shards, x):
            assert np.array_equal(np.asarray(riffle.sample(logits, temperature=heat, seed=3)), np.asarray(token))
        product = riffle.linear(shards, shards)
        assert product.shape == (4, 4) and np.array_equal(np.asarray(product), np.asarray(riffle.linear(x, x)))
        assert np.array_equal(
            np.asarray(riffle.top_k_per_row(shards, np.zeros(4, np.int32), np.full(4, 9, np.int32), 2)),
            np.asarray(riffle.top_k_per_row(x, np.zeros(4, np.int32), np.full(4, 9, np.int32), 2)))
try:
    riffle.top_k(shards.astype(complex), 1)
    raise AssertionError("complex64 was taken")
except TypeError as error:
    assert "x has dtype complex64" in str(error)
print("end")
"""


def test_sharded_arrays():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == "end\n", result.stderr

"""What test_jax_distributed.py runs: riffle.jax's sharded calls on a mesh of four CPU devices, against the calls on the whole."""

import sys

import jax
import numpy as np
import pytest
import riffle
import riffle.jax
from attention_case import F32, Case
from frameworks import BFLOAT16, DTYPES, bits
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from reference import DISTRIBUTIONS, fill

DEVICES = 4
MESH = Mesh(np.array(jax.devices()), "d")


def on_mesh(function, *specs, mesh=MESH):
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False))


def replicas(array):
    """The array, after a check that every device has the same bits."""
    copies = [np.asarray(shard.data) for shard in array.addressable_shards]
    assert len(copies) == DEVICES and all((bits(copy) == bits(copies[0])).all() for copy in copies)
    return copies[0]


def check_top_k(x, k, axis=-1, size=None, axis_name="d", mesh=MESH):
    spec = [None] * x.ndim
    spec[axis] = axis_name
    call = on_mesh(lambda shard: riffle.jax.sharded_top_k(shard, k, axis_name, axis=axis, size=size), P(*spec), mesh=mesh)
    for got, want in zip(call(x), riffle.jax.top_k(x if size is None else np.take(x, range(size), axis), k, axis=axis)):
        want = np.asarray(want)
        assert got.dtype == want.dtype and (bits(replicas(got)) == bits(want)).all()


def top_k_of_every_distribution():
    for dtype in DTYPES:
        for name in DISTRIBUTIONS:
            check_top_k(fill(name, dtype, (3, 400)), 150)  # more than a shard has


def top_k_of_every_dtype():
    for code in "f8 i1 u1 i2 u2 i4 u4 i8 u8 ?".split():
        check_top_k(np.random.default_rng(0).integers(0, 2 if code == "?" else 9, (2, 80)).astype(code), 33)


def top_k_of_ties_across_shards():
    x = np.zeros((2, 4000), np.float32)
    x[:, ::7] = 1
    for k in (0, 1, 571, 572, 573, 4000):
        check_top_k(x, k)


def top_k_of_axes_padding_and_meshes():
    x = fill("few values", F32, (8, 5, 6))
    check_top_k(x, 5, axis=0)
    check_top_k(x, 8, axis=-3)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("i", "j"))
    check_top_k(fill("few values", F32, (3, 40)), 25, axis_name=("i", "j"), mesh=mesh)
    for dtype in (np.dtype(np.int8), *DTYPES):  # no padding comes out, not even of rows of the lowest values
        low = np.full((2, 48), -128 if dtype == np.int8 else -np.inf).astype(dtype)
        low[:, 40:] = 1
        for size in (1, 37, 40):
            check_top_k(low, size, size=size)
    check_top_k(fill("NaNs", F32, (3, 48)), 40, size=41)


def top_k_refuses():
    for text, options in ((r"k = 401 is not in 0..400", dict(k=401)), (r"k = 6 is not in 0..5", dict(k=6, size=5)),
                          (r"size = 401 is not in 0..400", dict(k=1, size=401)), (r"axis = 2 is not an axis", dict(k=1, axis=2))):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            on_mesh(lambda shard: riffle.jax.sharded_top_k(shard, axis_name="d", **options), P(None, "d"))(np.zeros((1, 400), np.float32))


def parts(case, owners):
    """Each device's pages, lengths and tables, stacked; owners[b] is the device of each key of a sequence."""
    stacks = []
    for device in range(DEVICES):
        part = Case([1], dim=case.k[0].shape[2], heads=(1, case.k[0].shape[1]))
        part.k, part.v = ([x[owner == device] for x, owner in zip(both, owners)] for both in (case.k, case.v))
        part.kv_lens = np.array([len(k) for k in part.k], np.int32)
        part.page(4, np.random.default_rng(device))
        stacks.append((part.keys.swapaxes(0, 1), part.values.swapaxes(0, 1), part.kv_lens, part.page_table))
    shapes = [np.max([x.shape for x in same], axis=0) for same in zip(*stacks)]
    pad = lambda x, shape: np.pad(x, [(0, b - a) for a, b in zip(x.shape, shape)], mode="constant")
    return [np.stack([pad(x, shape) for x in same]) for same, shape in zip(zip(*stacks), shapes)]


def attention_over_parts_equals_unsharded():
    rng = np.random.default_rng(3)
    for dtypes in ((F32, F32), (BFLOAT16, BFLOAT16), (F32, BFLOAT16)):
        case = Case([50, 1, 0, 333, 7], dtypes=dtypes)
        cuts = ([np.arange(n) * DEVICES // max(n, 1) for n in case.kv_lens], [np.arange(n) % DEVICES for n in case.kv_lens],
                [rng.integers(0, DEVICES, n) for n in case.kv_lens])  # fmt: skip
        for owners in cuts:
            keys, values, lengths, tables = parts(case, owners)

            def attend(q, keys, values, lengths, tables, **options):
                return riffle.jax.sharded_paged_attention(q, keys[0], values[0], lengths[0], tables[0], "d", return_lse=True, **options)

            for options, same in ((dict(sm_scale=0.2), dict(scale=0.2)), (dict(attn_logits_soft_cap=3.0), dict(scale=1, soft_cap=3.0))):
                call = on_mesh(lambda *operands: attend(*operands, **options), P(), *[P("d")] * 4)
                out, lse = (replicas(x) for x in call(case.q, keys, values, lengths, tables))
                expected, expected_lse, magnitude = case.reference(**same)
                rounding = 2.0**-8 if case.q.dtype == BFLOAT16 else 0
                assert out.dtype == case.q.dtype and lse.dtype == np.float32
                assert (np.abs(out.astype(np.float64) - expected) <= 2e-5 * (1 + magnitude) + rounding * np.abs(expected)).all()
                np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=2e-5)


CHECKS = [top_k_of_every_distribution, top_k_of_every_dtype, top_k_of_ties_across_shards, top_k_of_axes_padding_and_meshes, top_k_refuses,
          attention_over_parts_equals_unsharded]  # fmt: skip

if __name__ == "__main__":
    assert jax.device_count() == DEVICES
    jax.config.update("jax_enable_x64", True)
    riffle.set_num_threads(1)
    for check in CHECKS:
        check()
        print(check.__name__, file=sys.stdout, flush=True)

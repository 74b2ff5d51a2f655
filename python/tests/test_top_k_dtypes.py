"""top-k of float64, of all integers and of bool; payload ids; index order where a range is short."""

import importlib

import numpy as np
import pytest
import riffle

INTEGERS = [np.dtype(code) for code in "i1 u1 i2 u2 i4 u4 i8 u8".split()]
DTYPES = [np.dtype(np.float64), *INTEGERS, np.dtype(bool)]


def rows(dtype, shape, seed=0):
    """Numbers over the whole range of the dtype, its ends and ties among them."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "b":
        return rng.random(shape) < 0.1
    if dtype == np.float64:
        x = rng.standard_normal(shape) * 1e200
        x[rng.random(shape) < 0.02] = np.nan
        x[rng.random(shape) < 0.02] = -0.0
        return x
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    x[rng.random(shape) < 0.02] = info.max
    x[rng.random(shape) < 0.02] = info.min
    return x


def best(x, k):
    """[rows, k]: exact for 64-bit integers too, by a stable sort of the reverse order's ranks."""
    nan = np.isnan(x) if x.dtype.kind == "f" else np.zeros(x.shape, bool)
    ranks = np.unique(np.where(nan, x.dtype.type(0), x), return_inverse=True)[1].reshape(x.shape)
    ranks = np.where(nan, ranks.max() + 1, ranks)
    return np.argsort(-ranks, axis=-1, kind="stable")[:, :k]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, k", [(1, 1), (33, 5), (200, 200), (5000, 64), (70000, 300)])
def test_numpy(target, dtype, n, k):
    x = rows(dtype, (3, n), n)
    values, indices = riffle.top_k(x, k)
    expected = best(x, k)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(x, expected, -1))
    assert values.dtype == dtype and indices.dtype == np.int32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_per_row_and_statistics(dtype):
    x = rows(dtype, (4, 3000))
    starts, ends = np.array([0, 10, 7, 2000], np.int32), np.array([3000, 10, 2000, 2003], np.int32)
    indices = riffle.top_k_per_row(x, starts, ends, 5)
    for row, start, end, got in zip(x, starts, ends, indices):
        expected = best(row[None, start:end], 5)[0] if start < end else []
        np.testing.assert_array_equal(got, [*expected, *[-1] * (5 - len(expected))])
    top, stats = riffle.top_k(x, 7, return_stats=True)
    assert stats.kth_value.dtype == np.float64
    np.testing.assert_array_equal(stats.kth_value, top.values[:, -1].astype(np.float64))
    ties = [(row == kth).sum() or np.isnan(row).sum() for row, kth in zip(x, top.values[:, -1])]
    np.testing.assert_array_equal(stats.ties_at_kth, ties)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding(dtype):
    values, indices = riffle.top_k(rows(dtype, (2, 9)), np.array([1, 3], np.int32))
    lowest = -np.inf if dtype == np.float64 else False if np.dtype(dtype).kind == "b" else np.iinfo(dtype).min
    np.testing.assert_array_equal(values[0, 1:], [lowest] * 2)
    np.testing.assert_array_equal(indices[0, 1:], [-1, -1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch(dtype):
    torch = pytest.importorskip("torch")
    import riffle.torch

    x = torch.from_numpy(rows(dtype, (5, 4, 300)))
    values, indices = riffle.top_k(x, 9)
    assert values.dtype == x.dtype
    expected = best(x.numpy().reshape(20, 300), 9).reshape(5, 4, 9)
    np.testing.assert_array_equal(indices.numpy(), expected)
    if np.dtype(dtype).kind == "b":
        return
    for dim in (-1, 0, 1):
        ours = riffle.torch.topk(x, 3, dim)
        np.testing.assert_array_equal(ours.values.numpy(), np.take_along_axis(x.numpy(), ours.indices.numpy(), dim))
        moved = np.moveaxis(x.numpy(), dim, -1)
        expected = best(moved.reshape(-1, moved.shape[-1]), 3).reshape(*moved.shape[:-1], 3)
        np.testing.assert_array_equal(np.moveaxis(ours.indices.numpy(), dim, -1), expected)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize < 8], ids=str)
def test_jax(dtype):
    jax = pytest.importorskip("jax")
    import riffle.jax

    x = rows(dtype, (3, 400))
    for call in (riffle.top_k, riffle.jax.top_k, jax.jit(riffle.jax.top_k, static_argnums=1)):
        values, indices = call(jax.numpy.asarray(x), 6)
        np.testing.assert_array_equal(indices, best(x, 6))
        assert values.dtype == dtype


def test_jax_64_bits():
    jax = pytest.importorskip("jax")
    import riffle.jax

    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental").enable_x64
    with enable_x64(True):
        for dtype in (np.float64, np.int64, np.uint64):
            x = rows(np.dtype(dtype), (3, 400))
            values, indices = riffle.jax.top_k(jax.numpy.asarray(x), 6)
            np.testing.assert_array_equal(indices, best(x, 6))
            assert values.dtype == dtype


def test_jax_integers_have_no_derivative():
    jax = pytest.importorskip("jax")
    import riffle.jax

    x = np.arange(6, dtype=np.int32).reshape(2, 3)
    (values, _), (tangent, _) = jax.jvp(
        lambda x: riffle.jax.top_k(x, 2), (x,), (np.zeros(x.shape, jax.dtypes.float0),)
    )
    np.testing.assert_array_equal(values, [[2, 1], [5, 4]])
    assert tangent.dtype == jax.dtypes.float0


def test_lane_sort_refuses_integers():
    with pytest.raises(TypeError, match="int16 but lane sort supports float32, float16 and bfloat16"):
        riffle.top_k(np.zeros((1, 4), np.int16), 1, algorithm="lane_sort")


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("n", [40, 5000])
def test_ids(dtype, n):
    x = rows(np.dtype(np.int16), (4, n))
    expected = best(x, 8)
    each = np.random.default_rng(1).integers(-5, 2**31 - 1, (4, n), dtype)
    _, indices = riffle.top_k(x, 8, ids=each)
    assert indices.dtype == dtype
    np.testing.assert_array_equal(indices, np.take_along_axis(each, expected, -1))
    np.testing.assert_array_equal(riffle.top_k(x, 8, ids=each[0]).indices, each[0][expected])
    blocks = np.stack([x, x], 1)[:, :1].repeat(2, 1)  # [4, 2, n]
    both = riffle.top_k(blocks, 8, ids=np.stack([each, each + 1], 1) if dtype == np.int64 else np.stack([each, each], 1))
    np.testing.assert_array_equal(both.indices[:, 0], indices)


def test_ids_merge_shards():
    x = np.random.default_rng(2).integers(0, 50, (3, 4000)).astype(np.float32)
    shards = [riffle.top_k(np.ascontiguousarray(part), 16) for part in np.split(x, 4, -1)]
    values = np.concatenate([shard.values for shard in shards], -1)
    ids = np.concatenate([shard.indices.astype(np.int64) + 1000 * i for i, shard in enumerate(shards)], -1)
    merged, whole = riffle.top_k(values, 16, ids=ids), riffle.top_k(x, 16)
    np.testing.assert_array_equal(merged.indices, whole.indices)
    np.testing.assert_array_equal(merged.values, whole.values)


@pytest.mark.parametrize(
    "ids, error, text",
    [
        (np.zeros(9, np.float32), TypeError, "ids has dtype float32; it must be int32 or int64"),
        (np.zeros(8, np.int32), ValueError, r"ids has shape \(8,\); it must be \(9,\)"),
        (np.zeros((3, 9), np.int32), ValueError, r"ids has shape \(3, 9\); it must be \(2, 9\)"),
        (np.zeros((9, 2), np.int32).T, ValueError, "last axis"),
    ],
)
def test_bad_ids(ids, error, text):
    with pytest.raises(error, match=text):
        riffle.top_k(np.zeros((2, 9), np.float32), 2, ids=ids)


def test_index_order_if_short():
    x = np.array([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]], np.float32)
    ends = np.array([5, 3], np.int32)
    indices = riffle.top_k_per_row(x, np.array([1, 1], np.int32), ends, 3, index_order_if_short=True)
    np.testing.assert_array_equal(indices, [[3, 1, 0], [0, 1, -1]])
    indices = riffle.top_k_per_row_decode(x, np.array([4], np.int32), 3, next_n=2, index_order_if_short=True)
    np.testing.assert_array_equal(indices, [[0, 1, 2], [3, 1, 0]])

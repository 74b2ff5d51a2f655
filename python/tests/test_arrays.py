"""Arrays in and out: strides, memory that is not copied, `out`, and how dtypes come back."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import reference
import riffle
from frameworks import BFLOAT16, DTYPES, FRAMEWORKS, Exporter, Torch, bits
from test_top_k import check

F32 = np.dtype(np.float32)
WRITABLE = [p for p in FRAMEWORKS if p.id in ("numpy", "torch")]


def strided(x):
    """Views of other memory with x's contents: padded, reversed and interleaved rows, and an odd address."""
    rows, n = x.shape
    wide = np.zeros((rows, n + 5), x.dtype)
    wide[:, 2:-3] = x
    yield wide[:, 2:-3]
    yield x[::-1].copy()[::-1]
    twice = np.zeros((2 * rows, n), x.dtype)
    twice[::2] = x
    yield twice[::2]
    raw = np.zeros(x.nbytes + 1, np.uint8)
    odd = raw[1:].view(x.dtype).reshape(x.shape)
    odd[:] = x
    yield odd
    yield np.asfortranarray(np.broadcast_to(x[:1], x.shape)[:1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(target, dtype):
    x = reference.fill("normal", dtype, (6, 1001))
    for view in strided(x):
        check(np.array(view), 10, *riffle.top_k(view, 10))
        starts, ends = np.full(len(view), 3, np.int32), np.full(len(view), 900, np.int32)
        np.testing.assert_array_equal(
            riffle.top_k_per_row(view, starts, ends, 10), reference.top_k_per_row(view, starts, ends, 10)
        )


@pytest.mark.parametrize("framework", [p for p in FRAMEWORKS if p.id in ("torch", "dlpack")], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_of_tensors(framework, dtype):
    wide = reference.fill("normal", dtype, (8, 300))
    view = wide[::2, 10:-20]
    values, indices = riffle.top_k(framework.make(view), 10)
    check(np.array(view), 10, framework.to_numpy(values), framework.to_numpy(indices))


@pytest.mark.parametrize("framework", WRITABLE, indirect=True)
def test_leading_axes_of_any_strides(framework):
    base = reference.fill("few values", F32, (4, 3, 5, 64))
    k = np.arange(1, 61, dtype=np.int32)
    for view in (base.transpose(1, 0, 2, 3), base[:, ::2], base[::2, :, 1::3], base[:2, :1].transpose(2, 1, 0, 3)):
        rows = np.array(view).reshape(-1, 64)
        (values, indices), stats = riffle.top_k(framework.make(view), 6, return_stats=True)
        assert tuple(values.shape) == (*view.shape[:-1], 6)
        values, indices = framework.to_numpy(values), framework.to_numpy(indices)
        check(rows, 6, values.reshape(-1, 6), indices.reshape(-1, 6))
        np.testing.assert_array_equal(framework.to_numpy(stats.kth_value), values.reshape(-1, 6)[:, -1])
        counts = k[: len(rows)]
        indices = framework.to_numpy(riffle.top_k(framework.make(view), counts).indices).reshape(len(rows), -1)
        for r, count in enumerate(counts):
            np.testing.assert_array_equal(indices[r, :count], reference.top_k(rows[r : r + 1], count)[0])
            assert (indices[r, count:] == -1).all()


def test_a_single_column():
    x = np.array([[1.0, 9], [2, 9], [3, 9]], np.float32)[:, :1]  # whose stride does not matter
    assert riffle.top_k(x, 1).values.tolist() == [[1], [2], [3]]


def test_nothing_is_copied():
    x = np.broadcast_to(np.arange(1 << 20, dtype=np.float32), (64, 1 << 20))  # 256 MB, were it copied
    tracemalloc.start()
    values, indices = riffle.top_k(x, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (indices == [(1 << 20) - 1, (1 << 20) - 2]).all()
    assert peak < 1 << 20


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_read_only_and_memory_mapped(dtype, tmp_path):
    x = reference.fill("normal", dtype, (3, 200))
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", dtype=dtype, mode="r", shape=(3, 200))
    check(x, 5, *riffle.top_k(mapped, 5))
    x.flags.writeable = False
    check(x, 5, *riffle.top_k(x, 5))


def test_buffers():
    x = reference.fill("normal", F32, (3, 50))
    check(x, 5, *riffle.top_k(memoryview(x), 5))


def test_tensors_that_require_grad_are_read():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = torch.arange(12.0).reshape(3, 4).requires_grad_()
    values, indices = riffle.top_k(x, 1)
    assert values.tolist() == [[3], [7], [11]] and not values.requires_grad
    assert riffle.top_k(torch.nn.Parameter(x.detach()), 1).indices.tolist() == [[3]] * 3
    assert type(riffle.top_k(torch.nn.Parameter(x.detach()), 1).values) is torch.Tensor


def test_lazily_negated_tensors():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = torch.complex(torch.zeros(1, 4), torch.tensor([[1.0, 4, 2, 3]])).conj().imag
    if not x.is_neg() or x.stride(-1) == 1:
        pytest.skip("this PyTorch makes no such tensor")
    assert riffle.top_k(torch.clone(x), 1).indices.tolist() == [[0]]
    y = torch._neg_view(torch.tensor([[1.0, 4, 2, 3]]))
    assert y.is_neg() and riffle.top_k(y, 2).values.tolist() == [[-1, -2]]


def test_jax_results_take_over_memory():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    from riffle import _jax

    for shape in [(32, 64), (1, 1), (0, 4)]:
        memory = _jax.empty(shape, F32)
        memory[:] = 1
        x = jax.numpy.zeros(3)
        result = _jax.wrap(x, memory)
        assert result.shape == shape and result.devices() == x.devices() and (np.asarray(result) == 1).all()
        if memory.size:
            assert result.unsafe_buffer_pointer() == memory.ctypes.data
    values, indices = riffle.top_k(jax.numpy.asarray([[1.0, 3, 2]]), 2)
    assert (values * 2).tolist() == [[6, 4]]  # and XLA computes with them
    assert jax.numpy.take_along_axis(jax.numpy.asarray([[1.0, 3, 2]]), indices, -1).tolist() == [[3, 2]]


@pytest.mark.parametrize("framework", WRITABLE, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out(framework, dtype):
    x = reference.fill("normal", dtype, (6, 300))
    expected = riffle.top_k(x, 8)
    wide_values, wide_indices = np.zeros((6, 20), dtype), np.full((6, 20), 99, np.int32)
    pairs = [
        (np.zeros((6, 8), dtype), np.zeros((6, 8), np.int32)),
        (wide_values[:, 3:11], wide_indices[:, 9:17]),
        (np.zeros((12, 8), dtype)[::2], np.zeros((18, 8), np.int32)[1::3]),
    ]
    for values, indices in pairs:
        for container in (riffle.TopK, lambda *pair: pair, lambda *pair: list(pair)):
            values[:], indices[:] = 0, 0
            out = container(framework.make(values), framework.make(indices))
            result = riffle.top_k(framework.make(x), 8, out=out)
            assert isinstance(result, riffle.TopK) and result.values is out[0] and result.indices is out[1]
            np.testing.assert_array_equal(bits(values), bits(expected.values))
            np.testing.assert_array_equal(indices, expected.indices)
    assert (wide_values[:, :3] == 0).all() and (wide_values[:, 11:] == 0).all()
    assert (wide_indices[:, :9] == 99).all() and (wide_indices[:, 17:] == 99).all()


def test_out_with_more_axes_and_stats():
    x = reference.fill("normal", F32, (4, 3, 100)).transpose(1, 0, 2)
    values, indices = np.zeros((3, 4, 7), np.float32), np.zeros((3, 4, 7), np.int32)
    top, stats = riffle.top_k(x, 7, out=(values, indices), return_stats=True)
    assert top.values is values
    check(np.array(x).reshape(12, 100), 7, values.reshape(12, 7), indices.reshape(12, 7))
    np.testing.assert_array_equal(stats.kth_value, values[..., -1].ravel())


def test_out_of_another_framework():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = reference.fill("normal", BFLOAT16, (3, 100))
    out = riffle.TopK(torch.zeros(3, 5, dtype=torch.bfloat16), torch.zeros(3, 5, dtype=torch.int32))
    assert riffle.top_k(x, 5, out=out).values is out.values
    check(x, 5, Torch().to_numpy(out.values), out.indices.numpy())


def test_torch_without_the_exchange_api():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    code = """
import torch, riffle
if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    del torch.Tensor.__dlpack_c_exchange_api__  # as before PyTorch 2.10
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    x = torch.arange(24).to(dtype).reshape(3, 8).requires_grad_()
    values, indices = riffle.top_k(x[:, 1:6], 2)
    assert values.dtype == dtype and values.tolist() == [[5, 4], [13, 12], [21, 20]], values
    assert indices.dtype == torch.int32 and indices.tolist() == [[4, 3]] * 3, indices
    out = (torch.zeros(3, 4, dtype=dtype)[:, 1:3], torch.zeros(3, 2, dtype=torch.int32))
    assert riffle.top_k(x, 2, out=out).values.tolist() == [[7, 6], [15, 14], [23, 22]]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_framework_is_imported_for_numpy():
    code = """
import sys, numpy, riffle
riffle.top_k(numpy.zeros((2, 3), numpy.float32), 1)
try:
    riffle.top_k([1.0], 1)
except TypeError:
    pass
assert not {"torch", "jax", "ml_dtypes"} & set(sys.modules), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_numpy_bfloat16_results_for_other_producers():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    x = reference.fill("normal", BFLOAT16, (2, 30))
    check(x, 3, *riffle.top_k(Exporter(Torch().make(x)), 3))

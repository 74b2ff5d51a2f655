"""What is refused, in which words, and that nothing has been written then."""

import ctypes

import ml_dtypes
import numpy as np
import pytest
import riffle
from frameworks import Exporter

X = np.arange(32, dtype=np.float32).reshape(2, 16)


def int32(*values):
    return np.array(values, np.int32)


def pair(shape=(2, 4), dtype=np.float32):
    return riffle.TopK(np.full(shape, 7, dtype), np.full(shape, 7, np.int32))


TOP_K = [
    # arguments, exception, text
    (dict(k=0), ValueError, r"k = 0 is not in 1\.\.16"),
    (dict(k=17), ValueError, r"k = 17 is not in 1\.\.16"),
    (dict(k=-1), ValueError, r"k = -1 "),
    (dict(k=2**70), ValueError, r"k = \d+ is not in 1\.\.16"),
    (dict(k=2.5), TypeError, r"k must be an int, not 2\.5"),
    (dict(k=None), TypeError, r"k must be an int, not None"),
    (dict(k="4"), TypeError, r"k must be an int, not '4'"),
    (dict(k=int32(1, 0)), ValueError, r"k\[1\] = 0 is not in 1\.\.16"),
    (dict(k=int32(17, 1)), ValueError, r"k\[0\] = 17 is not in 1\.\.16"),
    (dict(k=int32(1, 2, 3)), ValueError, r"k has 3 elements for 2 rows"),
    (dict(k=int32(3)), ValueError, r"k has 1 elements for 2 rows"),
    (dict(k=np.array([1, 2])), TypeError, r"k has dtype int64; it must be int32"),
    (dict(k=int32(1, 2).reshape(1, 2)), ValueError, r"k has shape \(1, 2\)"),
    (dict(x=None), TypeError, r"x must be an array .* not NoneType"),
    (dict(x=[[1.0, 2.0]]), TypeError, r"x must be an array .* not list"),
    (dict(x=X.astype(np.complex64)), TypeError, r"x has dtype complex64; bfloat16, float16, float32, float64, bool and integers"),
    (dict(x=X.astype(">f4")), TypeError, r"x has dtype >f4;"),
    (dict(x=X.astype(ml_dtypes.float8_e4m3fn)), TypeError, r"x has dtype float8_e4m3fn;"),
    (dict(x=X.astype("datetime64[s]")), TypeError, r"x has dtype datetime64"),
    (dict(x=X.astype(object)), TypeError, r"x has dtype object"),
    (dict(x=np.zeros((2, 16), "V0")), TypeError, r"x has dtype \|V0;"),
    (dict(x=np.zeros((2, 16), "V3")), TypeError, r"x has dtype \|V3;"),
    (dict(x=np.zeros((2, 16), [("a", "f4")])), TypeError, r"x has dtype \[\('a', '<f4'\)\];"),
    (dict(x=np.zeros((2, 16), "U0")), TypeError, r"x has dtype <U"),
    (dict(k=np.zeros(2, "V0")), TypeError, r"k has dtype \|V0; it must be int32"),
    (dict(out=(np.zeros((2, 4), "V0"), pair().indices)), TypeError, r"out\.values has dtype \|V0; it must be float32"),
    (dict(x=np.ma.masked_array(X, X > 3)), TypeError, r"x is a masked array, whose mask riffle would ignore"),
    (dict(k=np.ma.masked_array(int32(1, 2), [0, 1])), TypeError, r"k is a masked array"),
    (dict(out=(np.ma.masked_array(pair().values), pair().indices)), TypeError, r"out\.values is a masked array"),
    (dict(sorted="no"), TypeError, r"sorted must be a bool, not 'no'"),
    (dict(sorted=None), TypeError, r"sorted must be a bool, not None"),
    (dict(largest=0), TypeError, r"largest must be a bool, not 0"),
    (dict(return_stats="no"), TypeError, r"return_stats must be a bool, not 'no'"),
    (dict(x=X.T), ValueError, r"x's last axis has a stride of 16 elements; it must be contiguous"),
    (dict(x=X[:, ::-1]), ValueError, r"x's last axis has a stride of -1 elements"),
    (dict(x=X[:, ::2]), ValueError, r"x's last axis has a stride of 2 elements"),
    (dict(x=np.broadcast_to(X[:, :1], (2, 16))), ValueError, r"x's last axis has a stride of 0 elements"),
    (dict(x=np.zeros((2, 16), [("a", "f4"), ("b", "u1")])["a"]), ValueError, r"x's axis \d has a stride of \d+ bytes"),
    (dict(x=np.float32(1)), ValueError, r"x has shape \(\); it must be \[\.\.\., n\]"),
    (dict(x=X[:, :0]), ValueError, r"x has 0 columns"),
    (dict(algorithm="quick_sort"), ValueError, r"algorithm = 'quick_sort' is none of 'auto', 'bucket_maxima', 'lane_sort'"),
    (dict(algorithm=3), ValueError, r"algorithm = 3 is none of"),
    (dict(lanes=0), ValueError, r"lanes = 0 is not a power of two from 1 to 4096"),
    (dict(lanes=100), ValueError, r"lanes = 100 "),
    (dict(lanes=2**40), ValueError, r"lanes = 2147483647 "),
    (dict(lanes=1.0), TypeError, r"lanes must be an int, not 1\.0"),
    (dict(depth_schedule=[2, 2]), ValueError, r"depth_schedule has 2 after 2"),
    (dict(depth_schedule=[0]), ValueError, r"depth_schedule has 0 "),
    (dict(depth_schedule=[1.5]), TypeError, r"depth_schedule must be an int, not 1\.5"),
    (dict(depth_schedule=3), TypeError, r"int"),
    (dict(out=3), TypeError, r"out must be a TopK"),
    (dict(out=np.zeros((2, 2, 4), np.float32)), TypeError, r"out must be a TopK"),
    (dict(out=(pair().values,)), TypeError, r"out must be a TopK"),
    (dict(out=(pair().values, None)), TypeError, r"out\.indices must be an array .* not NoneType"),
    (dict(out=pair((2, 5))), ValueError, r"out\.values has shape \(2, 5\); it must be \(2, 4\)"),
    (dict(out=pair((8,))), ValueError, r"out\.values has shape \(8,\); it must be \(2, 4\)"),
    (dict(out=pair(dtype=np.float64)), TypeError, r"out\.values has dtype float64; it must be float32"),
    (dict(out=(pair().values, np.zeros((2, 4), np.int64))), TypeError, r"out\.indices has dtype int64; it must be int32"),
    (dict(out=(np.zeros((4, 2), np.float32).T, pair().indices)), ValueError, r"out\.values's last axis has a stride of 2"),
    (dict(out=(X[:, :4], pair().indices)), ValueError, r"values shares memory with x"),
    (dict(out=(np.zeros(20, np.float32)[:8].reshape(2, 4), X.view(np.int32)[:, 8:12])), ValueError, r"indices shares memory with x"),
    (dict(out=(np.lib.stride_tricks.as_strided(np.zeros(9, np.float32), (2, 4), (4, 4)), pair().indices)), ValueError, r"overlap"),
    (dict(out=(np.broadcast_to(np.zeros(4, np.float32), (2, 4)), pair().indices)), ValueError, r"read-only"),
]


@pytest.mark.parametrize("arguments,error,text", TOP_K, ids=[f"{i}" for i in range(len(TOP_K))])
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_top_k(arguments, error, text):
    call = {"x": X, "k": 4, **arguments}
    before = X.copy()
    out = call.setdefault("out", pair())
    arrays = [a for a in out if isinstance(a, np.ndarray)] if isinstance(out, tuple) else []
    was = [a.copy() for a in arrays]
    with pytest.raises(error, match=text):
        riffle.top_k(call.pop("x"), call.pop("k"), **call)
    np.testing.assert_array_equal(X, before)
    for array, old in zip(arrays, was):
        np.testing.assert_array_equal(array, old)


def test_errors_come_before_results_are_made():
    x = np.broadcast_to(np.float32(0), (1 << 40, 1)).reshape(1 << 40, 1)
    with pytest.raises(ValueError, match="k = 2 "):
        riffle.top_k(x, 2)
    with pytest.raises(MemoryError):
        riffle.top_k(x, 1)


@pytest.mark.parametrize("rows", [1 << 40, 1 << 60])
def test_out_of_memory_is_a_short_text(framework, rows):
    """Also where rows * k * 4 does not fit an address; PyTorch's own text has a C++ stack of 4.5 KB."""
    if framework.name in ("jax", "dlpack"):
        pytest.skip("cannot make rows that share memory")
    row, weight = framework.make(np.zeros((1, 1), np.float32)), np.zeros((9, 1), np.float32)
    x = np.lib.stride_tricks.as_strided(row, (rows, 1), (0, 4)) if framework.name == "numpy" else row.expand(rows, 1)
    for call in (lambda: riffle.top_k(x, 1), lambda: riffle.sample(x), lambda: riffle.linear(x, weight)):
        with pytest.raises(MemoryError) as info:
            call()
        assert len(str(info.value)) < 200 and str(rows) in str(info.value)


V0 = np.zeros((2, 4), "V0")
V0_CALLS = [
    lambda: riffle.top_k_per_row(V0, int32(0, 0), int32(1, 1), 1),
    lambda: riffle.top_k_per_row(X, V0[:, 0], int32(1, 1), 1),
    lambda: riffle.top_k_per_row(X, int32(0, 0), V0[:, 0], 1),
    lambda: riffle.top_k_per_row(X, int32(0, 0), int32(1, 1), 4, out=V0),
    lambda: riffle.top_k_per_row_decode(X, V0[:, 0], 1),
    lambda: riffle.linear(V0, X),
    lambda: riffle.linear(X, V0),
    lambda: riffle.linear(X, X, bias=V0[:, 0]),
    lambda: riffle.linear(X, X, out=V0[:, :2]),
    lambda: riffle.linear(X, V0, weight_format="q8_0"),
    lambda: riffle.linear_top_k(V0, X, 1),
    lambda: riffle.sample(V0),
    lambda: riffle.sample(X, temperature=V0[:, 0]),
    lambda: riffle.sample(X, stream=V0[:, 0]),
    lambda: riffle.paged_attention(V0[None], V0[None, None], V0[None, None], int32(1), int32(0)[None]),
    lambda: riffle.paged_attention(PAGES[0], PAGES, PAGES, int32(1, 1), V0),
    lambda: riffle.paged_attention(PAGES[0], PAGES, PAGES, int32(1, 1), int32(0, 0)[:, None], sinks=V0[:, 0]),
    lambda: riffle.merge_states([V0[None]], [V0]),
    lambda: riffle.KvCache(layers=1, kv_heads=2, head_dim=4, pages=1).write(0, 1, 0, V0[None], V0[None]),
]
PAGES = np.zeros((1, 2, 1, 32), np.float32)


@pytest.mark.parametrize("call", V0_CALLS)
def test_elements_of_no_bytes(call):
    with pytest.raises(TypeError, match=r"has dtype \|V0"):
        call()


def test_values_and_indices_share_memory():
    memory = np.zeros((2, 8), np.int32)
    with pytest.raises(ValueError, match="shares memory"):
        riffle.top_k(X, 4, out=(memory.view(np.float32)[:, :4], memory[:, 3:7]))


BLOCKS = np.arange(4 * 3 * 16, dtype=np.float32).reshape(4, 3, 16).transpose(1, 0, 2)  # no single row stride


@pytest.mark.parametrize(
    "make,text",
    [
        (lambda: (np.zeros((4, 3, 4), np.float32).transpose(1, 0, 2), np.zeros((3, 4, 4), np.int32)), "evenly spaced"),
        (lambda: (BLOCKS.base.reshape(-1)[:48].reshape(3, 4, 4), np.zeros((3, 4, 4), np.int32)), "out.values shares memory with x"),
        (
            lambda: (np.lib.stride_tricks.as_strided(np.zeros(60, np.float32), (3, 4, 4), (16, 4, 4)), np.zeros((3, 4, 4), np.int32)),
            "out.values's rows overlap",
        ),
        (lambda: (lambda a: (a.view(np.float32)[:48].reshape(3, 4, 4), a[47:].reshape(3, 4, 4)))(np.zeros(95, np.int32)), "out.indices shares memory"),
    ],
)
def test_out_of_blocks(make, text):
    out = make()
    was = [a.copy() for a in out]
    with pytest.raises(ValueError, match=text):
        riffle.top_k(BLOCKS, 4, out=out)
    for array, old in zip(out, was):
        np.testing.assert_array_equal(array, old)


@pytest.mark.parametrize("k", [int32(*[4] * 11, 17), int32(*[4] * 11, 0)])
def test_k_of_blocks(k):
    out = pair((3, 4, 17))
    with pytest.raises(ValueError, match=r"k\[11\] = "):
        riffle.top_k(BLOCKS, k, out=out)
    assert (out.values == 7).all() and (out.indices == 7).all()


PER_ROW = [
    (dict(k=0), ValueError, r"k = 0 is not in 1\.\."),
    (dict(k=2**31), ValueError, r"k = 2147483648 is not in 1\.\."),
    (dict(k=4.0), TypeError, r"k must be an int"),
    (dict(x=X[0]), ValueError, r"x has shape \(16,\); it must be \[rows, n\]"),
    (dict(x=X[None]), ValueError, r"x has shape \(1, 2, 16\); it must be \[rows, n\]"),
    (dict(x=X.astype(np.complex128)), TypeError, r"x has dtype complex128"),
    (dict(x=X.T), ValueError, r"contiguous"),
    (dict(starts=int32(0)), ValueError, r"starts has 1 elements for 2 rows"),
    (dict(ends=int32(1, 2, 3)), ValueError, r"ends has 3 elements for 2 rows"),
    (dict(starts=int32(0, -1)), ValueError, r"starts\[1\] = -1 is negative"),
    (dict(ends=int32(17, 1)), ValueError, r"ends\[0\] = 17 is past the 16 columns of x"),
    (dict(starts=np.zeros(2)), TypeError, r"starts has dtype float64; it must be int32"),
    (dict(ends=[1, 2]), TypeError, r"ends must be an array .* not list"),
    (dict(ends=int32(1, 2)[None]), ValueError, r"ends has shape \(1, 2\)"),
    (dict(out=np.full((2, 5), 7, np.int32)), ValueError, r"out has shape \(2, 5\); it must be \(2, 4\)"),
    (dict(out=np.full((2, 4), 7, np.int64)), TypeError, r"out has dtype int64; it must be int32"),
    (dict(out=X.view(np.int32)[:, :4]), ValueError, r"shares memory with x"),
]


@pytest.mark.parametrize("arguments,error,text", PER_ROW, ids=[f"{i}" for i in range(len(PER_ROW))])
def test_per_row(arguments, error, text):
    call = {"x": X, "starts": int32(0, 1), "ends": int32(16, 9), "k": 4, "out": np.full((2, 4), 7, np.int32), **arguments}
    was = call["out"].copy()
    with pytest.raises(error, match=text):
        riffle.top_k_per_row(**call)
    np.testing.assert_array_equal(call["out"], was)


@pytest.mark.parametrize(
    "arguments,error,text",
    [
        (dict(k=0), ValueError, r"k = 0 is not in 1\.\."),
        (dict(next_n=0), ValueError, r"next_n = 0 "),
        (dict(next_n=1), ValueError, r"seq_lens has 1 elements for 2 rows of next_n = 1 a sequence"),
        (dict(next_n=3), ValueError, r"seq_lens has 1 elements for 2 rows of next_n = 3 a sequence"),
        (dict(seq_lens=int32(17)), ValueError, r"seq_lens\[0\] = 17 is past the 16 columns"),
        (dict(seq_lens=np.array([4])), TypeError, r"seq_lens has dtype int64; it must be int32"),
    ],
)
def test_decode(arguments, error, text):
    out = np.full((2, 4), 7, np.int32)
    call = {"x": X, "seq_lens": int32(9), "k": 4, "next_n": 2, "out": out, **arguments}
    with pytest.raises(error, match=text):
        riffle.top_k_per_row_decode(**call)
    assert (out == 7).all()


@pytest.mark.parametrize(
    "call,error,text",
    [
        (lambda: riffle.depth_probabilities(0), ValueError, "k = 0 "),
        (lambda: riffle.depth_probabilities(2**40), ValueError, "k = "),
        (lambda: riffle.depth_probabilities(4, 0), ValueError, "lanes = 0 "),
        (lambda: riffle.depth_probabilities("4"), TypeError, "k must be an int"),
        (lambda: riffle.plan_top_k(0, 1), ValueError, "n = 0 "),
        (lambda: riffle.plan_top_k(10, 11), ValueError, "k = 11 "),
        (lambda: riffle.plan_top_k(10, 1, rows=-1), ValueError, "rows = -1 "),
        (lambda: riffle.plan_top_k(10, 1, lanes=3), ValueError, "lanes = 3 "),
        (lambda: riffle.plan_top_k(10, 1, depth_schedule=[3, 1]), ValueError, "depth_schedule"),
        (lambda: riffle.set_num_threads(0), ValueError, "n = 0 "),
        (lambda: riffle.set_num_threads(1025), ValueError, "n = 1025 "),
        (lambda: riffle.set_num_threads(None), TypeError, "n must be an int, not None"),
        (lambda: riffle.set_target("AVX99"), ValueError, "'AVX99' is not one of"),
        (lambda: riffle.set_target(3), TypeError, "name must be a str or None, not 3"),
    ],
)
def test_other_calls(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = torch.from_numpy(X)
    with pytest.raises(TypeError, match=r"x has dtype torch\.complex64; bfloat16, float16, float32"):
        riffle.top_k(x.to(torch.complex64), 1)
    with pytest.raises(ValueError, match="x is on device meta; riffle reads memory of the CPU"):
        riffle.top_k(x.to("meta"), 1)
    with pytest.raises(ValueError, match="x is a tensor without plain memory"):
        riffle.top_k(x.to_sparse(), 1)
    with pytest.raises(ValueError, match="x's last axis has a stride of 16"):
        riffle.top_k(x.T, 1)
    grad = torch.zeros(2, 1, requires_grad=True)
    with pytest.raises(ValueError, match=r"out\.values requires grad"):
        riffle.top_k(x, 1, out=(grad, torch.zeros(2, 1, dtype=torch.int32)))
    assert (grad == 0).all()


def test_jax():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    x = jax.numpy.asarray(X)
    with pytest.raises(TypeError, match=r"x has dtype complex64"):
        riffle.top_k(x.astype("complex64"), 1)
    with pytest.raises(TypeError, match=r"out\.values is a JAX array, which is immutable"):
        riffle.top_k(x, 1, out=(x[:, :1], x[:, 1:2]))
    with pytest.raises(TypeError, match=r"x is a JAX tracer"):
        jax.jit(lambda x: riffle.top_k(x, 1))(x)
    gone = jax.numpy.asarray(X) + 1
    gone.delete()
    with pytest.raises((ValueError, RuntimeError), match="deleted"):
        riffle.top_k(gone, 1)


class _DLTensor(ctypes.Structure):  # the head of dlpack.h's
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class _OnGpu:
    """A producer that says its memory is a GPU's."""

    def __dlpack_device__(self):
        return (2, 1)

    def __dlpack__(self, **_):
        capsule = X.copy().__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        tensor = _DLTensor.from_address(pointer(capsule, b"dltensor"))
        tensor.device_type, tensor.device_id = 2, 1
        return capsule


class _Refuses:
    def __dlpack__(self, **_):
        raise BufferError("not today")


def test_dlpack():
    with pytest.raises(ValueError, match=r"x is on DLPack device \(2, 1\); riffle reads memory of the CPU"):
        riffle.top_k(_OnGpu(), 1)
    with pytest.raises(ValueError, match="x cannot be read in place") as info:
        riffle.top_k(_Refuses(), 1)
    assert "not today" in str(info.value.__cause__)


def test_dlpack_out():
    out = np.zeros((2, 1), np.int32)
    starts, ends = int32(0, 0), int32(16, 16)
    riffle.top_k_per_row(X, starts, ends, 1, out=Exporter(out))
    assert out.tolist() == [[15], [15]]
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out cannot be written in place"):
        riffle.top_k_per_row(X[:, :4], starts, int32(4, 4), 1, out=Exporter(out))
    assert out.tolist() == [[15], [15]]

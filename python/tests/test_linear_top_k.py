"""riffle.linear_top_k against exact sums."""

import numpy as np
import pytest
import reference
import riffle
from frameworks import BFLOAT16, DTYPES, bits


def integers(rng, shape, dtype):
    """Few small integers: every sum is exact in any order, and ties are many."""
    return rng.integers(-2, 3, shape).astype(np.float32).astype(dtype)


def check(x, weight, k, bias, values, indices):
    """The answer of the exact product."""
    logits = x.astype(np.float64) @ weight.astype(np.float64).T
    if bias is not None:
        logits = logits + bias.astype(np.float64)
    logits = logits.astype(np.float32)
    expected = reference.top_k(logits, k)
    assert values.dtype == np.float32 and indices.dtype == np.int32
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(logits, expected, -1))


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
def test_exact(target, x_dtype, weight_dtype):
    rng = np.random.default_rng(0)
    for rows, d, vocab, k in [(1, 64, 3000, 40), (3, 100, 70, 70), (14, 33, 500, 7), (2, 1, 1, 1)]:
        x, weight = integers(rng, (rows, d), x_dtype), integers(rng, (vocab, d), weight_dtype)
        for bias in (None, integers(rng, vocab, x_dtype)):
            check(x, weight, k, bias, *riffle.linear_top_k(x, weight, k, bias=bias))
            across = np.ascontiguousarray(weight.T).T
            check(x, across, k, bias, *riffle.linear_top_k(x, across, k, bias=bias))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frameworks(framework, dtype):
    rng = np.random.default_rng(1)
    x, weight, bias = (integers(rng, shape, dtype) for shape in [(4, 96), (1000, 96), (1000,)])
    values, indices = riffle.linear_top_k(
        framework.make(x), framework.make(weight), 20, bias=framework.make(bias))
    check(x, weight, 20, bias, framework.to_numpy(values), framework.to_numpy(indices))


def test_result_is_of_the_framework_of_x():
    torch = pytest.importorskip("torch")
    x, weight = np.ones((2, 8), np.float32), torch.ones(5, 8)
    assert type(riffle.linear_top_k(x, weight, 1).values) is np.ndarray
    top = riffle.linear_top_k(torch.from_numpy(x), weight.numpy(), 1)
    assert type(top) is riffle.TopK and type(top.indices) is torch.Tensor


def test_float32_is_not_rounded():
    x = np.full((1, 32), 1 + 2.0**-12, np.float32)
    weight = np.eye(32, dtype=np.float32).astype(BFLOAT16)
    assert riffle.linear_top_k(x, weight, 1).values[0, 0] == x[0, 0]


def test_accuracy():
    rng = np.random.default_rng(2)
    for dtype in DTYPES:
        x, weight = (rng.standard_normal(s).astype(np.float32).astype(dtype) for s in [(5, 640), (2000, 640)])
        values, indices = riffle.linear_top_k(x, weight, 10)
        logits = x.astype(np.float64) @ weight.astype(np.float64).T
        np.testing.assert_allclose(values, np.take_along_axis(logits, indices, -1), rtol=0, atol=1e-4)
        np.testing.assert_allclose(values, -np.sort(-logits)[:, :10], rtol=0, atol=1e-4)


def test_a_row_has_the_same_bits_in_any_batch():
    rng = np.random.default_rng(3)
    x, weight = (rng.standard_normal(s).astype(np.float32).astype(BFLOAT16) for s in [(300, 333), (777, 333)])
    values, indices = riffle.linear_top_k(x, weight, 25)
    for threads, rows in [(1, slice(0, 1)), (2, slice(7, 20)), (3, slice(50, 300))]:
        riffle.set_num_threads(threads)
        part = riffle.linear_top_k(x[rows], np.ascontiguousarray(weight.T).T, 25)
        np.testing.assert_array_equal(bits(part.values), bits(values[rows]))
        np.testing.assert_array_equal(part.indices, indices[rows])


def test_strides():
    rng = np.random.default_rng(4)
    x, weight = integers(rng, (6, 80), np.float32), integers(rng, (400, 80), np.float32)
    for a, w in [(x[::-2, 3:70], weight[::3, 3:70]), (x[::2, :40], np.ascontiguousarray(weight.T)[::2].T), (x[:0], weight),
                 (np.broadcast_to(x[0], x.shape), weight[::-1])]:
        check(a, w, 5, None, *riffle.linear_top_k(a, w, 5))


def test_specials():
    x = np.array([[1, 0], [0, 1]], np.float32)
    weight = np.array([[np.inf, -1], [0, -0.0], [np.nan, 2], [-np.inf, 3]], np.float32)
    values, indices = riffle.linear_top_k(x, weight, 4)
    assert indices[0].tolist() == [2, 0, 1, 3]  # NaN, inf, 0, -inf
    assert indices[1].tolist() == [0, 2, 3, 1]  # infinities times zero are NaN
    assert bits(values)[0, 0] == 0x7FC00000 and bits(values)[0, 2] == 0


def test_no_inputs():
    values, indices = riffle.linear_top_k(np.ones((2, 0), np.float32), np.ones((3, 0), np.float32), 2,
                                          bias=np.array([1, 3, 2], np.float32))
    assert values.tolist() == [[3, 2]] * 2 and indices.tolist() == [[1, 2]] * 2


X, W = np.ones((2, 8), np.float32), np.ones((5, 8), np.float32)


@pytest.mark.parametrize("arguments,error,words", [
    ((X, W, 0), ValueError, "k = 0 is not in 1..5"),
    ((X, W, 6), ValueError, "k = 6 is not in 1..5"),
    ((X, W, 2**80), ValueError, "k = "),
    ((X, W, 1.5), TypeError, "k must be an int"),
    ((X[0], W, 1), ValueError, "x has shape"),
    ((X, W[0], 1), ValueError, "weight has shape"),
    ((X[:, :7], W, 1), ValueError, "x has 7 columns but weight has 8"),
    ((X, np.ones((0, 8), np.float32), 1), ValueError, "weight has 0 rows"),
    ((np.ones((2, 16), np.float32)[:, ::2], W, 1), ValueError, "last axis"),
    ((X, np.ones((10, 16), np.float32)[::2, ::2], 1), ValueError, "contiguous"),
    ((X.astype(np.float64), W, 1), TypeError, "x has dtype float64"),
    ((X, W.astype(np.int8), 1), TypeError, "weight has dtype int8"),
    ((None, W, 1), TypeError, "x"),
    ((X, None, 1), TypeError, "weight"),
])
def test_errors(arguments, error, words):
    with pytest.raises(error, match="(?s).*".join([words.replace(".", r"\.")])):
        riffle.linear_top_k(*arguments)


@pytest.mark.parametrize("bias,error,words", [
    (np.ones(4, np.float32), ValueError, "bias has 4 elements but weight has 5 rows"),
    (np.ones((1, 5), np.float32), ValueError, "bias has shape"),
    (np.ones(10, np.float32)[::2], ValueError, "bias's last axis"),
    (np.ones(5, np.int32), TypeError, "bias has dtype int32"),
])
def test_bad_bias(bias, error, words):
    with pytest.raises(error, match=words):
        riffle.linear_top_k(X, W, 1, bias=bias)


def q8_0(rng, vocab, d):
    """Weights in Q8_0, uint8 [vocab, d / 32 * 34], and what they are in float32."""
    scales = (2.0 ** rng.integers(-3, 3, (vocab, d // 32, 1))).astype(np.float16)
    quants = rng.integers(-127, 128, (vocab, d // 32, 32)).astype(np.int8)
    blocks = np.concatenate([scales.view(np.uint8), quants.view(np.uint8)], axis=-1)
    return blocks.reshape(vocab, -1), (scales.astype(np.float32) * quants).reshape(vocab, d)


@pytest.mark.parametrize("rows", [1, 5])
def test_q8_0(framework, rows):
    """Scales are powers of two and x small integers, so that every sum is exact."""
    rng = np.random.default_rng(7)
    blocks, weight = q8_0(rng, 700, 96)
    x = integers(rng, (rows, 96), np.float32)
    bias = integers(rng, 700, np.float32)
    given, quantized = framework.make(x), framework.make(blocks)
    for b in (None, bias):
        logits = x.astype(np.float64) @ weight.astype(np.float64).T + (0 if b is None else b)
        y = framework.to_numpy(riffle.linear(given, quantized, bias=b, weight_format="q8_0"))
        np.testing.assert_array_equal(y, logits.astype(np.float32))
        values, indices = riffle.linear_top_k(given, quantized, 9, bias=b, weight_format="q8_0")
        check(x, weight, 9, b, framework.to_numpy(values), framework.to_numpy(indices))
    apart = np.zeros((700, blocks.shape[1] + 34), np.uint8)
    apart[:, : blocks.shape[1]] = blocks
    np.testing.assert_array_equal(riffle.linear(x, apart[:, : blocks.shape[1]], bias=bias, weight_format="q8_0"), y)


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
def test_linear_is_exact(target, x_dtype, weight_dtype):
    rng = np.random.default_rng(8)
    for rows, d, vocab in [(1, 64, 300), (3, 100, 70), (14, 33, 50), (2, 1, 1), (0, 4, 3)]:
        x, weight, bias = (integers(rng, shape, t) for shape, t in
                           [((rows, d), x_dtype), ((vocab, d), weight_dtype), (vocab, weight_dtype)])
        for b in (None, bias):
            expected = x.astype(np.float64) @ weight.astype(np.float64).T + (0 if b is None else b.astype(np.float64))
            y = riffle.linear(x, weight, bias=b)
            assert y.dtype == np.float32
            np.testing.assert_array_equal(y, expected)
            np.testing.assert_array_equal(riffle.linear(x, np.ascontiguousarray(weight.T).T, bias=b), y)


def test_linear_and_top_k_are_linear_top_k():
    rng = np.random.default_rng(9)
    x, weight = rng.standard_normal((5, 200)).astype(np.float32), rng.standard_normal((900, 200)).astype(BFLOAT16)
    want = riffle.top_k(riffle.linear(x, weight), 30)
    got = riffle.linear_top_k(x, weight, 30)
    np.testing.assert_array_equal(bits(got.values), bits(want.values))
    np.testing.assert_array_equal(got.indices, want.indices)


def test_linear_frameworks(framework):
    rng = np.random.default_rng(10)
    x, weight = integers(rng, (4, 64), BFLOAT16), integers(rng, (30, 64), np.float32)
    y = framework.to_numpy(riffle.linear(framework.make(x), framework.make(weight)))
    np.testing.assert_array_equal(y, x.astype(np.float32) @ weight.T)


def test_linear_out():
    rng = np.random.default_rng(11)
    x, weight = integers(rng, (4, 64), np.float32), integers(rng, (30, 64), np.float32)
    memory = np.full((4, 50), 7, np.float32)
    out = memory[:, 10:40]
    assert riffle.linear(x, weight, out=out) is out
    np.testing.assert_array_equal(out, x @ weight.T)
    assert (memory[:, :10] == 7).all() and (memory[:, 40:] == 7).all()


DENSE = np.zeros((3, 64), np.float32)
BLOCKS = np.zeros((3, 68), np.uint8)


@pytest.mark.parametrize(
    "arguments,error,text",
    [
        (dict(x=DENSE[0]), ValueError, r"x has shape \(64,\); it must be \[rows, d\]"),
        (dict(x=DENSE[:, :32]), ValueError, "x has 32 columns but weight has 64"),
        (dict(weight=BLOCKS), TypeError, "weight has dtype uint8"),
        (dict(weight=DENSE, weight_format="q8_0"), TypeError, "weight has dtype float32; it must be uint8"),
        (dict(weight=BLOCKS[:, :67], weight_format="q8_0"), ValueError, "weight has rows of 67 bytes; those of Q8_0 are blocks of 34"),
        (dict(weight=np.zeros((3, 69), np.uint8)[:, :68], weight_format="q8_0"), ValueError, "weight's rows are 69 bytes apart"),
        (dict(weight=BLOCKS, weight_format="q4_0"), ValueError, "weight_format = 'q4_0' is none of None, 'q8_0'"),
        (dict(weight=BLOCKS, weight_format=8), ValueError, "weight_format = 8 is none of"),
        (dict(bias=np.zeros(2, np.float32)), ValueError, "bias has 2 elements but weight has 3 rows"),
        (dict(out=np.zeros((3, 4), np.float32)), ValueError, r"out has shape \(3, 4\); it must be \(3, 3\)"),
        (dict(out=np.zeros((3, 3))), TypeError, "out has dtype float64; it must be float32"),
        (dict(out=DENSE[:, :3]), ValueError, "shares memory with x"),
    ],
)
def test_linear_errors(arguments, error, text):
    call = {"x": DENSE, "weight": DENSE, **arguments}
    with pytest.raises(error, match=text):
        riffle.linear(call.pop("x"), call.pop("weight"), **call)

"""riffle.sample against the exact distribution in double, and its marshalling."""

import numpy as np
import pytest
import reference
import riffle
from frameworks import BFLOAT16, DTYPES


def exact(row, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The probability of each column, by a full sort."""
    x = np.asarray(row, np.float64)
    order = reference.top_k(row[None], len(row))[0]
    if temperature == 0:
        order, weights = order[:1], np.ones(1)
    else:
        order = order[: top_k or None]
        weights = np.exp((x[order] - x[order[0]]) / temperature)
        if top_p < 1:
            reached = np.cumsum(weights) >= top_p * weights.sum()
            order = order[: np.argmax(reached) + 1]
        order = order[weights[: len(order)] >= min_p]
        weights = weights[: len(order)]
    p = np.zeros(len(x))
    p[order] = weights / weights.sum()
    return p


def draws(x, count, **parameters):
    """`count` draws from one row, which is not repeated in memory."""
    rows = np.broadcast_to(x, (count, len(x)))
    return riffle.sample(rows, position=np.arange(count), stream=5, **parameters)


PARAMETERS = [
    dict(),
    dict(temperature=0.0),
    dict(temperature=0.5, top_k=9),
    dict(top_p=0.8),
    dict(min_p=0.1),
    dict(temperature=2.0, top_k=50, top_p=0.9, min_p=0.03),
    dict(temperature=4.0, top_p=0.95),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [5, 300, 3000])
@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_distribution(parameters, n, dtype):
    x = (2 * np.random.default_rng(n).standard_normal(n)).astype(dtype)
    p = exact(x, **parameters)
    count = 3000
    seen = np.bincount(draws(x, count, **parameters), minlength=n)
    assert not seen[p == 0].any()
    # Columns expected fewer than ten times in one bin together.
    rare = p * count < 10
    expected = np.append(p[~rare], p[rare].sum()) * count
    observed = np.append(seen[~rare], seen[rare].sum())
    expected, observed = expected[expected > 0], observed[expected > 0]
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert statistic <= freedom + 6 * np.sqrt(2 * freedom) + 12  # beyond the 1 - 1e-6 quantile


def test_targets(target):
    x = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    p = exact(x, top_p=0.7, temperature=0.9)
    assert (p[draws(x, 500, top_p=0.7, temperature=0.9)] > 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frameworks(framework, dtype):
    x = reference.fill("normal", dtype, (4, 2000))
    expected = riffle.sample(x, top_k=30, seed=3, return_logprobs=True)
    tokens, logprobs = riffle.sample(framework.make(x), top_k=30, seed=3, return_logprobs=True)
    np.testing.assert_array_equal(framework.to_numpy(tokens), expected[0])
    np.testing.assert_array_equal(framework.to_numpy(logprobs), expected[1])
    assert framework.to_numpy(tokens).dtype == np.int32 and framework.to_numpy(logprobs).dtype == np.float32


@pytest.mark.parametrize("width", [32, 64])
def test_one_parameter_a_row(framework, width):
    rows, n = 6, 5000
    x = np.random.default_rng(2).standard_normal((rows, n)).astype(np.float32)
    floats, ints = np.dtype(f"f{width // 8}"), np.dtype(f"i{width // 8}")
    lists = dict(
        temperature=np.array([0, 1, 0.5, 2, 1, 3], floats),
        top_k=np.array([0, 5, 0, 2000, 0, 0], ints),
        top_p=np.array([1, 0.9, 0.5, 1, 1, 0.99], floats),
        min_p=np.array([0, 0, 0.1, 0, 0.2, 0], floats),
        stream=np.array([7, 7, 3, 900, -1, 0], ints),
        position=np.array([0, 1, 1, 2**31 - 1, 5, 0], ints),
    )
    if framework.name == "jax" and width == 64:
        pytest.skip("JAX has no 64-bit arrays by default")
    make = framework.make
    together = riffle.sample(make(x), seed=11, **{name: make(values) for name, values in lists.items()})
    for row in range(rows):
        alone = riffle.sample(x[row : row + 1], seed=11, **{name: values[row].item() for name, values in lists.items()})
        assert framework.to_numpy(together)[row] == alone[0]


@pytest.mark.parametrize("code", "bhilqBHIL")
def test_parameters_of_any_integer_type(framework, code):
    """Each integer type says what int64 does, beyond int32 too."""
    logits = np.random.default_rng(3).standard_normal((4, 50)).astype(np.float32)
    numbers = {"temperature": [0, 1, 2, 3], "top_k": [1, 0, 3, 100], "top_p": [1, 1, 0, 1], "min_p": [0, 0, 0, 0],
               "stream": [5, 6, 7, 8], "position": [0, 1, 2, 3]}
    arrays = {name: framework.make(np.array(values, code)) for name, values in numbers.items()}
    floats = {name: np.array(values, np.float32 if name in ("temperature", "top_p", "min_p") else np.int64)
              for name, values in numbers.items()}
    expected = riffle.sample(logits, seed=9, **floats)
    np.testing.assert_array_equal(riffle.sample(logits, seed=9, **arrays), expected)


def test_parameters_of_any_float_type(framework):
    logits = np.random.default_rng(4).standard_normal((3, 50)).astype(np.float32)
    values = {"temperature": [0.5, 1.5, 3], "top_p": [0.75, 0.5, 1], "min_p": [0.125, 0, 0.25]}  # exact in all of them
    expected = riffle.sample(logits, seed=2, **{name: np.array(v, np.float64) for name, v in values.items()})
    for dtype in (np.float16, BFLOAT16, np.float32):
        arrays = {name: framework.make(np.array(v, dtype)) for name, v in values.items()}
        np.testing.assert_array_equal(riffle.sample(logits, seed=2, **arrays), expected)


def test_a_top_k_beyond_int32_is_off():
    logits = np.random.default_rng(5).standard_normal((2, 50)).astype(np.float32)
    for top_k in (2**40, 2**70, np.array([2**40, 2**62]), np.array([2**63, 2**31], np.uint64)):
        np.testing.assert_array_equal(riffle.sample(logits, top_k=top_k, seed=1), riffle.sample(logits, seed=1))


def test_strides_and_threads():
    x = np.random.default_rng(3).standard_normal((20, 4000)).astype(np.float32)
    arguments = dict(top_p=0.9, seed=5, return_logprobs=True)
    expected = riffle.sample(x, **arguments)
    for threads in (1, 2, 3):
        riffle.set_num_threads(threads)
        for given, rows in [(x, slice(None)), (x[::-1], slice(None, None, -1)), (x[::3], slice(None, None, 3))]:
            stream = np.arange(20)[rows]
            for result, truth in zip(riffle.sample(given, stream=stream, **arguments), expected):
                np.testing.assert_array_equal(result, truth[rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logprobs(dtype):
    x = (3 * np.random.default_rng(4).standard_normal((8, 3000))).astype(dtype)
    tokens, logprobs = riffle.sample(x, temperature=1.5, top_k=100, return_logprobs=True)
    wide = x.astype(np.float64)
    truth = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    np.testing.assert_allclose(logprobs, np.take_along_axis(truth, tokens[:, None], -1)[:, 0], rtol=2e-6, atol=2e-6)


def test_no_rows(framework):
    tokens = riffle.sample(framework.make(np.zeros((0, 5), np.float32)))
    assert framework.to_numpy(tokens).shape == (0,)


X = np.zeros((2, 16), np.float32)
NAN = X.copy()
NAN[1, 3] = np.nan
MASKED = X.copy()
MASKED[1] = -np.inf

ERRORS = [
    (dict(temperature=-1), ValueError, r"temperature\[0\] = -1 "),
    (dict(temperature=float("nan")), ValueError, r"temperature\[0\] = nan"),
    (dict(temperature=1e300), ValueError, r"temperature\[0\] = inf"),
    (dict(temperature="hot"), TypeError, r"temperature must be a float, not 'hot'"),
    (dict(temperature=np.array([True, True])), TypeError, r"temperature has dtype bool; it must be a float or an integer type"),
    (dict(temperature=np.array([1, 1e300])), ValueError, r"temperature\[1\] = 1e\+300 is not in the range of float32"),
    (dict(min_p=np.ma.masked_array([0.5, 0.5], [0, 1])), TypeError, r"min_p is a masked array"),
    (dict(top_p=np.ma.masked), TypeError, r"top_p is a masked array"),
    (dict(top_k=np.array([1, -(2**40)])), ValueError, r"top_k\[1\] = -1099511627776 is not in the range of int32"),
    (dict(stream=2**70), ValueError, r"stream = 1180591620717411303424 is not in the range of int64"),
    (dict(position=np.array([1, 2**63], np.uint64)), ValueError, r"position\[1\] = 9223372036854775808 is not in"),
    (dict(return_logprobs="no"), TypeError, r"return_logprobs must be a bool, not 'no'"),
    (dict(temperature=np.ones((1, 2), np.float32)), ValueError, r"temperature has shape \(1, 2\)"),
    (dict(temperature=np.ones(3, np.float32)), ValueError, r"temperature has 3 elements for 2 rows"),
    (dict(top_k=-1), ValueError, r"top_k\[0\] = -1 "),
    (dict(top_k=2.0), TypeError, r"top_k must be an int, not 2\.0"),
    (dict(top_k=np.ones(2, np.float32)), TypeError, r"top_k has dtype float32; it must be an integer type"),
    (dict(top_p=1.5), ValueError, r"top_p\[0\] = 1\.5 is not in 0\.\.1"),
    (dict(min_p=np.array([0, -0.5])), ValueError, r"min_p\[1\] = -0\.5 is not in 0\.\.1"),
    (dict(seed=-1), ValueError, r"seed = -1 is not in 0\.\.2\^64 - 1"),
    (dict(seed=2**64), ValueError, r"seed = \d+ is not in"),
    (dict(seed=1.0), TypeError, r"seed must be an int"),
    (dict(stream=np.arange(3)), ValueError, r"stream has 3 elements for 2 rows"),
    (dict(position=np.zeros(2)), TypeError, r"position has dtype float64"),
    (dict(logits=X[0]), ValueError, r"logits has shape \(16,\); it must be \[rows, vocab\]"),
    (dict(logits=X[:, :0]), ValueError, r"logits has 0 columns"),
    (dict(logits=X[:, ::2]), ValueError, r"logits's last axis has a stride of 2"),
    (dict(logits=X.astype(np.float64)), TypeError, r"logits has dtype float64"),
    (dict(logits=[[1.0]]), TypeError, r"logits must be an array"),
    (dict(logits=NAN), ValueError, r"logits\[1, 3\] is NaN"),
    (dict(logits=NAN, temperature=0), ValueError, r"logits\[1, 3\] is NaN"),
    (dict(logits=MASKED), ValueError, r"logits\[1\] has nothing to sample: every column is -inf"),
]


@pytest.mark.parametrize("arguments,kind,text", ERRORS)
def test_errors(arguments, kind, text):
    with pytest.raises(kind, match=text):
        riffle.sample(**{"logits": X, **arguments})

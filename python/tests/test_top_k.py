"""riffle.top_k against the reference."""

import numpy as np
import pytest
import reference
import riffle
from frameworks import BFLOAT16, DTYPES, bits


def check(x, k, values, indices):
    """values and indices are the reference's, to the bit."""
    expected = reference.top_k(x, k)
    np.testing.assert_array_equal(indices, expected)
    assert indices.dtype == np.int32 and values.dtype == x.dtype
    np.testing.assert_array_equal(bits(values), np.take_along_axis(bits(x), expected, -1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", reference.DISTRIBUTIONS)
def test_distributions(target, name, dtype):
    for rows, n, k in [(3, 1, 1), (5, 33, 7), (2, 1000, 64), (3, 20000, 50), (1, 70001, 1000)]:
        x = reference.fill(name, dtype, (rows, n), seed=n)
        check(x, k, *riffle.top_k(x, k))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frameworks(framework, dtype):
    x = reference.fill("NaNs", dtype, (4, 3000))
    values, indices = riffle.top_k(framework.make(x), 20)
    check(x, 20, framework.to_numpy(values), framework.to_numpy(indices))


@pytest.mark.parametrize("k", [1, 2, 63, 64, 65, 1000, 4097, 9999, 10000])
def test_every_k(k):
    x = reference.fill("few values", np.dtype(np.float32), (2, 10000))
    check(x, k, *riffle.top_k(x, k))


@pytest.mark.parametrize("name", ["normal", "few values", "ascending", "all NaN", "signed zeros"])
@pytest.mark.parametrize("lanes,schedule", [(128, None), (1, None), (4096, None), (8, [1, 2]), (128, (2, 3, 40))])
def test_lane_sort(target, name, lanes, schedule):
    for dtype in DTYPES:
        x = reference.fill(name, dtype, (3, 5001))
        check(x, 64, *riffle.top_k(x, 64, algorithm="lane_sort", lanes=lanes, depth_schedule=schedule))


def test_auto_is_one_of_the_algorithms():
    x = reference.fill("few values", BFLOAT16, (3, 5000))
    results = [riffle.top_k(x, 9, algorithm=name) for name in ("auto", "bucket_maxima", "lane_sort")]
    for values, indices in results[1:]:
        np.testing.assert_array_equal(bits(values), bits(results[0].values))
        np.testing.assert_array_equal(indices, results[0].indices)


@pytest.mark.parametrize("algorithm", ["bucket_maxima", "lane_sort"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unsorted_is_the_same_set(algorithm, dtype):
    x = reference.fill("few values", dtype, (3, 4000))
    values, indices = riffle.top_k(x, 100, sorted=False, algorithm=algorithm)
    np.testing.assert_array_equal(np.sort(indices), np.sort(reference.top_k(x, 100)))
    np.testing.assert_array_equal(bits(values), np.take_along_axis(bits(x), indices, -1))


def test_one_k_per_row(framework):
    for dtype in DTYPES:
        x = reference.fill("normal", dtype, (5, 300))
        k = np.array([1, 300, 7, 64, 2], np.int32)
        values, indices = map(framework.to_numpy, riffle.top_k(framework.make(x), framework.make(k)))
        assert values.shape == indices.shape == (5, 300)
        for row, count in enumerate(k):
            check(x[row : row + 1], count, values[row : row + 1, :count], indices[row : row + 1, :count])
            assert (indices[row, count:] == -1).all()
            assert (values[row, count:].astype(np.float32) == -np.inf).all()


def test_k_of_any_integer_type():
    x = reference.fill("normal", np.dtype(np.float32), (2, 30))
    for k in (5, np.int64(5), np.int32(5), np.array(5)):
        check(x, 5, *riffle.top_k(x, k))


@pytest.mark.parametrize("algorithm", ["bucket_maxima", "lane_sort"])
def test_stats(framework, algorithm):
    for name in ("normal", "few values", "NaNs", "signed zeros"):
        x = reference.fill(name, np.dtype(np.float32), (6, 2000), seed=1)
        top, stats = riffle.top_k(framework.make(x), 30, algorithm=algorithm, return_stats=True)
        check(x, 30, framework.to_numpy(top.values), framework.to_numpy(top.indices))
        kth, ties, examined, depth = map(framework.to_numpy, stats)
        last = reference.top_k(x, 30)[:, -1]
        np.testing.assert_array_equal(kth, x[np.arange(6), last])
        np.testing.assert_array_equal(ties, [reference.ties(row, column) for row, column in zip(x, last)])
        assert kth.dtype == np.float32 and depth.dtype == np.int32
        if framework.name != "jax":  # which has no int64 unless it is told to
            assert ties.dtype == examined.dtype == np.int64
        assert (examined >= 0).all()
        assert (depth == 1).all() if algorithm == "bucket_maxima" else (depth >= 1).all()


def test_depth_is_that_of_the_certifying_step():
    x = np.zeros((1, 1280), np.float32)
    x[0, [0, 128, 256]] = [3, 2, 1]  # three of the best four in one lane
    _, stats = riffle.top_k(x, 4, algorithm="lane_sort", depth_schedule=[2, 6], return_stats=True)
    assert stats.depth.tolist() == [5]


@pytest.mark.parametrize("shape", [(0, 16), (0, 3, 16), (3, 0, 16)])
def test_no_rows(framework, shape):
    x = framework.make(np.zeros(shape, np.float32))
    (values, indices), stats = riffle.top_k(x, 4, return_stats=True)
    assert values.shape == indices.shape == (*shape[:-1], 4)
    assert all(column.shape == (0,) for column in stats)


def test_one_axis(framework):
    x = reference.fill("normal", np.dtype(np.float32), (1, 500))
    values, indices = map(framework.to_numpy, riffle.top_k(framework.make(x[0]), 5))
    assert values.shape == indices.shape == (5,)
    check(x, 5, values[None], indices[None])


def test_more_axes(framework):
    x = reference.fill("few values", BFLOAT16, (2, 3, 4, 100))
    values, indices = map(framework.to_numpy, riffle.top_k(framework.make(x), 5))
    assert values.shape == (2, 3, 4, 5)
    check(x.reshape(24, 100), 5, values.reshape(24, 5), indices.reshape(24, 5))


def test_results_are_named():
    result = riffle.top_k(np.arange(4, dtype=np.float32), 2)
    assert isinstance(result, riffle.TopK)
    assert result.values.tolist() == [3, 2] and result.indices.tolist() == [3, 2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", reference.DISTRIBUTIONS)
def test_smallest(framework, name, dtype):
    """The reverse order of values, NaN last, of equal values the lower column first."""
    x = reference.fill(name, dtype, (5, 700), seed=3)
    value = x.astype(np.float64)
    nan = np.isnan(value)
    value = np.where(nan, 0.0, value) + 0.0
    expected = np.stack([np.lexsort((np.arange(700), v, n)) for v, n in zip(value, nan)])
    values, indices = riffle.top_k(framework.make(x), 20, largest=False)
    np.testing.assert_array_equal(framework.to_numpy(indices), expected[:, :20])
    np.testing.assert_array_equal(bits(framework.to_numpy(values)), np.take_along_axis(bits(x), expected[:, :20], -1))
    blocks = x[:4].reshape(2, 2, 700).transpose(1, 0, 2)  # no single row stride
    k = np.array([1, 3, 2, 1], np.int32)
    values, indices = riffle.top_k(blocks, k, largest=False)
    for row, (count, source) in enumerate(zip(k, [0, 2, 1, 3])):
        got = values.reshape(4, 3)[row], indices.reshape(4, 3)[row]
        np.testing.assert_array_equal(got[1], np.append(expected[source, :count], [-1] * (3 - count)))
        assert (got[0][count:] == np.inf).all()

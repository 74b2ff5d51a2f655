"""riffle.top_k_per_row and its decode form against the reference."""

import numpy as np
import pytest
import reference
import riffle
from frameworks import DTYPES


def int32(*values):
    return np.array(values, np.int32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["normal", "few values", "NaNs", "ascending"])
@pytest.mark.parametrize("k", [1, 10, 512, 6000])
def test_ranges(target, name, dtype, k):
    n = 5000
    x = reference.fill(name, dtype, (8, n))
    starts = int32(0, 1, 7, 4999, 100, 200, 0, 2500)
    ends = int32(n, n, 8, n, 100, 150, 0, 2500 + 512)
    result = riffle.top_k_per_row(x, starts, ends, k)
    assert result.dtype == np.int32 and result.shape == (8, k)
    np.testing.assert_array_equal(result, reference.top_k_per_row(x, starts, ends, k))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frameworks(framework, dtype):
    x = reference.fill("few values", dtype, (3, 400))
    starts, ends = int32(0, 17, 399), int32(400, 60, 400)
    result = riffle.top_k_per_row(framework.make(x), framework.make(starts), framework.make(ends), 50)
    np.testing.assert_array_equal(framework.to_numpy(result), reference.top_k_per_row(x, starts, ends, 50))


def test_the_first_array_gives_the_framework(framework):
    x = reference.fill("normal", np.dtype(np.float32), (2, 50))
    starts, ends = int32(0, 3), int32(50, 40)
    result = riffle.top_k_per_row(framework.make(x), starts, ends, 4)
    np.testing.assert_array_equal(framework.to_numpy(result), reference.top_k_per_row(x, starts, ends, 4))
    result = riffle.top_k_per_row(x, framework.make(starts), framework.make(ends), 4)
    np.testing.assert_array_equal(result, reference.top_k_per_row(x, starts, ends, 4))


def test_unsorted_is_the_same_set():
    x = reference.fill("few values", np.dtype(np.float32), (3, 4000))
    starts, ends = int32(0, 5, 30), int32(4000, 3000, 100)
    result = riffle.top_k_per_row(x, starts, ends, 300, sorted=False)
    np.testing.assert_array_equal(np.sort(result), np.sort(reference.top_k_per_row(x, starts, ends, 300)))


def test_strided_ranges():
    x = reference.fill("normal", np.dtype(np.float32), (4, 64))
    both = np.stack([int32(0, 1, 2, 3), int32(64, 60, 50, 40)], axis=1)  # columns that are not contiguous
    result = riffle.top_k_per_row(x, both[:, 0], both[:, 1], 5)
    np.testing.assert_array_equal(result, reference.top_k_per_row(x, both[:, 0], both[:, 1], 5))
    result = riffle.top_k_per_row(x[::-1], both[::-1, 0], both[::-1, 1], 5)
    np.testing.assert_array_equal(result, reference.top_k_per_row(x[::-1], both[::-1, 0], both[::-1, 1], 5))


@pytest.mark.parametrize("next_n", [1, 2, 4])
def test_decode(framework, next_n):
    n, k = 300, 40
    x = reference.fill("few values", np.dtype(np.float32), (4 * next_n, n))
    seq_lens = int32(300, 5, 0, 123)
    result = riffle.top_k_per_row_decode(framework.make(x), framework.make(seq_lens), k, next_n=next_n)
    rows = np.arange(4 * next_n)
    ends = np.maximum(0, seq_lens[rows // next_n] - next_n + rows % next_n + 1)
    expected = reference.top_k_per_row(x, np.zeros_like(ends), ends, k)
    np.testing.assert_array_equal(framework.to_numpy(result), expected)


def test_no_rows():
    x, none = np.zeros((0, 8), np.float32), int32()
    assert riffle.top_k_per_row(x, none, none, 3).shape == (0, 3)
    assert riffle.top_k_per_row_decode(x, none, 3, next_n=2).shape == (0, 3)


@pytest.mark.parametrize("make", [lambda shape: np.full(shape, 99, np.int32)])
def test_out_is_written_and_returned(make):
    x = reference.fill("normal", np.dtype(np.float32), (3, 100))
    starts, ends = int32(0, 0, 50), int32(100, 3, 100)
    expected = reference.top_k_per_row(x, starts, ends, 10)
    wide = make((3, 32))
    for out in (make((3, 10)), wide[:, 5:15], make((6, 10))[::-2]):
        assert riffle.top_k_per_row(x, starts, ends, 10, out=out) is out
        np.testing.assert_array_equal(out, expected)
    assert (wide[:, :5] == 99).all() and (wide[:, 15:] == 99).all()
    out = make((3, 10))
    assert riffle.top_k_per_row_decode(x, int32(100, 3, 50), 10, out=out) is out
    np.testing.assert_array_equal(out, reference.top_k_per_row(x, int32(0, 0, 0), int32(100, 3, 50), 10))

"""Slow, plain truth, written apart from the library, and the inputs it is held against."""

import numpy as np


def order(row):
    """The columns of a row, best first: NaN, then descending, -0 equal to +0; of equals the lower column."""
    value = row.astype(np.float64)
    nan = np.isnan(value)
    value = np.where(nan, 0.0, value) + 0.0
    return np.lexsort((np.arange(row.size), -value, ~nan))


def top_k(x, k):
    """Columns [rows, k] of the k best of each row of x [rows, n]."""
    return np.stack([order(row)[:k] for row in x]).astype(np.int32) if len(x) else np.empty((0, k), np.int32)


def top_k_per_row(x, starts, ends, k):
    """[rows, k] relative to starts, padded with -1."""
    result = np.full((len(x), k), -1, np.int32)
    for r, (row, start, end) in enumerate(zip(x, starts, ends)):
        best = order(row[start : max(start, end)])[:k]
        result[r, : len(best)] = best
    return result


def ties(row, column):
    """How many elements of a row equal that of a column, NaNs being equal."""
    value = row.astype(np.float64)
    return int(np.isnan(value).sum() if np.isnan(value[column]) else (value == value[column]).sum())


def _normal(rng, shape):
    return rng.standard_normal(shape)


def _sprinkle(rng, shape, values, share):
    x = rng.standard_normal(shape)
    where = rng.random(shape) < share
    x[where] = rng.choice(values, where.sum())
    return x


DISTRIBUTIONS = {
    "normal": _normal,
    "negative": lambda rng, shape: -np.abs(rng.standard_normal(shape)) - 1,
    "few values": lambda rng, shape: rng.integers(-3, 4, shape) / 2,
    "ascending": lambda rng, shape: np.sort(rng.standard_normal(shape), axis=-1),
    "descending": lambda rng, shape: -np.sort(rng.standard_normal(shape), axis=-1),
    "all equal": lambda rng, shape: np.full(shape, 1.5),
    "signed zeros": lambda rng, shape: rng.choice([0.0, -0.0], shape),
    "NaNs": lambda rng, shape: _sprinkle(rng, shape, [np.nan, -np.nan], 0.2),
    "all NaN": lambda rng, shape: rng.choice([np.nan, -np.nan], shape),
    "infinities": lambda rng, shape: _sprinkle(rng, shape, [np.inf, -np.inf], 0.2),
    "mostly -inf": lambda rng, shape: _sprinkle(rng, shape, [-np.inf], 0.97),
    # Numbers of both signs, no larger than float16's largest denormal; equal to zero for a kernel that flushes them.
    "denormals": lambda rng, shape: rng.integers(-8, 9, shape) * 2.0**-24,
}


def fill(name, dtype, shape, seed=0):
    """An input by the name of its distribution. For float32 and bfloat16 the denormals are scaled into their denormal range."""
    x = DISTRIBUTIONS[name](np.random.default_rng(seed), shape)
    if name == "denormals" and dtype != np.float16:
        x = x * 2.0 ** (-149 + 24 if dtype == np.float32 else -133 + 24)
    with np.errstate(all="ignore"):
        return x.astype(np.float32).astype(dtype)

"""Exact top-k: whole rows, ranges of rows, and the planner of the lane sort."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Sequence

from riffle import _core

if TYPE_CHECKING:
    import numpy

Array = Any


class TopK(NamedTuple):
    """The k best of each row, best first."""

    values: Array
    indices: Array


TopK.values.__doc__ = "[..., k], dtype of x"
TopK.indices.__doc__ = "[..., k], int32 or the dtype of ids"


class TopKStats(NamedTuple):
    """What each row cost, its k-th value and the ties at it; rows are the leading axes of x in row-major order."""

    kth_value: Array
    ties_at_kth: Array
    elements_examined: Array
    depth: Array


TopKStats.kth_value.__doc__ = (
    "[rows], the k-th value: float32; of float64 and integers float64, which rounds integers beyond 2^53"
)
TopKStats.ties_at_kth.__doc__ = "[rows] int64, how many elements of the row equal the k-th value"
TopKStats.elements_examined.__doc__ = "[rows] int64, reads beyond the first pass"
TopKStats.depth.__doc__ = "[rows] int32; lane sort: m - 1 for the step m that certified the row; bucket maxima: 1"


def top_k(
    x: Array,
    k: int | Array,
    *,
    sorted: bool = True,
    largest: bool = True,
    algorithm: Literal["auto", "bucket_maxima", "lane_sort"] = "auto",
    lanes: int = 128,
    depth_schedule: Sequence[int] | None = None,
    out: TopK | None = None,
    return_stats: bool = False,
    ids: Array | None = None,
) -> TopK | tuple[TopK, TopKStats]:
    """The k best of each row, exactly: values and their columns, best first.

    Descending; NaN of either sign above +inf, all NaNs equal; -0 equals +0; of equal values the lower column first.
    Values come out with the bits they have in x.

    Args:
      x: [..., n] floating-point numbers (bfloat16 through ml_dtypes), integers or bool. The last axis is contiguous; the others may have any strides, zero and
        negative included, and nothing is copied.
      k: 1 to n; or int32 [rows], one for each row (rows are the leading axes of x in row-major order). Then results have
        max(k) columns, padded with -inf (integers: the lowest of their dtype) and -1; if largest is False with +inf (the
        highest) and -1.
      sorted: False returns the same set in an order that is not specified, though always the same.
      largest: False takes the k smallest, smallest first: NaN last of all, -0 equal to +0, of equal values the lower
        column first.
      algorithm: "bucket_maxima" reduces each bucket of a row to its maximum; the k-th largest maximum bounds the k-th
        largest value, so that few buckets need a second look. "lane_sort" keeps the m best of each of `lanes` lanes and
        raises m until a certificate proves that the k best are among them (after oliverdutton/fast_exact_topk_tpu).
        "auto" takes what measured fastest. The result is the same. Lane sort is for float32, float16 and bfloat16.
      lanes: of the lane sort: a power of two, 1 to 4096.
      depth_schedule: of the lane sort: increasing m to try in turn, after the last of which m doubles; None: the
        planner's (see plan_top_k).
      out: (values, indices) to write into, of the shapes and dtypes below, NumPy or PyTorch. Rows evenly spaced, last
        axis contiguous, sharing no memory with each other or with x. They are returned.
      return_stats: also return TopKStats. Counting ties reads the rows once more.
      ids: int32 or int64, [n] or of x's shape: what is returned as indices, ids[..., column] for a column. Ties still go
        to the lower column. With it the results of shards are merged: x is their best values side by side, ids the columns of
        those in the whole row.

    Returns:
      TopK(values [..., k] of x's dtype, indices [..., k] int32, or of the dtype of ids), or (TopK, TopKStats), arrays of
      x's framework.

    Raises:
      ValueError: k is not in 1..n; a last axis that is not contiguous; an array that is not on the CPU; an unknown
        option; out of a wrong shape, read-only or overlapping.
      TypeError: x is not an array or not of the dtypes above; k or out of a wrong type or dtype; out is immutable.
      MemoryError: no memory for the results or for scratch.

    >>> import numpy as np, riffle
    >>> x = np.array([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]], np.float32)
    >>> values, indices = riffle.top_k(x, 3)
    >>> values
    array([[5., 4., 3.],
           [8., 7., 2.]], dtype=float32)
    >>> indices
    array([[4, 2, 0],
           [3, 1, 0]], dtype=int32)
    >>> riffle.top_k(x, np.array([1, 2], np.int32)).indices
    array([[ 4, -1],
           [ 3,  1]], dtype=int32)
    >>> riffle.top_k(x, 2, largest=False).values
    array([[1., 1.],
           [1., 2.]], dtype=float32)
    >>> top, stats = riffle.top_k(x, 3, return_stats=True)
    >>> stats.kth_value, stats.ties_at_kth
    (array([3., 2.], dtype=float32), array([1, 2]))
    """
    if type(x).__name__ == "ArrayImpl" and out is None and ids is None and return_stats is False:
        plain = sorted is True and largest is True and algorithm == "auto" and lanes == 128 and depth_schedule is None
        top = _jax_top_k(x, k) if plain else None
        if top is not None:
            return TopK(*top)
    if return_stats is not False:
        values, indices, *stats = _core.top_k(x, k, sorted, largest, algorithm, lanes, depth_schedule, out, return_stats, ids)
        top = TopK(values, indices)
        return (top, TopKStats(*stats)) if stats else top
    return TopK(*_core.top_k(x, k, sorted, largest, algorithm, lanes, depth_schedule, out, False, ids))


def _jax_top_k(x, k):
    from riffle import _jax  # imports JAX, which is there if such arrays are

    return _jax.top_k(x, k)


def top_k_per_row(
    x: Array,
    starts: Array,
    ends: Array,
    k: int,
    *,
    sorted: bool = True,
    out: Array | None = None,
    index_order_if_short: bool = False,
) -> Array:
    """The columns of the k best of a range of each row, relative to the start of the range.

    The contract of FlagGems' and vLLM's top_k_per_row_prefill (sparse attention's choice of tokens), in the order of
    top_k.

    Args:
      x: [rows, n] floating-point numbers, integers or bool, any row stride, columns contiguous.
      starts, ends: int32 [rows]; row r selects from the columns [starts[r], ends[r]), none if starts[r] >= ends[r].
        Any framework's.
      k: at least 1; may exceed n.
      sorted: False returns the same set, then the -1s, in an order that is not specified, though always the same.
      out: int32 [rows, k] to write into, NumPy or PyTorch, any row stride; returned.
      index_order_if_short: a range of at most k columns gives 0, 1, ... in this order, then -1, without reading its
        elements, as FlashInfer and vLLM do.

    Returns:
      int32 [rows, k] of x's framework, best first, padded with -1 where a range is shorter than k.

    Raises:
      ValueError: k < 1; a negative start; an end past n; lengths that differ; x or out as in top_k.
      TypeError: a wrong dtype, or no array.

    >>> import numpy as np, riffle
    >>> x = np.array([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]], np.float32)
    >>> riffle.top_k_per_row(x, np.array([1, 3], np.int32), np.array([5, 5], np.int32), 3)
    array([[ 3,  1,  0],
           [ 0,  1, -1]], dtype=int32)
    """
    return _core.top_k_per_row(x, starts, ends, k, sorted, out, index_order_if_short)


def top_k_per_row_decode(
    x: Array,
    seq_lens: Array,
    k: int,
    *,
    next_n: int = 1,
    out: Array | None = None,
    index_order_if_short: bool = False,
) -> Array:
    """top_k_per_row for decoding, where a row sees the tokens before it (vLLM's top_k_per_row_decode).

    Args:
      x: [batch * next_n, n] floating-point numbers, integers or bool, any row stride, columns contiguous.
      seq_lens: int32 [batch]; row r sees the columns [0, seq_lens[r // next_n] - next_n + r % next_n + 1), none if that
        is not positive.
      k: at least 1; may exceed n.
      next_n: rows of a sequence, at least 1.
      out: int32 [batch * next_n, k] to write into, NumPy or PyTorch, any row stride; returned.
      index_order_if_short: as in top_k_per_row.

    Returns:
      int32 [batch * next_n, k] of x's framework, best first, padded with -1.

    Raises:
      ValueError: k or next_n < 1; a length past n; rows that are not len(seq_lens) * next_n; x or out as in top_k.
      TypeError: a wrong dtype, or no array.

    >>> import numpy as np, riffle
    >>> x = np.array([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]], np.float32)
    >>> riffle.top_k_per_row_decode(x, np.array([4], np.int32), 3, next_n=2)
    array([[2, 0, 1],
           [3, 1, 0]], dtype=int32)
    """
    return _core.top_k_per_row_decode(x, seq_lens, k, next_n, out, index_order_if_short)


def plan_top_k(
    n: int, k: int, *, rows: int = 1, lanes: int = 128, depth_schedule: Sequence[int] | None = None
) -> dict:
    """What top_k does for float32 x [rows, n]: a function of the arguments alone, no data is read.

    Returns a dict of ::

      algorithm             what "auto" runs
      buckets, bucket_size  bucket maxima: buckets of a row (0: none), elements of a bucket
      depth_schedule        lane sort: list of the m tried in turn
      batch_done            lane sort: list, P(all rows are certified at that step) for rows in random order, which is
                            P(depth < m) ** rows
      expected_depth        lane sort: mean depth of a row
      expected_batch_depth  lane sort: mean of the largest depth among the rows

    The depth of a row is the largest number of its k best that share a lane; depth_probabilities has its distribution.
    Raises ValueError where top_k would, and for rows < 0.

    >>> import riffle
    >>> plan = riffle.plan_top_k(201088, 64, rows=32, depth_schedule=[3, 5, 9])
    >>> plan["algorithm"], plan["depth_schedule"]
    ('bucket_maxima', [3, 5, 9])
    >>> [round(done, 4) for done in plan["batch_done"]]
    [0.0, 0.5372, 1.0]
    """
    return _core.plan_top_k(n, k, rows, lanes, depth_schedule)


def depth_probabilities(k: int, lanes: int = 128) -> numpy.ndarray:
    """P(depth = m) for m = 1..k, where depth is the largest number of the k best of a row that share one of `lanes` lanes
    when they fall at random.

    Exact, from P(depth <= m) = k!/lanes^k [x^k] (sum_{j <= m} x^j/j!)^lanes; oliverdutton/fast_exact_topk_tpu predicts
    its depth by the same distribution.

    Args:
      k: 1 to 65536.
      lanes: 1 to 2^20.

    Returns:
      numpy float64 [k]; element m - 1 is P(depth = m).

    Raises:
      ValueError: k or lanes out of range.

    >>> import riffle
    >>> riffle.depth_probabilities(64, 128)[1:4].round(5)
    array([0.13437, 0.67366, 0.17274])
    """
    return _core.depth_probabilities(k, lanes)

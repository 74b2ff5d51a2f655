"""The LM head: a linear layer, and its fusion with the top-k of what comes out of it."""

from __future__ import annotations

from typing import Any, Literal

from riffle import _core
from riffle._topk import TopK

Array = Any


def linear(
    x: Array,
    weight: Array,
    *,
    bias: Array | None = None,
    weight_format: Literal["q8_0"] | None = None,
    out: Array | None = None,
) -> Array:
    """x @ weight.T + bias in float32.

    Accumulation is in float32, every result a sum in an order that depends on d and the dtypes alone: a row's result is the
    same, bit for bit, whatever rows are beside it, for any number of threads and either layout of the weights. A float32 x
    is not rounded; bfloat16 x and weight are multiplied by bfloat16 dot products where the CPU has them. A zero comes out as
    +0, a NaN as the quiet NaN.

    Args:
      x: [rows, d] float32, float16 or bfloat16, any row stride, d contiguous.
      weight: [vocab, d] float32, float16 or bfloat16, read in place; one axis contiguous, the other of any stride. A
        [d, vocab] matrix passes as its transpose.
      bias: [vocab] float32, float16 or bfloat16, contiguous.
      weight_format: "q8_0" for weights in GGUF's Q8_0: weight is then uint8 [vocab, d / 32 * 34], a row's blocks side by
        side: a little-endian float16 scale and 32 int8 each. None: as the dtype says.
      out: float32 [rows, vocab] to write into, NumPy or PyTorch, any row stride, sharing no memory with the other
        arguments; returned.

    Returns:
      float32 [rows, vocab] of x's framework.

    Raises:
      ValueError: shapes that do not fit each other; no contiguous axis; an unknown weight_format; out of a wrong shape,
        read-only or overlapping.
      TypeError: a wrong dtype, or no array.
      MemoryError: no memory for the results or for scratch.

    >>> import numpy as np, riffle
    >>> x = np.array([[1, 2], [3, -1]], np.float32)
    >>> weight = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    >>> riffle.linear(x, weight, bias=np.array([0, 0, 10], np.float32))
    array([[ 1.,  2., 13.],
           [ 3., -1., 12.]], dtype=float32)
    """
    return _core.linear(x, weight, weight_format, bias, out)


def linear_top_k(
    x: Array,
    weight: Array,
    k: int,
    *,
    bias: Array | None = None,
    weight_format: Literal["q8_0"] | None = None,
) -> TopK:
    """The k best of each row of linear(x, weight), without the logits ever being stored whole.

    Values and indices are bit for bit those of top_k over the result of `linear`: descending, NaN above +inf, of equal
    values the lower token first.

    Args:
      x, weight, bias, weight_format: as for `linear`.
      k: 1 to vocab.

    Returns:
      TopK(values float32 [rows, k], indices int32 [rows, k]) of x's framework.

    Raises:
      ValueError: k is not in 1..vocab; shapes that do not fit each other; no contiguous axis; an unknown weight_format.
      TypeError: a wrong dtype, or no array.
      MemoryError: no memory for the results or for scratch.

    >>> import numpy as np, riffle
    >>> x = np.array([[1, 2], [3, -1]], np.float32)
    >>> weight = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    >>> values, indices = riffle.linear_top_k(x, weight, 2)
    >>> values
    array([[3., 2.],
           [3., 2.]], dtype=float32)
    >>> indices
    array([[2, 1],
           [0, 2]], dtype=int32)
    """
    return TopK(*_core.linear_top_k(x, weight, k, weight_format, bias))

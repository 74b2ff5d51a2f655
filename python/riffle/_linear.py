"""The LM head: a linear layer and the top-k of what comes out of it."""

from __future__ import annotations

from typing import Any

from riffle import _core
from riffle._topk import TopK

Array = Any


def linear_top_k(x: Array, weight: Array, k: int, *, bias: Array | None = None) -> TopK:
    """The k best of each row of x @ weight.T + bias, without the logits ever being stored whole.

    Accumulation is in float32, every logit a sum in an order that depends on d and the dtypes alone: a row's result is the
    same, bit for bit, whatever rows are beside it, for any number of threads and either layout of the weights. A float32 x
    is not rounded; bfloat16 x and weight are multiplied by bfloat16 dot products where the CPU has them. Values are those
    of top_k over the whole product: descending, NaN above +inf, of equal values the lower token first.

    Args:
      x: [rows, d] float32, float16 or bfloat16, any row stride, d contiguous.
      weight: [vocab, d] float32, float16 or bfloat16, read where it lies; one axis contiguous, the other of any stride. A
        [d, vocab] matrix passes as its transpose.
      k: 1 to vocab.
      bias: [vocab] float32, float16 or bfloat16, contiguous.

    Returns:
      TopK(values float32 [rows, k], indices int32 [rows, k]) of x's framework.

    Raises:
      ValueError: k is not in 1..vocab; shapes that do not fit each other; no contiguous axis.
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
    return TopK(*_core.linear_top_k(x, weight, k, bias))

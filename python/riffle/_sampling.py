"""Sampling: the next token of each sequence from its logits."""

from __future__ import annotations

from typing import Any

from riffle import _core

Array = Any


def sample(
    logits: Array,
    *,
    temperature: float | Array = 1.0,
    top_k: int | Array = 0,
    top_p: float | Array = 1.0,
    min_p: float | Array = 0.0,
    seed: int = 0,
    stream: int | Array | None = None,
    position: int | Array | None = None,
    return_logprobs: bool = False,
) -> Array | tuple[Array, Array]:
    """A column of each row, drawn with the probabilities that the filters leave.

    In this order: softmax of logits / temperature; the top_k best columns; of those, renormalised, the smallest prefix,
    best first, whose mass reaches top_p, the column that crosses it included; of those, the ones at least min_p times as
    probable as the best; renormalise; draw. Best first means: descending, of equal values the lower column first. top_p is
    exact over the whole vocabulary, which is not sorted for it.

    A row's token depends on the row, its parameters and (seed, stream, position) alone: not on the batch, the number of
    threads or the layout. The random numbers are Philox4x32-10's (Salmon et al. 2011).

    Args:
      logits: [rows, vocab] float32, float16 or bfloat16, any row stride, columns contiguous; read where it lies. -inf is
        never drawn. Where a row has +inf, those columns share the whole mass.
      temperature: finite, at least 0. 0 is greedy: the best column, filters ignored.
      top_k: at least 0; 0, and more than there are columns, means off.
      top_p: 0 to 1; 1 means off, 0 leaves the best column.
      min_p: 0 to 1; 0 means off.
      seed: 0 to 2^64 - 1.
      stream: integers [rows], or one for all rows; None: the row's number. Pass request ids, and a request's tokens do not
        depend on the rows beside it.
      position: integers [rows], or one for all rows; None: 0. The position of the token in its sequence.
      return_logprobs: also return the log-probability of each token: log-softmax of the raw logits, natural log, whatever
        the temperature and the filters.

      The first four take one number, or an array [rows]. Arrays may have any integer dtype and, but for top_k, stream and
      position, float16, bfloat16, float32 or float64.

    Returns:
      int32 [rows], or (int32 [rows], float32 [rows]), arrays of logits' framework.

    Raises:
      ValueError: a row with a NaN, or with nothing above -inf, named in the text; a parameter out of its limits or of the
        wrong length, or beyond what the library computes with (float32; int32 and, for stream and position, int64); a
        last axis that is not contiguous; an array that is not on the CPU.
      TypeError: no array, or a wrong dtype.

    >>> import numpy as np, riffle
    >>> logits = np.array([[1, 3, 2, 0], [0, 0, 0, 9]], np.float32)
    >>> riffle.sample(logits, temperature=0)
    array([1, 3], dtype=int32)
    >>> tokens, logprobs = riffle.sample(logits, top_k=2, top_p=0.95, seed=1, return_logprobs=True)
    >>> tokens
    array([2, 3], dtype=int32)
    >>> logprobs.round(4)
    array([-1.4402e+00, -4.0000e-04], dtype=float32)
    """
    return _core.sample(logits, temperature, top_k, top_p, min_p, seed, stream, position, return_logprobs)

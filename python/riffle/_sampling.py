"""Sampling: the next token of each sequence from its logits."""

from __future__ import annotations

from typing import Any, Literal

from riffle import _core

Array = Any


def sample(
    logits: Array,
    *,
    temperature: float | Array = 1.0,
    top_k: int | Array = 0,
    top_p: float | Array = 1.0,
    min_p: float | Array = 0.0,
    seed: int | Array = 0,
    stream: int | Array | None = None,
    position: int | Array | None = None,
    return_logprobs: bool = False,
    on_invalid: Literal["raise", "token"] = "raise",
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
      seed: 0 to 2^64 - 1; an int, or integers [rows].
      stream: integers [rows], or one for all rows; None: the row's number. Pass request ids, and a request's tokens do not
        depend on the rows beside it.
      position: integers [rows], or one for all rows; None: 0. The position of the token in its sequence.
      return_logprobs: also return the log-probability of each token: log-softmax of the raw logits, natural log, whatever
        the temperature and the filters.
      on_invalid: what becomes of a row with a NaN or with nothing above -inf. "raise" fails the call; "token" gives that row
        token -1 and log-probability NaN, and draws the others as if it were not there.

      All but the last two take one number, or an array [rows]. Arrays may have any integer dtype and, but for top_k, seed,
      stream and position, float16, bfloat16, float32 or float64.

    Returns:
      int32 [rows], or (int32 [rows], float32 [rows]), arrays of logits' framework.

    Raises:
      ValueError: a row with a NaN, or with nothing above -inf, named in the text, unless on_invalid is "token"; a parameter out of its limits or of the
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
    return _core.sample(logits, temperature, top_k, top_p, min_p, seed, stream, position, return_logprobs, on_invalid)


def apply_top_k_top_p_(
    logits: Array, top_k: int | Array | None, top_p: float | Array | None, min_p: float | Array | None = None
) -> Array:
    """Filters logits in place: what top_k, top_p and min_p drop becomes -inf, the rest keeps its bits.

    What is left is what riffle.sample, with the same filters and a temperature of 1, draws from: of equal values at the end of
    top_k or top_p the columns that come first. Divide by the temperature before, where there is one. Each filter works on what
    the one before it leaves: top_k, then top_p, then min_p. Nothing is sorted.

    A row with a NaN, or with nothing above -inf, has no best columns and stays as it is; so does a row whose filters are off.
    No row makes the call fail.

    Args:
      logits: [rows, vocab] float32, any row stride, columns contiguous; overwritten.
      top_k: at least 0; 0, None and more than there are columns mean off.
      top_p: 0 to 1; 1 and None mean off, 0 leaves the best column.
      min_p: 0 to 1; 0 and None mean off. Columns are kept that are at least min_p times as probable as the best.

      The last three take one number, or an array [rows] of the dtypes that riffle.sample takes.

    Returns:
      logits.

    Raises:
      ValueError: a parameter out of its limits or of the wrong length; rows that share memory; memory that cannot be written,
        as JAX's; a last axis that is not contiguous. Nothing has been written then.
      TypeError: no array, or a wrong dtype.

    >>> import numpy as np, riffle
    >>> logits = np.array([[1, 3, 2, 0], [4, 0, 4, 4]], np.float32)
    >>> riffle.apply_top_k_top_p_(logits, 2, None)
    array([[-inf,   3.,   2., -inf],
           [  4., -inf,   4., -inf]], dtype=float32)
    """
    _core.apply_top_k_top_p_(logits, top_k, top_p, min_p)
    return logits

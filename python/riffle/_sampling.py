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
    top_logprobs: int = 0,
    allowed: Array | None = None,
    logit_bias: tuple[Array, Array, Array] | None = None,
    repetition_penalty: float | Array = 1.0,
    presence_penalty: float | Array = 0.0,
    frequency_penalty: float | Array = 0.0,
    prompt_tokens: tuple[Array, Array] | None = None,
    output_tokens: tuple[Array, Array] | None = None,
) -> Array | tuple[Array, ...]:
    """A column of each row, drawn with the probabilities that the filters leave.

    In this order: softmax of logits / temperature; the top_k best columns; of those, renormalised, the smallest prefix,
    best first, whose mass reaches top_p, the column that crosses it included; of those, the ones at least min_p times as
    probable as the best; renormalise; draw. Best first means: descending, of equal values the lower column first. top_p is
    exact over the whole vocabulary, which is not sorted for it.

    A row's token depends on the row, its parameters and (seed, stream, position) alone: not on the batch, the number of
    threads or the layout. The random numbers are Philox4x32-10's (Salmon et al. 2011).

    Logits change in this order: allowed, logit_bias, repetition, frequency, presence penalty; then the temperature and the
    filters. Tokens and offsets are int32 or int64.

    Numbers are one for all rows, or an array [rows]. Arrays may have any integer dtype and, but for top_k, seed,
    stream and position, float16, bfloat16, float32 or float64.

    Args:
      logits: [rows, vocab] float32, float16 or bfloat16, any row stride, columns contiguous; read in place. -inf is
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
      on_invalid: what happens with a row that has a NaN, or nothing above -inf. "raise" fails the call; "token" gives that row
        token -1 and log-probability NaN, and draws the others as if it were not there.
      top_logprobs: also return this many of the best log-probabilities of each row, of raw logits too, and their tokens.
      allowed: int32 [rows, ceil(vocab / 32)], as structured-output engines make it: column c is allowed where bit c % 32 of
        word c // 32 is set; the logits of all others become -inf.
      logit_bias: (tokens, values, offsets): values[i] is added to the logit of tokens[i]; row r has the elements
        offsets[r] to offsets[r + 1]. Values are finite or -inf.
      repetition_penalty: r > 0: logits of tokens in prompt_tokens or output_tokens are divided by it where they are positive,
        multiplied where they are negative.
      frequency_penalty: subtracted from a token's logit for each time it is in output_tokens.
      presence_penalty: subtracted once from the logit of each token of output_tokens.
      prompt_tokens, output_tokens: (tokens, offsets), ragged as logit_bias; every token is 0 to vocab - 1.

    Returns:
      int32 [rows]; or a tuple of these, of float32 [rows] with return_logprobs, and of float32 [rows, top_logprobs] and
      int32 [rows, top_logprobs] with top_logprobs. Arrays of logits' framework.

    Raises:
      ValueError: a row with a NaN, or with nothing above -inf, named in the text, unless on_invalid is "token"; a parameter
        out of its limits or of the wrong length, or beyond what the library computes with (float32; int32 and, for stream and position, int64); a
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
    return _core.sample(logits, temperature, top_k, top_p, min_p, seed, stream, position, return_logprobs, on_invalid,
                        top_logprobs, allowed, logit_bias, repetition_penalty, frequency_penalty, presence_penalty,
                        prompt_tokens, output_tokens)  # fmt: skip


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


def verify_drafts(
    logits: Array,
    draft_tokens: Array,
    offsets: Array,
    *,
    draft_probs: Array | None = None,
    temperature: float | Array = 1.0,
    top_k: int | Array = 0,
    top_p: float | Array = 1.0,
    min_p: float | Array = 0.0,
    seed: int | Array = 0,
    stream: int | Array | None = None,
    position: int | Array | None = None,
    on_invalid: Literal["raise", "token"] = "raise",
) -> Array:
    """Verifies the drafts of speculative decoding by exact rejection sampling (Leviathan et al. 2023; Chen et al. 2023).

    What comes out follows the distribution that the filters leave of the target's logits, whatever the drafts are. With
    draft_probs q, draft d is accepted with min(1, p(d) / q(d)), and after the last one accepted a token is drawn from the
    positive part of p - q, renormalised; after all drafts, from p. Without draft_probs each draft counts as certain (greedy, n-grams):
    each position is drawn as riffle.sample draws it and its draft accepted if it is the token drawn, so the tokens are
    those that riffle.sample gives one by one.

    Args:
      logits: [drafts + requests, vocab] float32, float16 or bfloat16: for each request one row for each draft's position,
        then one for the position after them.
      draft_tokens: integers [drafts], 0 to vocab - 1.
      offsets: int32 or int64 [requests + 1]: request r has the drafts offsets[r] to offsets[r + 1]; it may have none.
      draft_probs: float32 [drafts, vocab], what each draft was drawn from.
      temperature, top_k, top_p, min_p, seed: as riffle.sample's, one number or an array [requests].
      stream: integers [requests], or one for all; None: the request's number.
      position: integers [requests], or one for all; None: 0. The position of the request's first draft; those after it follow.
      on_invalid: "raise", or "token": a row without an answer gives token -1 and ends its request.

    Returns:
      int32 [requests, 1 + the most drafts of a request]: the drafts accepted, one token more, then -1.

    Raises:
      ValueError, TypeError: as riffle.sample; nothing has been written.

    >>> import numpy as np, riffle
    >>> logits = np.array([[0, 9, 0], [0, 0, 9], [9, 0, 0]], np.float32)
    >>> riffle.verify_drafts(logits, np.array([1, 0]), np.array([0, 2]), temperature=0)
    array([[ 1,  2, -1]], dtype=int32)
    """
    return _core.verify_drafts(logits, draft_tokens, offsets, draft_probs, temperature, top_k, top_p, min_p, seed, stream,
                               position, on_invalid)  # fmt: skip

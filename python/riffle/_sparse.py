"""Sparse attention: the indexer, what it selects, and attention over it."""

from __future__ import annotations

from typing import Any, Literal, Sequence

from riffle import _core
from riffle._arguments import as_bool, as_float, short_repr
from riffle._sparse_arguments import as_int32, e4m3_codes, scopes_of

Array = Any


def _index_keys(keys: Array, key_format: str | None) -> tuple[Array, str | None]:
    codes, is_e4m3 = e4m3_codes(keys)
    if is_e4m3 and key_format not in (None, "plain", "e4m3"):
        raise ValueError(f"key_format = {short_repr(key_format)} is for uint8 keys, not float8_e4m3fn")
    return codes, "e4m3" if is_e4m3 else key_format


def indexer_logits(
    q: Array,
    weights: Array | None,
    keys: Array,
    kv_lens: Array,
    page_table: Array,
    *,
    cu_q_lens: Array | None = None,
    key_scales: Array | None = None,
    key_format: str | None = None,
    ratio: int = 1,
    activation: Literal["relu", "none"] = "relu",
    out: Array | None = None,
) -> Array:
    """Scores of every key that a query sees: I[t, s] = scale(s) * sum over h of weights[t, h] * relu(q[t, h] . keys[s]).

    The scoring of DeepSeek's sparse attention and its relatives. One key serves all heads. With int8 keys, q . k is an exact
    integer, and scores are the same bits on every SIMD target; a q that is not int8 is then rounded to int8, each head by a
    scale of its own.

    Args:
      q: [tokens, heads, head_dim] float32, float16, bfloat16, float8_e4m3fn or int8; up to 128 heads, head_dim a multiple of 16
        from 32 to 256. Where keys went through hadamard, q must have too.
      weights: float32 [tokens, heads], with q's scale and any other factor in it; None: all 1.
      keys: [pages, page_size, head_dim] of the same dtypes, or uint8 [pages, page_size * (head_dim + 4)] with
        key_format="deepgemm": all keys of a page as float8_e4m3fn, then their float32 scales; or uint8 [pages, page_size *
        (head_dim / 2 + 4)] with "mxfp4": all keys, two e2m1 a byte, then 4 bytes of e8m0 scales a key, one for each 32 elements.
      kv_lens: int32 or int64 [B], tokens of each sequence. The queries of a sequence are its last positions; one at position p
        sees the keys s < (p + 1) // ratio.
      page_table: int32 or int64 [B, max_pages], pages of keys.
      cu_q_lens: int32 or int64 [B + 1], where the queries of each sequence begin and end; None: one query a sequence.
      key_scales: float32 that broadcasts to keys.shape[:-1]; int8 keys must have them.
      key_format: None or "plain", "deepgemm", "mxfp4"; "e4m3": uint8 keys are codes of float8_e4m3fn.
      ratio: tokens that a key stands for.
      activation: "relu" or "none".
      out: float32 [tokens, n] to write into.

    Returns:
      float32 [tokens, n], n the most keys that any query sees; -inf after the keys that a query sees.

    Raises:
      ValueError: a shape, length, page number or option out of its limits; nothing is written then.
      TypeError: a wrong dtype, or no array.

    >>> import numpy as np, riffle
    >>> q = np.ones((1, 2, 32), np.float32)
    >>> keys = np.stack([np.full(32, x, np.float32) for x in (1, -1, 2)])[None]
    >>> riffle.indexer_logits(q, np.array([[1, 0.5]], np.float32), keys, np.array([3]), np.array([[0]]))
    array([[48.,  0., 96.]], dtype=float32)
    """
    q, q_e4m3 = e4m3_codes(q)
    keys, key_format = _index_keys(keys, key_format)
    return _core.indexer_logits(q, q_e4m3, weights, keys, as_int32("kv_lens", kv_lens), as_int32("page_table", page_table),
                                as_int32("cu_q_lens", cu_q_lens), key_scales, key_format, ratio, activation, out)


def indexer_top_k(
    q: Array,
    weights: Array | None,
    keys: Array,
    kv_lens: Array,
    page_table: Array,
    k: int,
    *,
    cu_q_lens: Array | None = None,
    key_scales: Array | None = None,
    key_format: str | None = None,
    ratio: int = 1,
    activation: Literal["relu", "none"] = "relu",
    block: int = 1,
    reduce: Literal["max", "mean"] = "max",
    first_blocks: int = 0,
    local_blocks: int = 0,
    incomplete_tail: bool = False,
    candidates: Array | None = None,
    candidate_span: int = 1,
    slots: bool = False,
    out: Array | None = None,
) -> Array:
    """The k best keys of each query by indexer_logits, best first, without storing the scores.

    The result has the bits of top_k_per_row(indexer_logits(...)): of equal scores the lower position comes first. Where
    all keys fit into k nothing is scored: the result is 0, 1, 2, ..., then -1.

    Args:
      q, weights, keys, kv_lens, page_table, cu_q_lens, key_scales, key_format, ratio, activation: as in indexer_logits.
      k: how many, at least 1.
      block: keys of a block. With more than 1, blocks are selected and the result has their numbers.
      reduce: the score of a block: the "max" or the "mean" of its keys'; the last block may have fewer.
      first_blocks, local_blocks: this many of the first and of the last blocks that the query sees are always selected, before
        all others and in ascending order; together at most k.
      incomplete_tail: the last block is always selected too if it has fewer than `block` keys.
      candidates: int32 [tokens, c], the only blocks that may be selected beside those that always are; -1 and what a query does
        not see are ignored.
      candidate_span: a candidate c stands for candidate_span blocks, from block c * candidate_span on.
      slots: page * page_size + offset in place of positions; block must be 1.
      out: int32 [tokens, k] to write into.

    Returns:
      int32 [tokens, k], -1 padded.

    Raises:
      ValueError, TypeError: as indexer_logits.

    >>> import numpy as np, riffle
    >>> q = np.ones((1, 1, 32), np.float32)
    >>> keys = np.stack([np.full(32, x, np.float32) for x in (1, 3, 2, 3)])[None]
    >>> riffle.indexer_top_k(q, None, keys, np.array([4]), np.array([[0]]), 3)
    array([[1, 3, 2]], dtype=int32)
    """
    q, q_e4m3 = e4m3_codes(q)
    keys, key_format = _index_keys(keys, key_format)
    return _core.indexer_top_k(q, q_e4m3, weights, keys, as_int32("kv_lens", kv_lens), as_int32("page_table", page_table), k,
                               as_int32("cu_q_lens", cu_q_lens), key_scales, key_format, ratio, activation, block, reduce,
                               first_blocks, local_blocks, incomplete_tail, as_int32("candidates", candidates), candidate_span,
                               slots, out)


def write_index_keys(
    keys: Array,
    slots: Array,
    pages: Array,
    scales: Array | None = None,
    *,
    format: Literal["plain", "e4m3", "deepgemm", "mxfp4", "int8"],
    hadamard: bool = True,
) -> None:
    """Writes index keys into pages, quantised; RoPE is the caller's.

    Args:
      keys: [tokens, head_dim] float32, float16 or bfloat16.
      slots: int32 or int64 [tokens], page * page_size + offset; -1 skips a key; where slots are equal the later key stays.
      pages: [pages, page_size, head_dim] to write into: "plain" float32, float16 or bfloat16, "int8" int8, "e4m3" uint8 or
        float8_e4m3fn; "deepgemm" uint8 [pages, page_size * (head_dim + 4)]; "mxfp4" uint8 [pages, page_size * (head_dim / 2 + 4)].
      scales: float32 [pages, page_size] to write into, for "int8" and "e4m3".
      format: int8: scale = max|x| / 127. e4m3, deepgemm: scale = max|x| / 448, rounded up to a power of two. mxfp4: the same
        with max|x| / 6 of each 32 elements; head_dim is a multiple of 32 up to 128.
      hadamard: transform the keys first; queries then need riffle.hadamard too. int8 keeps 4 times the precision of e4m3 then.

    Raises:
      ValueError: a shape or slot out of its limits; nothing is written then.
      TypeError: a wrong dtype, or no array.

    >>> import numpy as np, riffle
    >>> pages = np.zeros((1, 4, 32), np.float32)
    >>> riffle.write_index_keys(np.ones((1, 32), np.float32), np.array([2]), pages, format="plain", hadamard=False)
    >>> pages[0, :, 0]
    array([0., 0., 1., 0.], dtype=float32)
    """
    if not isinstance(format, str) or format not in ("plain", "e4m3", "deepgemm", "mxfp4", "int8"):
        raise ValueError(f"format = {short_repr(format)} is none of 'plain', 'e4m3', 'deepgemm', 'mxfp4', 'int8'")
    if not hasattr(pages, "dtype"):
        raise TypeError(f"pages must be an array, not {short_repr(pages)}")
    codes, is_e4m3 = e4m3_codes(pages)
    kind = str(getattr(pages, "dtype", "")).removeprefix("torch.")
    if kind and ((format == "int8") != (kind == "int8") or (is_e4m3 and format != "e4m3")):
        raise TypeError(f"pages has dtype {kind}, which is not that of format = {format!r}")
    if scales is None and format in ("e4m3", "int8"):
        raise TypeError(f"scales must be an array where format = {format!r}, not None")
    _core.write_index_keys(keys, as_int32("slots", slots), codes, scales, "plain" if format == "int8" else format,
                           as_bool("hadamard", hadamard))


def hadamard(x: Array) -> Array:
    """The orthonormal Walsh-Hadamard transform along the last axis, whose size is a power of two. Dot products of
    two transformed vectors are those of the original ones.

    Args:
      x: [..., n] float32, float16 or bfloat16; sums are in float32.

    >>> import numpy as np, riffle
    >>> riffle.hadamard(np.array([1, 0, 0, 0], np.float32))
    array([0.5, 0.5, 0.5, 0.5], dtype=float32)
    """
    shape = getattr(x, "shape", ())
    if not isinstance(shape, tuple) or not shape or not hasattr(x, "dtype"):
        return _core.hadamard(x)  # which says what is wrong
    return _core.hadamard(x.reshape(-1, shape[-1])).reshape(shape)


def positions_to_slots(positions: Array, page_table: Array, page_size: int, *, cu_q_lens: Array | None = None) -> Array:
    """Slots, page * page_size + offset, of positions in the sequence of each token.

    Args:
      positions: int32 [tokens, n]; -1, and positions past the table's pages, become -1.
      page_table: int32 or int64 [B, max_pages].
      page_size: positions of a page.
      cu_q_lens: int32 or int64 [B + 1], where the tokens of each sequence begin and end; None: one token a sequence.

    >>> import numpy as np, riffle
    >>> riffle.positions_to_slots(np.array([[0, 17, -1]], np.int32), np.array([[5, 2]]), 16)
    array([[80, 33, -1]], dtype=int32)
    """
    return _core.positions_to_slots(as_int32("positions", positions), as_int32("page_table", page_table), page_size,
                                    as_int32("cu_q_lens", cu_q_lens))


def expand_blocks(blocks: Array, block: int, ends: Array) -> Array:
    """The positions in blocks: turns what indexer_top_k selects with block > 1 into what positions_to_slots takes.

    Args:
      blocks: int32 [tokens, n] block numbers, -1: none.
      block: positions of a block.
      ends: int32 or int64 [tokens], the keys that each query sees.

    Returns:
      int32 [tokens, n * block]: blocks[t, i] * block + j at i * block + j; -1 where that is not below ends[t] or there is no block.

    >>> import numpy as np, riffle
    >>> riffle.expand_blocks(np.array([[1, 0, -1]], np.int32), 2, np.array([3]))
    array([[ 2, -1,  0,  1, -1, -1]], dtype=int32)
    """
    return _core.expand_blocks(as_int32("blocks", blocks), block, as_int32("ends", ends))


def compress_kv(
    kv: Array,
    gates: Array,
    *,
    ratio: int,
    overlap: bool = False,
    gate_bias: Array | None = None,
    norm: bool = True,
    norm_weight: Array | None = None,
    norm_eps: float = 1e-6,
    cos_sin: Array | None = None,
    cu_lens: Array | None = None,
    first_entries: Array | None = None,
    out: Array | None = None,
) -> Array:
    """DeepSeek-V4's compressors: each window of `ratio` tokens becomes one entry, by softmax pooling in each channel, RMS norm
    and RoPE.

    Args:
      kv, gates: [tokens, d] float32, float16 or bfloat16, d a multiple of 16 up to 1024; with overlap [tokens, 2 * d].
      ratio: tokens of a window; those of an incomplete last one are not read.
      overlap: an entry is made of the first d columns in the window before its own and of the last d in its own.
      gate_bias: float32 [ratio, columns], added to gates.
      norm: RMS norm of each entry, with norm_weight float32 [d] and norm_eps.
      cos_sin: float32 [positions, r]: r / 2 cosines, then r / 2 sines of each position; the last r elements of entry i are rotated
        by row i * ratio, in neighbouring pairs.
      cu_lens: int32 or int64 [B + 1], where the tokens of each sequence begin and end; None: one sequence.
      first_entries: int32 or int64 [B], the number of each sequence's first entry; None: 0. With overlap, where it is not
        0, the tokens begin with the window before that entry's own.
      out: [entries, d] of kv's dtype to write into.

    Returns:
      [entries, d] of kv's dtype, the entries of one sequence after those of another.

    Raises:
      ValueError: a shape, length or option out of its limits; nothing is written then.
      TypeError: a wrong dtype, or no array.

    >>> import numpy as np, riffle
    >>> kv = np.arange(8, dtype=np.float32)[:, None] * np.ones(16, np.float32)
    >>> riffle.compress_kv(kv, np.zeros_like(kv), ratio=4, norm=False)[:, 0]
    array([1.5, 5.5], dtype=float32)
    """
    return _core.compress_kv(kv, gates, ratio, overlap, gate_bias, norm, norm_weight, as_float("norm_eps", norm_eps), cos_sin, cu_lens,
                             first_entries, out)


def sparse_attention(
    q: Array,
    rows: Array,
    slots: Array,
    *,
    lengths: Array | None = None,
    row_format: str = "plain",
    row_scales: float | Array | None = None,
    value_dim: int | None = None,
    extra: Sequence[tuple] = (),
    scale: float | None = None,
    sinks: Array | None = None,
    invalid: Literal["raise", "ignore"] = "raise",
    out: Array | None = None,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """Attention of each query over the rows that it names; a row is a key and, its first value_dim elements, a value.

    What a query gets does not depend, in any bit, on the batch, the threads or the order in which its rows are named.

    Args:
      q: [tokens, q_heads, d] float32, float16 or bfloat16.
      rows: [slots, d] or [pages, page_size, d] float32, float16, bfloat16, float8_e4m3fn, float8_e5m2 (of ml_dtypes, torch, jax)
        or int8; or uint8 with a format.
      slots: int32 [tokens, n]; -1: none. A slot named twice counts twice; rows that nobody names are not read.
      lengths: int32 [tokens]: slots past a token's length are not read; None: all are read.
      row_format: of uint8 rows. "mla656": DeepSeek-V3.2's, [.., 656]: 512 float8_e4m3fn, 4 float32 scales, 64 bfloat16; d = 576.
        "mla584": DeepSeek-V4's [pages, page_size, 584], page_size x (448 float8_e4m3fn, 64 bfloat16), then page_size x 8 bytes of
        scales; d = 512. "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl": GGUF's blocks of 32 elements, the last axis the bytes of a
        row. "float8_e4m3fn", "float8_e5m2": codes of these.
      row_scales: of 8-bit floats and int8: a number, or float32, float16, bfloat16 or float8_e8m0fnu that broadcasts to
        rows.shape[:-1] or has one more axis, a scale for each 32, 64 or 128 elements; None: 1.
      value_dim: a multiple of 16 and of the elements that share a scale; None: d.
      extra: more scopes, (rows, slots, lengths, row_format) or (rows, slots, lengths, row_format, row_scales) each.
      scale: of the logits; None: 1 / sqrt(d).
      sinks: [q_heads], a logit for each head that takes part in the softmax and in lse but has no value.
      invalid: "raise" ValueError for slots below -1 or past the rows, or "ignore" them.
      out: to write into, [tokens, q_heads, value_dim] of q's dtype.
      return_lse: also return lse.

    Returns:
      out, or (out, lse): lse float32 [tokens, q_heads], natural logarithm, -inf where a query names nothing.

    Raises:
      ValueError, TypeError: as paged_attention.

    >>> import numpy as np, riffle
    >>> rows = np.arange(4, dtype=np.float32)[:, None] * np.ones(32, np.float32)
    >>> q = np.zeros((1, 1, 32), np.float32)
    >>> riffle.sparse_attention(q, rows, np.array([[3, 1, -1]], np.int32))[0, 0, :2]
    array([2., 2.], dtype=float32)
    """
    if not isinstance(invalid, str) or invalid not in ("raise", "ignore"):
        raise ValueError(f"invalid = {short_repr(invalid)} is none of 'raise', 'ignore'")
    more = scopes_of(extra, "rows, slots, lengths, row_format, row_scales")
    scopes = [(rows, slots, lengths, row_format, row_scales), *((*scope, None)[:5] for scope in more)]
    scopes = [(r, as_int32("slots", s), as_int32("lengths", n), f, x) for r, s, n, f, x in scopes]
    return _core.sparse_attention(q, scopes, value_dim, scale, sinks, True, invalid == "ignore", out, return_lse)


def write_sparse_rows(
    x: Array, slots: Array, rows: Array, *, row_format: Literal["mla656", "mla584"], power_of_two_scales: bool = True
) -> None:
    """Writes rows of DeepSeek-V3.2's or V4's cache, quantised, where sparse_attention reads them; RoPE is the caller's.

    Args:
      x: [tokens, 576] of "mla656", [tokens, 512] of "mla584", float32, float16 or bfloat16.
      slots: int32 or int64 [tokens], row numbers, page * page_size + offset; -1 skips a row; where slots are equal the later row stays.
      rows: uint8 to write into: "mla656" [slots, 656] or [pages, page_size, 656], "mla584" [pages, page_size, 584].
      row_format: "mla656": 512 float8_e4m3fn with a float32 scale, max|x| / 448, for each 128, then 64 bfloat16. "mla584": 448
        float8_e4m3fn with a power of two for each 64, then 64 bfloat16.
      power_of_two_scales: rounds the scales of "mla656" up to powers of two, as DeepSeek does.

    Raises:
      ValueError: a shape or slot out of its limits; nothing is written then.
      TypeError: a wrong dtype, or no array.

    >>> import numpy as np, riffle
    >>> rows = np.zeros((4, 656), np.uint8)
    >>> riffle.write_sparse_rows(np.full((1, 576), 3, np.float32), np.array([2]), rows, row_format="mla656")
    >>> q = np.zeros((1, 1, 576), np.float32)
    >>> riffle.sparse_attention(q, rows, np.array([[2]]), row_format="mla656", value_dim=512)[0, 0, :2]
    array([3., 3.], dtype=float32)
    """
    _core.write_sparse_rows(x, slots, rows, row_format, as_bool("power_of_two_scales", power_of_two_scales))

"""Attention over pages of keys and values."""

from __future__ import annotations

from typing import Any, Literal, Sequence

from riffle import _core
from riffle._arguments import as_bool, check_mask_value

Array = Any


def paged_attention(
    q: Array,
    keys: Array,
    values: Array,
    kv_lens: Array,
    page_table: Array,
    *,
    cu_q_lens: Array | None = None,
    layout: Literal["HND", "NHD", "JAX"] = "HND",
    scale: float | None = None,
    causal: bool | Array = True,
    window: int | None = None,
    window_right: int | None = None,
    soft_cap: float | None = None,
    sinks: Array | None = None,
    mask_value: float | None = None,
    mask: Array | None = None,
    alibi_slopes: Array | None = None,
    key_scales: float | Array | None = None,
    value_scales: float | Array | None = None,
    key_format: str | None = None,
    value_format: str | None = None,
    out: Array | None = None,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """softmax(scale * q k^T) v over keys and values in pages: decode, prefill, chunks and mixed batches.

    The q_len queries of a sequence are its last tokens: query i is at position kv_len - q_len + i. Query head h reads KV
    head h * kv_heads // q_heads. Accumulation and softmax are in float32. What a query gets does not depend, in any bit,
    on the batch it is in, the number of threads, the page size or the layout, nor on whether it came by decode or by
    prefill.

    Args:
      q: [tokens, q_heads, head_dim] float32, float16 or bfloat16; the queries of the sequences one after another. head_dim
        is a multiple of 8 from 8 to 1024 and contiguous; other axes may have any strides.
      keys, values: the pages, each in its own dtype: float32, float16, bfloat16, float8_e4m3fn, float8_e5m2 (of
        ml_dtypes, torch, jax), int8, or uint8 with a format. Any strides with head_dim contiguous; nothing is copied.
        q_heads is a multiple of kv_heads; page_size has no limit. See layout. values may have another head_dim, which
        is then that of out. They may be a view of keys (keys[..., :512], as in MLA); both are then read together.
      kv_lens: int32 or int64 [B], tokens of each sequence, its queries included; 0 gives zeros.
      page_table: int32 or int64 [B, max_pages], each sequence's pages in order. Entries after its last page are not
        read.
      cu_q_lens: int32 or int64 [B + 1], where the queries of each sequence begin and end in q; None: one query a sequence.
      layout: "HND" [pages, kv_heads, page_size, head_dim], "NHD" [pages, page_size, kv_heads, head_dim] or "JAX"
        [kv_heads, pages, page_size, head_dim].
      scale: of the logits; None: 1 / sqrt(head_dim).
      causal: a bool, or an array of bool [B]: one for each sequence. A query at position p sees keys 0..p; False: all of
        its sequence, which may then be shorter than its queries (cross attention).
      window: at least 1; a query at position p sees no key before p - window + 1 and, without window_right, none after p.
      window_right: at least 0, 0 if causal; a query at position p sees keys up to p + window_right, with or without a
        window: encoders look both ways.
      soft_cap: c > 0 turns a scaled logit x into c * tanh(x / c).
      sinks: [q_heads] float32, float16 or bfloat16: a logit for each head, neither scaled nor capped, that takes part in
        the softmax and in lse but has no value.
      mask_value: for the sake of published signatures; at most -1e30, without effect, as masked keys are skipped.
      mask: [tokens or 1, q_heads or 1, kv] with any strides, zero among them; kv is at least the longest of kv_lens, and
        the last axis is the key's position. float32, float16 or bfloat16 is added to the scaled and capped logit, -inf hides
        the key; in a bool mask True shows a key. A key counts if causal, window and mask all show it. Blocks of 64 keys that no
        query of a tile sees are neither read nor computed.
      alibi_slopes: [q_heads] float32, float16 or bfloat16: slope * (key position - query position) is added to scaled and
        capped logits.
      key_scales, value_scales: for 8-bit floats and int8, which count as an element times its scale, in float32: a
        number, or float32, float16, bfloat16 or float8_e8m0fnu that broadcasts to keys.shape[:-1] in the layout given, or
        has one more axis: a scale for each 32, 64 or 128 elements along head_dim. Read in place; None: 1.
      key_format, value_format: "q8_0", "q4_0", "q4_1", "q5_0", "q5_1" or "iq4_nl": rows are GGUF's blocks of 32 elements,
        the pages uint8 with the bytes of a row as their last axis. "float8_e4m3fn" or "float8_e5m2": the uint8 are codes of it.
      out: to write into, [tokens, q_heads, head_dim of values] of q's dtype, NumPy or PyTorch, any strides with head_dim contiguous, sharing no
        memory with the other arguments. It is returned.
      return_lse: also return lse.

    Returns:
      out like q, or (out, lse): lse float32 [tokens, q_heads] is the natural logarithm of the sum of exp(logit) over the
      keys that a query sees and its sink, -inf where there is none. Of q's framework. A query that sees no key, because
      its sequence is empty or its mask hides all of it, gets zeros.

    Raises:
      ValueError: a shape, length, page number or option out of its limits; nothing is written then.
      TypeError: a wrong dtype, or no array; causal or return_lse is no bool.
      MemoryError: no memory for the results or for scratch.

    Method: paged attention (Kwon et al. 2023) with online softmax (Milakov and Gimelshein 2018) and split-KV (Dao 2023).

    >>> import numpy as np, riffle
    >>> rng = np.random.default_rng(0)
    >>> keys, values = rng.standard_normal((2, 3, 1, 4, 32), np.float32)
    >>> q = rng.standard_normal((2, 2, 32), np.float32)
    >>> kv_lens, page_table = np.array([1, 6], np.int32), np.array([[2, -1], [0, 1]], np.int32)
    >>> out, lse = riffle.paged_attention(q, keys, values, kv_lens, page_table, return_lse=True)
    >>> out.shape, lse.shape
    ((2, 2, 32), (2, 2))
    >>> bool((out[0] == values[2, 0, 0]).all())  # its only key
    True
    """
    return_lse = as_bool("return_lse", return_lse)
    check_mask_value(mask_value)
    return _core.paged_attention(q, keys, values, kv_lens, page_table, cu_q_lens, layout, scale, causal, window,
                                 window_right, soft_cap, sinks, mask, alibi_slopes, key_scales, value_scales, key_format,
                                 value_format, out, return_lse)


def merge_states(outs: Sequence[Array], lses: Sequence[Array]) -> tuple[Array, Array]:
    """Merges results over disjoint parts of the keys into what one call over all keys would give, up to rounding.

    For sequences whose keys are sharded, or share a prefix that is attended to once (cascades). Parts are merged in the
    order given. Sinks, if there are any, must be in one part only.

    Args:
      outs: arrays [tokens, heads, head_dim] of one shape and dtype, as from paged_attention.
      lses: as many arrays float32 [tokens, heads]. Where one is -inf or +inf its part saw no key and contributes nothing.

    Returns:
      (out, lse) of the framework of outs[0]; zeros and -inf where all parts are empty.

    Raises:
      ValueError: no part; shapes or numbers of parts that differ.
      TypeError: a wrong dtype, or no array.

    >>> import numpy as np, riffle
    >>> a, b = np.full((1, 1, 32), 1, np.float32), np.full((1, 1, 32), 3, np.float32)
    >>> out, lse = riffle.merge_states([a, b], [np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32)])
    >>> out[0, 0, 0], lse[0, 0].round(4)
    (np.float32(2.0), np.float32(0.6931))
    """
    return _core.merge_states(outs, lses)

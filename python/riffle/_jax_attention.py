"""Paged attention inside of JAX programs."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from riffle._arguments import as_bool, as_float, as_int, check_mask_value, short_repr
from riffle._jax_call import (
    FLOATING,
    INDICES,
    SCALED,
    SCALES,
    as_finite_float,
    check_arrays,
    check_axes,
    check_dtype,
    check_shape,
    custom_call,
    is_quantized,
)

Array = Any

DEFAULT_MASK_VALUE = -0.7 * float(np.finfo(np.float32).max)


class QuantizedTensor(NamedTuple):
    """Pages in int8 with a scale for each token: `weight * scales / 127.5`.

    JAX's own (jax.experimental.pallas.ops.tpu.paged_attention.quantization_utils) is accepted as well.
    """

    weight: Array
    scales: Array


QuantizedTensor.weight.__doc__ = "int8 [kv_heads, pages, page_size, head_dim]"
QuantizedTensor.scales.__doc__ = "[kv_heads, pages, page_size, 1] float32, float16 or bfloat16"


class _Scales(NamedTuple):
    """The scales of a call, which JAX passes on, and how they count, which is static."""

    operands: tuple
    scaled: int  # 1: of keys; 2: of values
    divisor: float


def _check_scales(name, scales, pages_name, pages, quantized):
    """Scales with four axes, the last one of groups of head_dim."""
    if str(pages.dtype) in FLOATING:
        raise TypeError(f"{pages_name} has dtype {pages.dtype}; with {name} it must be {', '.join(SCALED[:-1])} or {SCALED[-1]}")
    check_dtype(name, scales, SCALES)
    if quantized:
        check_shape(name, scales, (*pages.shape[:3], 1), "one scale for each token")
        return scales
    if scales.ndim < 4:
        scales = scales.reshape((1,) * (3 - scales.ndim) + scales.shape + (1,))
    fits = scales.ndim == 4 and all(n in (1, m) for n, m in zip(scales.shape, pages.shape[:3]))
    if not fits or scales.shape[3] != 1 and pages.shape[3] not in (32 * scales.shape[3], 64 * scales.shape[3], 128 * scales.shape[3]):
        raise ValueError(f"{name} has shape {scales.shape}; it must broadcast to {pages.shape[:3]}, or have one more axis: a scale "
                         "for each 32, 64 or 128 elements")  # fmt: skip
    return scales


def _check_pages(q, k_pages, v_pages, axes, key_scales, value_scales):
    """Checks q [axes, q_heads, head_dim] and the pages. Returns the pages and their scales."""
    check_dtype("q", q)
    check_axes("q", q, f"[{axes}, q_heads, head_dim]")
    quantized = is_quantized(k_pages)
    if quantized != is_quantized(v_pages):
        raise ValueError("one of k_pages and v_pages is a QuantizedTensor and the other is not")
    names = ("k_pages.scales", "v_pages.scales") if quantized else ("key_scales", "value_scales")
    if quantized:
        if key_scales is not None or value_scales is not None:
            raise ValueError("key_scales and value_scales must be None beside a QuantizedTensor, which has its own")
        key_scales, value_scales = k_pages.scales, v_pages.scales
        k_pages, v_pages = k_pages.weight, v_pages.weight
    for name, pages, scales in (("k_pages", k_pages, key_scales), ("v_pages", v_pages, value_scales)):
        check_dtype(name, pages, ("int8",) if quantized else (*FLOATING, *SCALED))
        check_axes(name, pages, "[kv_heads, pages, page_size, head_dim]")
        if str(pages.dtype) == "int8" and scales is None:
            raise TypeError(f"{name} must be float32, float16, bfloat16 or have scales, not int8 alone")
    check_shape("v_pages", v_pages, k_pages.shape, "the shape of k_pages")
    kv_heads, _, page_size, head_dim = k_pages.shape
    if q.shape[2] != head_dim:
        raise ValueError(f"q has head_dim {q.shape[2]} but k_pages have {head_dim}")
    if not 8 <= head_dim <= 1024 or head_dim % 8:
        raise ValueError(f"head_dim = {head_dim} is not a multiple of 8 from 8 to 1024")
    if page_size < 1:
        raise ValueError(f"page_size = {page_size} is not at least 1")
    if kv_heads == 0 or q.shape[1] == 0 or q.shape[1] % kv_heads:
        raise ValueError(f"q_heads = {q.shape[1]} is not a positive multiple of kv_heads = {kv_heads}")
    operands, scaled = (), 0
    sides = (1, names[0], key_scales, "k_pages", k_pages), (2, names[1], value_scales, "v_pages", v_pages)
    for bit, name, scales, pages_name, pages in sides:
        if scales is not None:
            operands += (_check_scales(name, scales, pages_name, pages, quantized),)
            scaled |= bit
    return k_pages, v_pages, _Scales(operands, scaled, 127.5 if quantized else 1.0)


def _number_or_array(name, scales):
    """Scales as an operand: a number becomes an array without axes."""
    if scales is None or hasattr(scales, "dtype"):
        if scales is not None:
            check_arrays(**{name: scales})
        return scales
    return np.float32(as_float(name, scales, "a number, an array or None"))


def _check_tuning(q, k_pages, page_indices, pages_per_compute_block, megacore_mode):
    """Checks the tuning arguments of JAX's TPU kernel as JAX does; they have no effect here."""
    block = pages_per_compute_block
    if block is not None and (block < 1 or page_indices.shape[1] % block):
        raise ValueError(
            f"pages_per_compute_block = {block} does not divide the {page_indices.shape[1]} pages of a sequence"
        )
    if megacore_mode == "kv_head" and k_pages.shape[0] % 2:
        raise ValueError(f"megacore_mode = 'kv_head' needs an even number of kv_heads, not {k_pages.shape[0]}")
    if megacore_mode == "batch" and q.shape[0] % 2:
        raise ValueError(f"megacore_mode = 'batch' needs an even batch, not {q.shape[0]}")


def _sides(causal, window, window_right):
    """The attributes that say which keys a query sees; -1: not given."""
    causal = as_bool("causal", causal)
    limits = {}
    for name, value, minimum in (("window", window, 1), ("window_right", window_right, 0)):
        limits[name] = -1 if value is None else as_int(name, value)
        if value is not None and not minimum <= limits[name] <= np.iinfo(np.int64).max:
            raise ValueError(f"{name} = {limits[name]} is not in {minimum}..2^63 - 1")
    if causal and limits["window_right"] > 0:
        raise ValueError(
            f"window_right = {limits['window_right']} but causal is set, under which no query sees a later key; set causal to False"
        )
    return causal, limits["window"], limits["window_right"]


def _attention(target, *operands, scales, sm_scale, soft_cap=0.0, sides, with_lse=False) -> Any:
    q = operands[0]
    causal, window, window_right = sides
    result = jax.ShapeDtypeStruct(q.shape, q.dtype)
    if with_lse:
        result = (result, jax.ShapeDtypeStruct(q.shape[:2], np.float32))
    return custom_call(target, result)(
        *operands, *scales.operands, scaled=np.int64(scales.scaled), divisor=np.float32(scales.divisor), scale=np.float32(sm_scale),
        soft_cap=np.float32(soft_cap), causal=np.bool_(causal), window=np.int64(window), window_right=np.int64(window_right))


# Static arguments are checked before this call, because JAX looks them up among its compiled functions.
@functools.partial(jax.jit, inline=True, static_argnames=("sm_scale", "soft_cap", "pages_per_compute_block", "megacore_mode", "sides",
                                                                   "with_lse"))
def _paged_attention(
    q, k_pages, v_pages, lengths, page_indices, key_scales, value_scales, *, sm_scale, soft_cap, pages_per_compute_block, megacore_mode, sides,
    with_lse=False,
):  # fmt: skip
    k_pages, v_pages, scales = _check_pages(q, k_pages, v_pages, "sequences", key_scales, value_scales)
    for name, x in (("lengths", lengths), ("page_indices", page_indices)):
        check_dtype(name, x, INDICES)
    check_shape("lengths", lengths, q.shape[:1], "one for each sequence of q")
    check_axes("page_indices", page_indices, "[sequences, pages_per_sequence]")
    check_shape("page_indices", page_indices, (q.shape[0], page_indices.shape[1]), "a row for each sequence of q")
    _check_tuning(q, k_pages, page_indices, pages_per_compute_block, megacore_mode)
    return _attention("riffle_paged_attention", q, k_pages, v_pages, lengths, page_indices, scales=scales, sm_scale=sm_scale,
                      soft_cap=soft_cap, sides=sides, with_lse=with_lse)


def paged_attention(
    q: Array,
    k_pages: Array | QuantizedTensor,
    v_pages: Array | QuantizedTensor,
    lengths: Array,
    page_indices: Array,
    *,
    sm_scale: float = 1.0,
    mask_value: float = DEFAULT_MASK_VALUE,
    attn_logits_soft_cap: float | None = None,
    pages_per_compute_block: int | None = None,
    megacore_mode: Literal["kv_head", "batch"] | None = None,
    inline_seq_dim: bool = True,
    window: int | None = None,
    key_scales: float | Array | None = None,
    value_scales: float | Array | None = None,
) -> Array:
    """One query a sequence over keys and values in pages: JAX's Pallas call for TPUs
    (jax.experimental.pallas.ops.tpu.paged_attention.paged_attention), without copies of the pages.

    As there, q is not scaled unless sm_scale says so. Accumulation and softmax are in float32; what a query gets does
    not depend, in any bit, on its batch or the number of threads. vmap over q, lengths and page_indices with shared
    pages is one call. There is no derivative.

    Args:
      q: [sequences, q_heads, head_dim] float32, float16 or bfloat16; head_dim a multiple of 8 from 8 to 1024.
      k_pages, v_pages: [kv_heads, pages, page_size, head_dim] float32, float16, bfloat16, float8_e4m3fn, float8_e5m2 or,
        with scales, int8, each its own; or both a QuantizedTensor, int8 with a scale for each token, which counts as
        weight * scales / 127.5 in float32. q_heads is a multiple of kv_heads, page_size at least 1.
      lengths: int32 or int64 [sequences], tokens of each; 0 gives zeros.
      page_indices: int32 or int64 [sequences, pages_per_sequence]; entries after a sequence's last page are not read.
      sm_scale: what q k^T is multiplied by.
      mask_value: at most -1e30, without effect: keys past a length are skipped.
      attn_logits_soft_cap: c > 0 turns a logit x into c * tanh(x / c).
      pages_per_compute_block, megacore_mode, inline_seq_dim: tune the TPU kernel; checked as there, without effect.
      window: not an argument there; at least 1, static: a query sees the last `window` tokens of its sequence. The
        query is the last token, so there is no window on its right.
      key_scales, value_scales: not arguments there; of float8 and int8 pages, which count as an element times its scale in
        float32: a number, or float32, float16, bfloat16 or float8_e8m0fnu that broadcasts to [kv_heads, pages, page_size],
        or has one more axis: a scale for each 32, 64 or 128 elements along head_dim.

    Returns:
      Like q.

    Raises:
      ValueError, TypeError: shapes, dtypes and options.
      JaxRuntimeError: a length that its pages do not hold, or a page that does not exist, when it runs.
    """
    return _checked_decode(q, k_pages, v_pages, lengths, page_indices, sm_scale, mask_value, attn_logits_soft_cap,
                           pages_per_compute_block, megacore_mode, inline_seq_dim, window, key_scales, value_scales)


def paged_attention_state(q, k_pages, v_pages, lengths, page_indices, *, sm_scale, mask_value, attn_logits_soft_cap, key_scales, value_scales):
    """(out, lse float32 [sequences, q_heads]) of paged_attention."""
    return _checked_decode(q, k_pages, v_pages, lengths, page_indices, sm_scale, mask_value, attn_logits_soft_cap,
                           None, None, True, None, key_scales, value_scales, with_lse=True)


def _checked_decode(q, k_pages, v_pages, lengths, page_indices, sm_scale, mask_value, attn_logits_soft_cap, pages_per_compute_block,
                    megacore_mode, inline_seq_dim, window, key_scales, value_scales, with_lse=False):
    check_arrays(q=q, k_pages=k_pages, v_pages=v_pages, lengths=lengths, page_indices=page_indices)
    soft_cap = 0.0
    if attn_logits_soft_cap is not None:
        soft_cap = as_finite_float("attn_logits_soft_cap", attn_logits_soft_cap)
        if np.float32(soft_cap) <= 0:
            raise ValueError(f"attn_logits_soft_cap = {soft_cap} is not positive")
    check_mask_value(as_finite_float("mask_value", mask_value))
    if pages_per_compute_block is not None:
        pages_per_compute_block = as_int("pages_per_compute_block", pages_per_compute_block)
    if megacore_mode is not None and not (isinstance(megacore_mode, str) and megacore_mode in ("kv_head", "batch")):
        raise ValueError(f"megacore_mode = {short_repr(megacore_mode)} is none of 'kv_head', 'batch', None")
    as_bool("inline_seq_dim", inline_seq_dim)
    key_scales, value_scales = _number_or_array("key_scales", key_scales), _number_or_array("value_scales", value_scales)
    return _paged_attention(q, k_pages, v_pages, lengths, page_indices, key_scales, value_scales,
                            sm_scale=as_finite_float("sm_scale", sm_scale), soft_cap=soft_cap, pages_per_compute_block=pages_per_compute_block,
                            megacore_mode=megacore_mode, sides=_sides(True, window, None), with_lse=with_lse)


@functools.partial(jax.jit, inline=True, static_argnames=("sm_scale", "sides"))
def _prefill_attention(q, k_pages, v_pages, length, page_indices, key_scales, value_scales, *, sm_scale, sides):
    k_pages, v_pages, scales = _check_pages(q, k_pages, v_pages, "chunk", key_scales, value_scales)
    for name, x in (("length", length), ("page_indices", page_indices)):
        check_dtype(name, x, INDICES)
    if length.shape not in ((), (1,)):
        raise ValueError(f"length has shape {length.shape}; it must be one number")
    check_axes("page_indices", page_indices, "[pages_per_sequence]")
    out = _attention("riffle_prefill_attention", q, k_pages, v_pages, length.reshape(1), page_indices, scales=scales,
                     sm_scale=1 / math.sqrt(q.shape[2]) if sm_scale is None else sm_scale, sides=sides)
    return out.reshape(q.shape[0], q.shape[1] * q.shape[2])


def prefill_attention(
    q: Array,
    k_pages: Array | QuantizedTensor,
    v_pages: Array | QuantizedTensor,
    length: int | Array,
    page_indices: Array,
    sm_scale: float | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    window_right: int | None = None,
    key_scales: float | Array | None = None,
    value_scales: float | Array | None = None,
) -> Array:
    """Causal attention of the last chunk of a sequence over its pages: chunked prefill (EasyDeL's call).

    A sequence of `length` tokens is cut into chunks from its beginning, and q is the last of them: row r is at position
    (ceil(length / chunk) - 1) * chunk + r and sees the keys up to itself. Rows at positions from length on are padding and give
    zeros.

    Args:
      q: [chunk, q_heads, head_dim], as for paged_attention.
      k_pages, v_pages, key_scales, value_scales: as for paged_attention; the chunk's own keys and values have been written.
      length: an int, or int32 or int64 [] or [1]: tokens of the sequence, this chunk's included; 0 gives zeros.
      page_indices: int32 or int64 [pages_per_sequence].
      sm_scale: what q k^T is multiplied by; None: 1 / sqrt(head_dim).
      causal, window, window_right: as for riffle.paged_attention, not arguments there; static. The sequence ends with
        the chunk, so a row sees later keys only up to the end of the chunk.

    Returns:
      [chunk, q_heads * head_dim] of q's dtype.

    Raises:
      ValueError, TypeError: shapes, dtypes and sm_scale.
      JaxRuntimeError: a length that its pages do not hold, or a page that does not exist, when it runs.
    """
    if isinstance(length, int):
        if not 0 <= length <= np.iinfo(np.int32).max:
            raise ValueError(f"length = {length} is not in 0..{np.iinfo(np.int32).max}")
        length = np.int32(length)
    check_arrays(q=q, k_pages=k_pages, v_pages=v_pages, length=length, page_indices=page_indices)
    sm_scale = None if sm_scale is None else as_finite_float("sm_scale", sm_scale)
    key_scales, value_scales = _number_or_array("key_scales", key_scales), _number_or_array("value_scales", value_scales)
    return _prefill_attention(q, k_pages, v_pages, length, page_indices, key_scales, value_scales, sm_scale=sm_scale,
                              sides=_sides(causal, window, window_right))

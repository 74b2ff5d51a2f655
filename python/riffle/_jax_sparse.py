"""Sparse attention inside of JAX programs: riffle.jax.indexer_top_k and sparse_attention."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from riffle._arguments import as_bool, as_float, as_int, short_repr
from riffle._jax_call import (
    FLOATING,
    SCALED,
    SCALES,
    as_finite_float,
    check_arrays,
    check_axes,
    check_dtype,
    check_shape,
    custom_call,
)
from riffle._sparse_arguments import scopes_of

Array = Any

_INT32_MAX = np.iinfo(np.int32).max
_E4M3 = "float8_e4m3fn"
_KEY_FORMATS = ("plain", "e4m3", "deepgemm", "mxfp4")
_BLOCKS = {"q8_0": 34, "q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "iq4_nl": 18}  # the bytes of 32 elements
_ROW_FORMATS = ("plain", "mla656", "mla584", *_BLOCKS)  # by their numbers in the handler
_CODES = {"float8_e4m3fn": jnp.float8_e4m3fn, "float8_e5m2": jnp.float8_e5m2}  # row formats of uint8 that stand for a dtype


def _one_of(name, value, values):
    if not isinstance(value, str) or value not in values:
        raise ValueError(f"{name} = {short_repr(value)} is none of {', '.join(map(repr, values))}")
    return value


def _empty_operand(*shape, dtype=jnp.int32):
    """An empty array in the place of an operand that is not given."""
    return jnp.zeros(shape, dtype)


def _codes(x):
    return jax.lax.bitcast_convert_type(x, jnp.uint8) if str(x.dtype) == _E4M3 else x


def _check_int32(name, x):
    check_dtype(name, x, ("int32",))


@functools.partial(jax.jit, inline=True, static_argnames=("k", "key_format", "options"))
def _indexer_top_k(q, weights, keys, kv_lens, page_table, cu_q_lens, key_scales, candidates, *, k, key_format, options):
    check_dtype("q", q, (*FLOATING, _E4M3, "int8"))
    check_axes("q", q, "[tokens, heads, head_dim]")
    tokens, heads, dim = q.shape
    fused = key_format in ("deepgemm", "mxfp4")
    check_dtype("keys", keys, ("uint8",) if fused or key_format == "e4m3" else (*FLOATING, _E4M3, "int8"))
    if fused:
        row = (dim // 2 if key_format == "mxfp4" else dim) + 4
        check_axes("keys", keys, "[pages, page_size * row]")
        if keys.shape[1] % row:
            raise ValueError(f"keys has shape {keys.shape}; a page is a multiple of {row} bytes")
        if key_scales is not None:
            raise ValueError(f"key_scales is given; the format {key_format!r} has its own")
    else:
        check_axes("keys", keys, "[pages, page_size, head_dim]")
        if keys.shape[2] != dim:
            raise ValueError(f"keys has shape {keys.shape} but q has head_dim {dim}")
    if str(keys.dtype) == _E4M3:
        key_format = "e4m3"
    if weights is None:
        weights = jnp.ones((tokens, heads), jnp.float32)
    check_dtype("weights", weights, ("float32",))
    check_shape("weights", weights, (tokens, heads), "a weight for each head of q")
    if key_scales is None:
        key_scales = _empty_operand(0, 0, dtype=jnp.float32)
    else:
        check_dtype("key_scales", key_scales, ("float32",))
        key_scales = jnp.broadcast_to(key_scales, keys.shape[:2])
    for name, x in (("kv_lens", kv_lens), ("page_table", page_table)):
        check_dtype(name, x, ("int32", "int64"))
    check_axes("kv_lens", kv_lens, "[sequences]")
    check_axes("page_table", page_table, "[sequences, max_pages]")
    check_shape("page_table", page_table, (kv_lens.shape[0], page_table.shape[1]), "a row for each sequence")
    if cu_q_lens is None:
        if tokens != kv_lens.shape[0]:
            raise ValueError(f"q has {tokens} tokens for {kv_lens.shape[0]} sequences; give cu_q_lens")
        cu_q_lens = _empty_operand(0)
    else:
        check_dtype("cu_q_lens", cu_q_lens, ("int32", "int64"))
        check_shape("cu_q_lens", cu_q_lens, (kv_lens.shape[0] + 1,), "one more than there are sequences")
    if candidates is None:
        candidates = _empty_operand(0, 0)
    else:
        _check_int32("candidates", candidates)
        check_axes("candidates", candidates, "[tokens, candidates]")
        check_shape("candidates", candidates, (tokens, candidates.shape[1]), "a row for each token")
    attributes = {name: np.bool_(value) if isinstance(value, bool) else np.int64(value) for name, value in options}
    return custom_call("riffle_indexer_top_k", jax.ShapeDtypeStruct((tokens, k), jnp.int32))(
        _codes(q), weights, _codes(keys), key_scales, kv_lens, page_table, cu_q_lens, candidates,
        q_e4m3=np.bool_(str(q.dtype) == _E4M3), key_format=np.int64(_KEY_FORMATS.index(key_format)), **attributes)


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
    key_format: Literal["plain", "e4m3", "deepgemm", "mxfp4"] | None = None,
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
) -> Array:
    """riffle.indexer_top_k inside of a JAX program: the same arguments, of which k and the options are static.

    Returns:
      int32 [tokens, k], -1 padded.

    Raises:
      ValueError, TypeError: shapes, dtypes and options, when traced.
      JaxRuntimeError: lengths and pages, when it runs.
    """
    optional = {"weights": weights, "cu_q_lens": cu_q_lens, "key_scales": key_scales, "candidates": candidates}
    check_arrays(q=q, keys=keys, kv_lens=kv_lens, page_table=page_table, **{name: x for name, x in optional.items() if x is not None})
    k = as_int("k", k)
    if not 1 <= k < _INT32_MAX:
        raise ValueError(f"k = {k} is not in 1..{_INT32_MAX - 1}")
    numbers = {"ratio": (ratio, 1), "block": (block, 1), "first_blocks": (first_blocks, 0), "local_blocks": (local_blocks, 0),
               "candidate_span": (candidate_span, 1)}
    options: dict[str, int] = {
        "relu": _one_of("activation", activation, ("relu", "none")) == "relu",
        "mean": _one_of("reduce", reduce, ("max", "mean")) == "mean",
        "incomplete_tail": as_bool("incomplete_tail", incomplete_tail),
        "slots": as_bool("slots", slots),
    }
    for name, (value, minimum) in numbers.items():
        options[name] = as_int(name, value)
        if not minimum <= options[name] <= _INT32_MAX:
            raise ValueError(f"{name} = {options[name]} is not in {minimum}..{_INT32_MAX}")
    coded_as = "plain" if key_format is None else _one_of("key_format", key_format, _KEY_FORMATS)
    return _indexer_top_k(q, weights, keys, kv_lens, page_table, cu_q_lens, key_scales, candidates, k=k, key_format=coded_as,
                          options=tuple(options.items()))


def _check_rows(rows, row_format, d):
    if row_format == "plain":
        check_dtype("rows", rows, (*FLOATING, *SCALED))
        size = own = d
    else:
        check_dtype("rows", rows, ("uint8",))
        own, size = {"mla656": (576, 656), "mla584": (512, 584)}.get(row_format, (d, d // 32 * _BLOCKS.get(row_format, 0)))
    if row_format != "mla584" and rows.ndim == 3:
        rows = rows.reshape(-1, rows.shape[2])
    axes = {"mla656": "[slots, 656]", "mla584": "[pages, page_size, 584]"}
    check_axes("rows", rows, axes.get(row_format, "[slots, bytes]" if row_format in _BLOCKS else "[slots, d]"))
    if row_format in _BLOCKS and (d % 32 or rows.shape[1] != size):
        raise ValueError(f"rows has shape {rows.shape} but q has rows of {d}; {row_format} has {_BLOCKS[row_format]} bytes for each 32 elements")
    if row_format == "plain" and rows.shape[1] != d:
        raise ValueError(f"rows has shape {rows.shape} but q has rows of {d}")
    if rows.shape[-1] != size or d != own:
        raise ValueError(f"rows has shape {rows.shape} and q rows of {d}; {row_format} has {size} bytes and {own} elements")
    return rows


def _check_scales(scales, rows):
    """Scales as [slots or 1, groups of d]. rows: as they are given, or as codes of a dtype."""
    if scales is None:
        return _empty_operand(0, 0, dtype=jnp.float32)
    if str(rows.dtype) not in SCALED:
        raise TypeError(f"rows has dtype {rows.dtype}; with row_scales it must be {', '.join(SCALED[:-1])} or {SCALED[-1]}")
    check_dtype("row_scales", scales, SCALES)
    of_rows, d = rows.shape[:-1], rows.shape[-1]
    grouped = scales if scales.ndim == rows.ndim else scales[..., None]
    groups = grouped.shape[-1]
    own = (1,) * (rows.ndim - grouped.ndim) + grouped.shape[:-1]
    fits = len(own) == len(of_rows) and all(n in (1, m) for n, m in zip(own, of_rows))
    if not fits or groups != 1 and d not in (32 * groups, 64 * groups, 128 * groups):
        raise ValueError(f"row_scales has shape {scales.shape}; it must broadcast to {of_rows}, or have one more axis: a scale for each "
                         "32, 64 or 128 elements")
    if math.prod(own) == 1:
        return grouped.reshape(1, groups)
    return jnp.broadcast_to(grouped.reshape(*own, groups), (*of_rows, groups)).reshape(-1, groups)


@functools.partial(jax.jit, inline=True, static_argnames=("row_formats", "value_dim", "scale", "ignore_invalid"))
def _sparse_attention(q, scopes, sinks, *, row_formats, value_dim, scale, ignore_invalid):
    check_dtype("q", q)
    check_axes("q", q, "[tokens, q_heads, d]")
    tokens, heads, d = q.shape
    value_dim = d if value_dim is None else value_dim
    if not 16 <= value_dim <= d or value_dim % 16:
        raise ValueError(f"value_dim = {value_dim} is not a multiple of 16 in 16..{d}")
    operands, formats = [], 0
    for s, ((rows, slots, lengths, scales), row_format) in enumerate(zip(scopes, row_formats)):
        if row_format in _CODES:
            check_dtype("rows", rows, ("uint8",))
            rows, row_format = jax.lax.bitcast_convert_type(rows, _CODES[row_format]), "plain"
        formats |= _ROW_FORMATS.index(row_format) << 4 * s
        scales = _check_scales(scales, rows)
        rows = _check_rows(rows, row_format, d)
        _check_int32("slots", slots)
        check_axes("slots", slots, "[tokens, n]")
        check_shape("slots", slots, (tokens, slots.shape[1]), "a row for each token of q")
        if lengths is None:
            lengths = _empty_operand(0)
        else:
            _check_int32("lengths", lengths)
            check_shape("lengths", lengths, (tokens,), "one for each token of q")
        operands += [rows, slots, lengths, scales]
    if sinks is None:
        sinks = _empty_operand(0, dtype=jnp.float32)
    else:
        check_dtype("sinks", sinks)
        check_shape("sinks", sinks, (heads,), "one for each head of q")
        sinks = sinks.astype(jnp.float32)
    results = (jax.ShapeDtypeStruct((tokens, heads, value_dim), q.dtype), jax.ShapeDtypeStruct((tokens, heads), jnp.float32))
    return custom_call("riffle_sparse_attention", results)(
        q, sinks, *operands, scale=np.float32(1 / math.sqrt(d) if scale is None else scale), formats=np.int64(formats),
        ignore_invalid=np.bool_(ignore_invalid))


def _scales_operand(scales):
    """A number as an array without axes."""
    if scales is None or hasattr(scales, "dtype"):
        if scales is not None:
            check_arrays(row_scales=scales)
        return scales
    return np.float32(as_float("row_scales", scales, "a number, an array or None"))


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
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """riffle.sparse_attention inside of a JAX program: the same arguments; row formats, value_dim, scale and invalid are static.

    Returns:
      out [tokens, q_heads, value_dim] of q's dtype, or (out, lse).

    Raises:
      ValueError, TypeError: shapes, dtypes and options, when traced.
      JaxRuntimeError: slots and lengths, when it runs.
    """
    more = scopes_of(extra, "rows, slots, lengths, row_format, row_scales")
    scopes = [(rows, slots, lengths, row_format, row_scales), *((*scope, None)[:5] for scope in more)]
    if len(scopes) > 8:
        raise ValueError(f"extra has {len(extra)} elements, not up to 7")
    for scope in scopes:
        _one_of("row_format", scope[3], (*_ROW_FORMATS, *_CODES))
        check_arrays(rows=scope[0], slots=scope[1])
        if scope[2] is not None:
            check_arrays(lengths=scope[2])
    check_arrays(q=q)
    if sinks is not None:
        check_arrays(sinks=sinks)
    out, lse = _sparse_attention(
        q, tuple((*scope[:3], _scales_operand(scope[4])) for scope in scopes), sinks, row_formats=tuple(scope[3] for scope in scopes),
        value_dim=None if value_dim is None else as_int("value_dim", value_dim),
        scale=None if scale is None else as_finite_float("scale", scale),
        ignore_invalid=_one_of("invalid", invalid, ("raise", "ignore")) == "ignore")
    return (out, lse) if as_bool("return_lse", return_lse) else out

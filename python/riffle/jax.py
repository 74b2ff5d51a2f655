"""riffle inside of JAX programs: stand-ins for jax.lax.top_k and for JAX's paged attention on TPUs, on CPUs.

The functions are XLA custom calls (jax.ffi): they work under jax.jit, jax.vmap, lax.scan and the rest, operands are
read where XLA has them and results written where XLA wants them. Outside of jit they compile once for each shape, as
all of JAX does.

Order, contract and threads are riffle's (see `riffle`): NaN of either sign is above +inf, all NaNs are equal, -0 equals
+0, of equal values the lower index comes first. Shapes, dtypes and options are checked when a call is traced and raise
ValueError or TypeError; lengths, ranges and page numbers are checked when it runs and raise JAX's own runtime error
(jax.errors.JaxRuntimeError), whose text names the argument, its value and the limit.

>>> import jax, jax.numpy as jnp, riffle.jax
>>> x = jnp.array([[3., 1., 4., 1., 5.], [2., 7., 1., 8., 2.]])
>>> values, indices = jax.jit(lambda x: riffle.jax.top_k(x, 3))(x)
>>> indices
Array([[4, 2, 0],
       [3, 1, 0]], dtype=int32)
>>> jax.grad(lambda x: riffle.jax.top_k(x, 2)[0].sum())(x)
Array([[0., 0., 1., 0., 1.],
       [0., 1., 0., 1., 0.]], dtype=float32)
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple

try:
    import jax
except ImportError as error:
    raise ImportError("riffle.jax needs JAX: pip install jax") from error
import jax.numpy as jnp
import numpy as np

from riffle import _core
from riffle._arguments import as_bool, as_float, as_int, check_mask_value, shown

__all__ = ["DEFAULT_MASK_VALUE", "QuantizedTensor", "indexer_top_k", "paged_attention", "prefill_attention", "sparse_attention", "top_k",
           "top_k_per_row"]

Array = Any

DEFAULT_MASK_VALUE = -0.7 * float(np.finfo(np.float32).max)

for _name, _handler in _core.xla_handlers.items():
    jax.ffi.register_ffi_target(_name, _handler, platform="cpu")

_FLOATING = ("float32", "float16", "bfloat16")
_INDICES = ("int32", "int64")
_NUMBERS = (*_FLOATING, "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool")


class QuantizedTensor(NamedTuple):
    """Pages in int8 with a scale for each token: `weight * scales / 127.5`.

    JAX's own (jax.experimental.pallas.ops.tpu.paged_attention.quantization_utils) is accepted as well.
    """

    weight: Array
    scales: Array


QuantizedTensor.weight.__doc__ = "int8 [kv_heads, pages, page_size, head_dim]"
QuantizedTensor.scales.__doc__ = "[kv_heads, pages, page_size, 1] float32, float16 or bfloat16"


def _check_dtype(name, x, dtypes=_FLOATING):
    if str(x.dtype) not in dtypes:
        raise TypeError(f"{name} must be {', '.join(dtypes[:-1])}{' or ' * (len(dtypes) > 1)}{dtypes[-1]}, not {x.dtype}")


def _check_shape(name, x, shape, why):
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {x.shape}; it must be {tuple(shape)}, {why}")


def _check_axes(name, x, form):
    if x.ndim != form.count(",") + 1:
        raise ValueError(f"{name} has shape {x.shape}; it must be {form}")


def _check_arrays(**arrays):
    """TypeError for what has no dtype that JAX has, of which jax.jit would not name the argument."""
    for name, x in arrays.items():
        if _is_quantized(x):
            _check_arrays(**{f"{name}.weight": x.weight, f"{name}.scales": x.scales})
        elif getattr(x, "dtype", None) is None or getattr(x.dtype, "kind", "") in "OSUmM" or isinstance(x, type):
            kind = shown(x) if getattr(x, "dtype", None) is None else f"one of dtype {x.dtype}"
            raise TypeError(f"{name} must be an array, not {kind}")


def _call(target, result):
    # Leading axes that vmap adds come to the handlers as they are, of size 1 where an operand has none: no copies.
    return jax.ffi.ffi_call(target, result, vmap_method="expand_dims")


# ---- top-k


@functools.cache
def _top_k_of_rows(k):
    @jax.custom_jvp
    def call(x):
        shape = (*x.shape[:-1], k)
        results = (jax.ShapeDtypeStruct(shape, x.dtype), jax.ShapeDtypeStruct(shape, jnp.int32))
        return _call("riffle_top_k", results)(x)

    @call.defjvp
    def jvp(primals, tangents):
        values, indices = call(*primals)
        if tangents[0].dtype == jax.dtypes.float0:  # integers have no derivative
            return (values, indices), (np.zeros(values.shape, jax.dtypes.float0), np.zeros(indices.shape, jax.dtypes.float0))
        picked = jnp.take_along_axis(tangents[0], indices, axis=-1, mode="promise_in_bounds")
        return (values, indices), (picked, np.zeros(indices.shape, jax.dtypes.float0))

    return call


# One compiled function for each k and axis: JAX finds it quicker than static arguments.
@functools.cache
def _top_k(k, axis):
    def top_k(operand):
        _check_dtype("operand", operand, _NUMBERS)
        if not -operand.ndim <= axis < operand.ndim:
            raise ValueError(f"axis = {axis} is not an axis of operand, which has shape {operand.shape}")
        n = operand.shape[axis]
        if not 0 <= k <= n:
            raise ValueError(f"k = {k} is not in 0..{n}, the size of axis {axis} of operand")
        if n > np.iinfo(np.int32).max:
            raise ValueError(f"axis {axis} of operand has {n} elements; indices are int32")
        rows = jnp.moveaxis(operand, axis, -1)
        if k == 0:
            values, indices = rows[..., :0], jnp.zeros((*rows.shape[:-1], 0), jnp.int32)
        else:
            values, indices = _top_k_of_rows(k)(rows)
        return jnp.moveaxis(values, -1, axis), jnp.moveaxis(indices, -1, axis)

    return jax.jit(top_k, inline=True)


def top_k(operand: Array, k: int, *, axis: int = -1, is_stable: bool = True) -> tuple[Array, Array]:
    """The k largest of `operand` along an axis, largest first, and where they stand: jax.lax.top_k.

    What differs from jax.lax.top_k: -0 equals +0 (there +0 is above -0); NaN of either sign is above +inf (there NaN is
    above it and -NaN below -inf). Values come out with the bits they have in operand.

    Args:
      operand: floating-point numbers, integers or bool of at least one axis. Axes other than the last are moved there first, which
        copies.
      k: 0 to the size of the axis; static.
      axis: along which; static.
      is_stable: as newer JAX has it; without effect, as equal values always come out with the lower index first.

    Returns:
      (values, indices): of operand's shape with k for the axis, of its dtype and int32. The derivative of values is
      what stands at the indices in the tangent; indices have none.

    Raises:
      ValueError: k or axis out of range.
      TypeError: another dtype, or no array; is_stable is no bool.
    """
    as_bool("is_stable", is_stable)
    _check_arrays(operand=operand)
    return _top_k(as_int("k", k), as_int("axis", axis))(operand)


@functools.cache
def _top_k_per_row(k):
    def top_k_per_row(x, starts, ends):
        _check_dtype("x", x, _NUMBERS)
        _check_axes("x", x, "[rows, n]")
        rows, n = x.shape
        if n < 1:
            raise ValueError(f"x has shape {x.shape}; its rows are empty")
        if not 1 <= k <= np.iinfo(np.int32).max:
            raise ValueError(f"k = {k} is not in 1..{np.iinfo(np.int32).max}")
        for name, bounds in (("starts", starts), ("ends", ends)):
            _check_dtype(name, bounds, ("int32",))
            _check_shape(name, bounds, (rows,), "one for each row of x")
        return _call("riffle_top_k_per_row", jax.ShapeDtypeStruct((rows, k), jnp.int32))(x, starts, ends)

    return jax.jit(top_k_per_row, inline=True)


def top_k_per_row(x: Array, starts: Array, ends: Array, k: int) -> Array:
    """riffle.top_k_per_row: the columns of the k best of [starts[r], ends[r]) of each row, relative to the start.

    Args:
      x: [rows, n] floating-point numbers, integers or bool.
      starts, ends: int32 [rows]; starts[r] >= ends[r] is an empty range.
      k: at least 1, may exceed n; static.

    Returns:
      int32 [rows, k], best first, padded with -1 where a range is shorter than k.

    Raises:
      ValueError, TypeError: shapes, dtypes or k.
      JaxRuntimeError: a negative start or an end past n, when it runs.
    """
    _check_arrays(x=x, starts=starts, ends=ends)
    return _top_k_per_row(as_int("k", k))(x, starts, ends)


# ---- attention


def _is_quantized(pages):
    return isinstance(pages, tuple) and hasattr(pages, "weight") and hasattr(pages, "scales")


def _check_pages(q, k_pages, v_pages, axes):
    """Checks q [first of axes, q_heads, head_dim] and pages; the pages and the scales, if any."""
    _check_dtype("q", q)
    _check_axes("q", q, f"[{axes}, q_heads, head_dim]")
    if _is_quantized(k_pages) != _is_quantized(v_pages):
        raise ValueError("one of k_pages and v_pages is a QuantizedTensor and the other is not")
    scales = ()
    if _is_quantized(k_pages):
        scales = (k_pages.scales, v_pages.scales)
        k_pages, v_pages = k_pages.weight, v_pages.weight
    for name, pages in (("k_pages", k_pages), ("v_pages", v_pages)):
        _check_dtype(name, pages, ("int8",) if scales else _FLOATING)
        _check_axes(name, pages, "[kv_heads, pages, page_size, head_dim]")
    if k_pages.dtype != v_pages.dtype:
        raise TypeError(f"k_pages are {k_pages.dtype} but v_pages are {v_pages.dtype}")
    _check_shape("v_pages", v_pages, k_pages.shape, "the shape of k_pages")
    kv_heads, _, page_size, head_dim = k_pages.shape
    if q.shape[2] != head_dim:
        raise ValueError(f"q has head_dim {q.shape[2]} but k_pages have {head_dim}")
    if not 8 <= head_dim <= 1024 or head_dim % 8:
        raise ValueError(f"head_dim = {head_dim} is not a multiple of 8 from 8 to 1024")
    if page_size < 1:
        raise ValueError(f"page_size = {page_size} is not at least 1")
    if kv_heads == 0 or q.shape[1] == 0 or q.shape[1] % kv_heads:
        raise ValueError(f"q_heads = {q.shape[1]} is not a positive multiple of kv_heads = {kv_heads}")
    for name, scale in zip(("k_pages.scales", "v_pages.scales"), scales):
        _check_dtype(name, scale)
        _check_shape(name, scale, (*k_pages.shape[:3], 1), "one scale for each token")
    if scales and scales[0].dtype != scales[1].dtype:
        raise TypeError(f"k_pages.scales are {scales[0].dtype} but v_pages.scales are {scales[1].dtype}")
    return k_pages, v_pages, scales


def _check_tuning(q, k_pages, page_indices, pages_per_compute_block, megacore_mode):
    """What tunes JAX's kernel on TPUs has no effect here, but is checked as there."""
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
    for name, value, least in (("window", window, 1), ("window_right", window_right, 0)):
        limits[name] = -1 if value is None else as_int(name, value)
        if value is not None and not least <= limits[name] <= np.iinfo(np.int64).max:
            raise ValueError(f"{name} = {limits[name]} is not in {least}..2^63 - 1")
    if causal and limits["window_right"] > 0:
        raise ValueError(
            f"window_right = {limits['window_right']} but causal is set, under which no query sees a later key; set causal to False"
        )
    return causal, limits["window"], limits["window_right"]


def _attention(target, *operands, sm_scale, soft_cap=0.0, sides):
    q = operands[0]
    causal, window, window_right = sides
    return _call(target, jax.ShapeDtypeStruct(q.shape, q.dtype))(
        *operands, scale=np.float32(sm_scale), soft_cap=np.float32(soft_cap), causal=np.bool_(causal), window=np.int64(window),
        window_right=np.int64(window_right))


def _finite(name, value):
    value = as_float(name, value)
    if not math.isfinite(np.float32(value)):
        raise ValueError(f"{name} = {value} is not a finite float32")
    return value


# What is static is checked before it gets here: JAX looks for it among what it has compiled.
@functools.partial(jax.jit, inline=True, static_argnames=("sm_scale", "soft_cap", "pages_per_compute_block", "megacore_mode", "sides"))
def _paged_attention(q, k_pages, v_pages, lengths, page_indices, *, sm_scale, soft_cap, pages_per_compute_block, megacore_mode, sides):
    k_pages, v_pages, scales = _check_pages(q, k_pages, v_pages, "sequences")
    for name, x in (("lengths", lengths), ("page_indices", page_indices)):
        _check_dtype(name, x, _INDICES)
    _check_shape("lengths", lengths, q.shape[:1], "one for each sequence of q")
    _check_axes("page_indices", page_indices, "[sequences, pages_per_sequence]")
    _check_shape("page_indices", page_indices, (q.shape[0], page_indices.shape[1]), "a row for each sequence of q")
    _check_tuning(q, k_pages, page_indices, pages_per_compute_block, megacore_mode)
    return _attention("riffle_paged_attention", q, k_pages, v_pages, lengths, page_indices, *scales, sm_scale=sm_scale,
                      soft_cap=soft_cap, sides=sides)


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
) -> Array:
    """One query a sequence over keys and values in pages: JAX's Pallas call for TPUs
    (jax.experimental.pallas.ops.tpu.paged_attention.paged_attention), without copies of the pages.

    As there, q is not scaled unless sm_scale says so. Accumulation and softmax are in float32; what a query gets does
    not depend, in any bit, on its batch or the number of threads. vmap over q, lengths and page_indices with shared
    pages is one call. There is no derivative.

    Args:
      q: [sequences, q_heads, head_dim] float32, float16 or bfloat16; head_dim a multiple of 8 from 8 to 1024.
      k_pages, v_pages: [kv_heads, pages, page_size, head_dim] of one of these dtypes, q's or another; or both a
        QuantizedTensor, int8 with a scale for each token, which counts as weight * scales / 127.5 in float32. q_heads
        is a multiple of kv_heads, page_size at least 1.
      lengths: int32 or int64 [sequences], tokens of each; 0 gives zeros.
      page_indices: int32 or int64 [sequences, pages_per_sequence]; what stands behind a sequence's last page is not read.
      sm_scale: what q k^T is multiplied by.
      mask_value: at most -1e30, without effect: what lies behind a length is skipped.
      attn_logits_soft_cap: c > 0 turns a logit x into c * tanh(x / c).
      pages_per_compute_block, megacore_mode, inline_seq_dim: tune the TPU kernel; checked as there, without effect.
      window: not an argument there; at least 1, static: a query sees the last `window` tokens of its sequence. Nothing
        is behind a query, the last token, so there is no window on its right.

    Returns:
      Like q.

    Raises:
      ValueError, TypeError: shapes, dtypes and options.
      JaxRuntimeError: a length that its pages do not hold, or a page that does not exist, when it runs.
    """
    _check_arrays(q=q, k_pages=k_pages, v_pages=v_pages, lengths=lengths, page_indices=page_indices)
    soft_cap = 0.0
    if attn_logits_soft_cap is not None:
        soft_cap = _finite("attn_logits_soft_cap", attn_logits_soft_cap)
        if np.float32(soft_cap) <= 0:
            raise ValueError(f"attn_logits_soft_cap = {soft_cap} is not positive")
    check_mask_value(_finite("mask_value", mask_value))
    if pages_per_compute_block is not None:
        pages_per_compute_block = as_int("pages_per_compute_block", pages_per_compute_block)
    if megacore_mode is not None and not (isinstance(megacore_mode, str) and megacore_mode in ("kv_head", "batch")):
        raise ValueError(f"megacore_mode = {shown(megacore_mode)} is none of 'kv_head', 'batch', None")
    as_bool("inline_seq_dim", inline_seq_dim)
    return _paged_attention(q, k_pages, v_pages, lengths, page_indices, sm_scale=_finite("sm_scale", sm_scale),
                            soft_cap=soft_cap, pages_per_compute_block=pages_per_compute_block,
                            megacore_mode=megacore_mode, sides=_sides(True, window, None))


@functools.partial(jax.jit, inline=True, static_argnames=("sm_scale", "sides"))
def _prefill_attention(q, k_pages, v_pages, length, page_indices, *, sm_scale, sides):
    k_pages, v_pages, scales = _check_pages(q, k_pages, v_pages, "chunk")
    for name, x in (("length", length), ("page_indices", page_indices)):
        _check_dtype(name, x, _INDICES)
    if length.shape not in ((), (1,)):
        raise ValueError(f"length has shape {length.shape}; it must be one number")
    _check_axes("page_indices", page_indices, "[pages_per_sequence]")
    out = _attention("riffle_prefill_attention", q, k_pages, v_pages, length.reshape(1), page_indices, *scales,
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
) -> Array:
    """Causal attention of the last chunk of a sequence over its pages: chunked prefill (EasyDeL's call).

    A sequence of `length` tokens is cut into chunks from its begin, and q is the last of them: row r stands at position
    (ceil(length / chunk) - 1) * chunk + r and sees the keys up to itself. Rows at or behind length are padding and give
    zeros.

    Args:
      q: [chunk, q_heads, head_dim], as for paged_attention.
      k_pages, v_pages: as for paged_attention; the chunk's own keys and values have been written.
      length: an int, or int32 or int64 [] or [1]: tokens of the sequence, this chunk's included; 0 gives zeros.
      page_indices: int32 or int64 [pages_per_sequence].
      sm_scale: what q k^T is multiplied by; None: 1 / sqrt(head_dim).
      causal, window, window_right: as for riffle.paged_attention, not arguments there; static. The sequence ends with
        the chunk, so a row sees keys behind it as far as the chunk goes.

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
    _check_arrays(q=q, k_pages=k_pages, v_pages=v_pages, length=length, page_indices=page_indices)
    sm_scale = None if sm_scale is None else _finite("sm_scale", sm_scale)
    return _prefill_attention(q, k_pages, v_pages, length, page_indices, sm_scale=sm_scale,
                              sides=_sides(causal, window, window_right))


# Last: they are made of what is above.
from riffle._jax_sparse import indexer_top_k, sparse_attention  # noqa: E402

for _public in (indexer_top_k, sparse_attention):
    _public.__module__ = "riffle.jax"  # where users find them
del _public

"""Vocabularies and contexts in shards, inside of jax.shard_map: one exact answer on all devices of a mesh axis."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from riffle._arguments import as_bool, as_int, short_repr
from riffle._jax_attention import DEFAULT_MASK_VALUE, QuantizedTensor, paged_attention_state
from riffle._jax_call import check_arrays

Array = Any


def sharded_top_k(operand: Array, k: int, axis_name: Any, *, axis: int = -1, size: int | None = None) -> tuple[Array, Array]:
    """riffle.jax.top_k of an array whose shards along `axis` the devices of a mesh axis hold; for use inside of jax.shard_map.

    Values and indices are those of top_k of the whole array, bit for bit, on every device: of equal values the lower index
    of the whole comes first. Each device selects the k best of its shard; one all-gather exchanges k values and int32
    indices a row; each device merges them. There is no derivative.

    Args:
      operand: this device's shard, as top_k takes it; the shards follow one another in the order of the mesh axis.
      k: 0 to the length of the whole axis; more than a shard has is possible; static.
      axis_name: the mesh axis, or a tuple of several.
      axis: along which; static.
      size: the length of the whole axis without the padding that makes shards equal: elements from there on are ignored.
        None: there is none. Static.

    Returns:
      (values, indices int32), the same on every device. JAX does not see that they are: give jax.shard_map check_vma=False
      (check_rep in older versions) where they go out under a specification without axis_name.

    Raises:
      ValueError: k, axis or size out of range; axis_name is no axis here.
      TypeError: another dtype, or no array.

    >>> import jax, numpy as np, riffle.jax
    >>> from jax.sharding import Mesh, PartitionSpec as P
    >>> mesh = Mesh(np.array(jax.devices()[:1]), "vocab")
    >>> def select_from_shard(logits):
    ...     return riffle.jax.sharded_top_k(logits, 2, "vocab")
    >>> call = jax.shard_map(select_from_shard, mesh=mesh, in_specs=P(None, "vocab"), out_specs=P(), check_vma=False)
    >>> values, indices = call(np.array([[3, 1, 4, 1, 5]], np.float32))
    >>> indices
    Array([[4, 2]], dtype=int32)
    """
    from riffle.jax import top_k  # which imports this module

    check_arrays(operand=operand)
    k, axis = as_int("k", k), as_int("axis", axis)
    if not -operand.ndim <= axis < operand.ndim:
        raise ValueError(f"axis = {axis} is not an axis of operand, which has shape {operand.shape}")
    shard = jnp.moveaxis(operand, axis, -1)
    n = shard.shape[-1]
    devices, device = _place(axis_name)
    whole = n * devices
    length = whole if size is None else as_int("size", size)
    if not 0 <= length <= whole:
        raise ValueError(f"size = {length} is not in 0..{whole}, the elements of all shards")
    if not 0 <= k <= length:
        raise ValueError(f"k = {k} is not in 0..{length}: axis {axis} of all shards together has size = {length}")
    if whole > np.iinfo(np.int32).max:
        raise ValueError(f"the shards of axis {axis} have {whole} elements; indices are int32")
    begin = device.astype(jnp.int32) * n
    if length < whole:  # the lowest value there is, at the end: it follows all elements, equal ones too
        shard = jnp.where(begin + jnp.arange(n, dtype=jnp.int32) < length, shard, _lowest(shard.dtype))
    values, indices = top_k(jax.lax.stop_gradient(shard), min(k, n))
    if k == 0:
        return jnp.moveaxis(values, -1, axis), jnp.moveaxis(indices, -1, axis)
    values, ids = _gathered(values, begin + indices, axis_name)
    values, places = top_k(values, k)
    ids = jnp.take_along_axis(ids, places, axis=-1, mode="promise_in_bounds")
    return jnp.moveaxis(values, -1, axis), jnp.moveaxis(ids, -1, axis)


def _place(axis_name):
    """How many devices a mesh axis has, and the number of this one."""
    try:
        hash(axis_name)  # a list is not an axis
        return jax.lax.psum(1, axis_name), jax.lax.axis_index(axis_name)
    except Exception:  # its type depends on what axis_name is
        raise ValueError(
            f"axis_name = {short_repr(axis_name)} is not an axis, or a tuple of axes, of the jax.shard_map around the call"
        ) from None


def _lowest(dtype):
    if dtype == jnp.bool_:
        return False
    return jnp.array(-jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min, dtype)


def _gathered(values, ids, axis_name):
    """values and ids [..., k] of all devices along the last axis, in the order of the devices: one all-gather of bytes."""
    flags = values.dtype == jnp.bool_
    raw = [jax.lax.bitcast_convert_type(x, jnp.uint8) for x in (values.astype(jnp.uint8) if flags else values, ids)]
    raw = [x if x.ndim > values.ndim else x[..., None] for x in raw]  # dtypes of one byte get no axis of bytes
    width = raw[0].shape[-1]
    every = jax.lax.all_gather(jnp.concatenate(raw, axis=-1), axis_name, axis=values.ndim - 1, tiled=True)
    of_values, of_ids = every[..., :width], every[..., width:]
    of_values = of_values[..., 0] if width == 1 else of_values
    values = of_values.astype(jnp.bool_) if flags else jax.lax.bitcast_convert_type(of_values, values.dtype)
    return values, jax.lax.bitcast_convert_type(of_ids, jnp.int32)


def sharded_paged_attention(
    q: Array,
    k_pages: Array | QuantizedTensor,
    v_pages: Array | QuantizedTensor,
    lengths: Array,
    page_indices: Array,
    axis_name: Any,
    *,
    sm_scale: float = 1.0,
    mask_value: float = DEFAULT_MASK_VALUE,
    attn_logits_soft_cap: float | None = None,
    key_scales: float | Array | None = None,
    value_scales: float | Array | None = None,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """riffle.jax.paged_attention over contexts whose parts the devices of a mesh axis hold; for use inside of jax.shard_map.

    Each device attends to the keys it has; one all-gather exchanges the states, out and lse in float32; each device merges
    them in the order of the devices. The result is that of one call over all keys within the rounding of float32 sums (a q
    of 16 bits is rounded once, at the end), and the same bits on every device.

    Args:
      q: [sequences, q_heads, head_dim], the same on all devices: one query a sequence, which sees all its keys. So
        the keys of a sequence may be divided in any way.
      k_pages, v_pages, page_indices: this device's pages.
      lengths: [sequences], the keys of each sequence on this device; 0 is possible.
      axis_name: the mesh axis, or a tuple of several.
      sm_scale, mask_value, attn_logits_soft_cap, key_scales, value_scales: as for paged_attention.
      return_lse: also return lse, float32 [sequences, q_heads]: the natural logarithm of the sum of exp(logit) over all keys, -inf
        where there is none.

    Returns:
      Like q, or (out, lse), the same on every device; check_vma as for sharded_top_k.

    Raises:
      As paged_attention; ValueError too where axis_name is no axis here.
    """
    return_lse = as_bool("return_lse", return_lse)
    check_arrays(q=q)
    _place(axis_name)
    out, lse = paged_attention_state(q.astype(jnp.float32) if str(q.dtype) in ("float16", "bfloat16") else q, k_pages, v_pages, lengths,
                                     page_indices, sm_scale=sm_scale, mask_value=mask_value, attn_logits_soft_cap=attn_logits_soft_cap,
                                     key_scales=key_scales, value_scales=value_scales)  # fmt: skip
    every = jax.lax.all_gather(jnp.concatenate([out, lse[..., None]], axis=-1), axis_name)
    outs, lses = every[..., :-1], every[..., -1:]
    largest = lses.max(0)
    weights = jnp.exp(lses - jnp.where(largest == -jnp.inf, 0, largest))  # where there is no key at all: 0
    mass = weights.sum(0)
    merged = ((weights * outs).sum(0) / jnp.where(mass == 0, 1, mass)).astype(q.dtype)
    return (merged, (largest + jnp.log(mass))[..., 0]) if return_lse else merged

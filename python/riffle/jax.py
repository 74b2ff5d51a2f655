"""riffle inside of JAX programs: replacements on CPUs for jax.lax.top_k and for JAX's paged attention on TPUs.

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
from typing import Any

try:
    import jax
except ImportError as error:
    raise ImportError("riffle.jax needs JAX: pip install jax") from error
import jax.numpy as jnp
import numpy as np

from riffle._arguments import as_bool, as_int
from riffle._jax_attention import DEFAULT_MASK_VALUE, QuantizedTensor, paged_attention, prefill_attention
from riffle._jax_call import FLOATING, check_arrays, check_axes, check_dtype, check_shape, custom_call
from riffle._jax_sharded import sharded_paged_attention, sharded_top_k
from riffle._jax_sparse import indexer_top_k, sparse_attention
from riffle._jax_write_kv import write_kv

__all__ = ["DEFAULT_MASK_VALUE", "QuantizedTensor", "indexer_top_k", "paged_attention", "prefill_attention", "sharded_paged_attention",
           "sharded_top_k", "sparse_attention", "top_k", "top_k_per_row", "write_kv"]

Array = Any

_NUMBERS = (*FLOATING, "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool")


# ---- top-k


@functools.cache
def _top_k_of_rows(k):
    @jax.custom_jvp
    def call(x):
        shape = (*x.shape[:-1], k)
        results = (jax.ShapeDtypeStruct(shape, x.dtype), jax.ShapeDtypeStruct(shape, jnp.int32))
        return custom_call("riffle_top_k", results)(x)

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
        check_dtype("operand", operand, _NUMBERS)
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
    """The k largest of `operand` along an axis, largest first, and their indices: jax.lax.top_k.

    What differs from jax.lax.top_k: -0 equals +0 (there +0 is above -0); NaN of either sign is above +inf (there NaN is
    above it and -NaN below -inf). Values come out with the bits they have in operand.

    Args:
      operand: floating-point numbers, integers or bool of at least one axis. Axes other than the last are moved there first, which
        copies.
      k: 0 to the size of the axis; static.
      axis: along which; static.
      is_stable: as newer JAX has it; without effect, as equal values always come out with the lower index first.

    Returns:
      (values, indices): of operand's shape with k for the axis, of its dtype and int32. The derivative of values
      is the tangent's elements at the indices; indices have none.

    Raises:
      ValueError: k or axis out of range.
      TypeError: another dtype, or no array; is_stable is no bool.
    """
    as_bool("is_stable", is_stable)
    check_arrays(operand=operand)
    return _top_k(as_int("k", k), as_int("axis", axis))(operand)


@functools.cache
def _top_k_per_row(k):
    def top_k_per_row(x, starts, ends):
        check_dtype("x", x, _NUMBERS)
        check_axes("x", x, "[rows, n]")
        rows, n = x.shape
        if n < 1:
            raise ValueError(f"x has shape {x.shape}; its rows are empty")
        if not 1 <= k <= np.iinfo(np.int32).max:
            raise ValueError(f"k = {k} is not in 1..{np.iinfo(np.int32).max}")
        for name, bounds in (("starts", starts), ("ends", ends)):
            check_dtype(name, bounds, ("int32",))
            check_shape(name, bounds, (rows,), "one for each row of x")
        return custom_call("riffle_top_k_per_row", jax.ShapeDtypeStruct((rows, k), jnp.int32))(x, starts, ends)

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
    check_arrays(x=x, starts=starts, ends=ends)
    return _top_k_per_row(as_int("k", k))(x, starts, ends)


for _public in (QuantizedTensor, indexer_top_k, paged_attention, prefill_attention, sharded_paged_attention,
                sharded_top_k, sparse_attention, write_kv):
    _public.__module__ = "riffle.jax"
del _public

"""Writing keys and values into pages inside of JAX programs."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import numpy as np

from riffle._arguments import as_bool, as_float, short_repr
from riffle._jax_call import FLOATING, INDICES, SCALED, SCALES, check_arrays, check_axes, check_dtype, check_shape

Array = Any

_LAYOUTS = {"HND": (0, 2, 1), "NHD": (0, 1, 2), "JAX": (1, 2, 0)}  # the axes of pages, tokens and heads
_BLOCK_BYTES = {"q8_0": 34, "q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "iq4_nl": 18}
_NO_SCALES, _GIVEN, _COMPUTED = range(3)


def write_kv(
    keys: Array,
    values: Array,
    slots: Array,
    key_pages: Array,
    value_pages: Array,
    *,
    layout: Literal["HND", "NHD", "JAX"] = "JAX",
    key_scales: float | Array | None = None,
    value_scales: float | Array | None = None,
    key_format: str | None = None,
    value_format: str | None = None,
    compute_scales: bool = False,
) -> tuple[Array, ...]:
    """riffle.write_kv as a function: returns the pages with tokens' keys and values written into them.

    Where the pages are donated (jax.jit's donate_argnums), or come from within a program and are not used again, they are
    written in place; else XLA copies them first. There is no derivative and no vmap.

    Args:
      keys, values, slots, key_pages, value_pages, key_scales, value_scales, compute_scales: riffle.write_kv's.
      layout: as there; the default is the layout of riffle.jax.paged_attention.
      key_format, value_format: of uint8 pages: "q8_0", "q4_0", "q4_1", "q5_0", "q5_1" or "iq4_nl".

    Returns:
      (key_pages, value_pages), and with compute_scales then the scales of each of the two that is float8 or int8.

    Raises:
      ValueError, TypeError: shapes, dtypes and options.
      JaxRuntimeError: a slot outside the pool, when it runs.

    >>> import jax, jax.numpy as jnp, riffle.jax
    >>> write = jax.jit(riffle.jax.write_kv, donate_argnums=(3, 4))
    >>> pages = jnp.zeros((1, 2, 4, 32)), jnp.zeros((1, 2, 4, 32))  # [kv_heads, pages, page_size, head_dim]
    >>> key_pages, value_pages = write(jnp.ones((2, 1, 32)), jnp.ones((2, 1, 32)), jnp.array([5, -1]), *pages)
    >>> key_pages[0, 1, :, 0]
    Array([0., 1., 0., 0.], dtype=float32)
    """
    if not isinstance(layout, str) or layout not in _LAYOUTS:
        raise ValueError(f"layout = {short_repr(layout)} is none of 'HND', 'NHD', 'JAX'")
    compute_scales = as_bool("compute_scales", compute_scales)
    check_arrays(keys=keys, values=values, slots=slots, key_pages=key_pages, value_pages=value_pages)
    sides = (("key", keys, key_pages, key_format, key_scales), ("value", values, value_pages, value_format, value_scales))
    scale_modes, operands = [], []
    for name, x, pages, block_format, scales in sides:
        _check_pages(name, pages, block_format)
        _check_tokens(f"{name}s", x, slots, pages, layout, block_format)
        mode, scales = _scale_mode_and_operand(name, pages, scales, compute_scales and str(pages.dtype) in SCALED)
        scale_modes.append(mode)
        operands += [] if scales is None else [scales]
    check_shape("value_pages", value_pages, (*key_pages.shape[:3], value_pages.shape[3]), "as key_pages but for head_dim")
    if compute_scales and _COMPUTED not in scale_modes:
        raise ValueError("compute_scales = True but neither key_pages nor value_pages is of a dtype with scales: " + ", ".join(SCALED))
    formats = tuple(0 if name is None else 1 + list(_BLOCK_BYTES).index(name) for name in (key_format, value_format))
    return _write(keys, values, slots, key_pages, value_pages, *operands, layout=layout, formats=formats, scale_modes=tuple(scale_modes))


# Static arguments are checked before this call, because JAX looks them up among its compiled functions.
@functools.partial(jax.jit, inline=True, static_argnames=("layout", "formats", "scale_modes"))
def _write(keys, values, slots, key_pages, value_pages, *scales, layout, formats, scale_modes):
    written = [key_pages, value_pages]
    aliases = {3: 0, 4: 1}  # operand: result
    for i, (mode, x) in enumerate(zip([mode for mode in scale_modes if mode], scales, strict=True)):
        if mode == _COMPUTED:
            aliases[5 + i] = len(written)
            written.append(x)
    call = jax.ffi.ffi_call("riffle_write_kv", [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in written], input_output_aliases=aliases)
    return tuple(
        call(keys, values, slots, key_pages, value_pages, *scales, layout=np.int64(list(_LAYOUTS).index(layout)),
             key_format=np.int64(formats[0]), value_format=np.int64(formats[1]), scales=np.int64(scale_modes[0] + 3 * scale_modes[1]))
    )  # fmt: skip


def _check_pages(name, pages, block_format):
    check_axes(f"{name}_pages", pages, "[pages, kv_heads, page_size, head_dim]")
    if block_format is None:
        return check_dtype(f"{name}_pages", pages, (*FLOATING, *SCALED))
    if not isinstance(block_format, str):
        raise TypeError(f"{name}_format must be a str or None, not {short_repr(block_format)}")
    if block_format not in _BLOCK_BYTES:
        raise ValueError(f"{name}_format = {block_format!r} is none of {', '.join(map(repr, _BLOCK_BYTES))}")
    check_dtype(f"{name}_pages", pages, ("uint8",))
    if pages.shape[3] % _BLOCK_BYTES[block_format] != 0:
        raise ValueError(f"{name}_pages has shape {pages.shape}; {name}_format = {block_format!r} takes a multiple of {_BLOCK_BYTES[block_format]} bytes")


def _check_tokens(name, x, slots, pages, layout, block_format):
    check_dtype(name, x)
    check_dtype("slots", slots, INDICES)
    check_axes("slots", slots, "[tokens]")
    head_dim = pages.shape[3] if block_format is None else pages.shape[3] // _BLOCK_BYTES[block_format] * 32
    check_shape(name, x, (slots.shape[0], pages.shape[_LAYOUTS[layout][2]], head_dim), "what slots and pages have")


def _scale_mode_and_operand(name, pages, scales, compute):
    """One of _NO_SCALES, _GIVEN and _COMPUTED, and the operand: as many axes as pages without the last, or one more of groups."""
    if scales is None:
        if compute or str(pages.dtype) == "int8":
            why = "compute_scales = True needs an array" if compute else f"{name}_pages are int8"
            raise ValueError(f"{name}_scales is None but {why}")
        return _NO_SCALES, None
    if not hasattr(scales, "dtype"):
        scales = np.full((1, 1, 1), as_float(f"{name}_scales", scales, "a number, an array or None"), np.float32)
        if compute:
            raise TypeError(f"{name}_scales must be an array, to which compute_scales = True writes, not {short_repr(scales.item())}")
    check_arrays(**{f"{name}_scales": scales})
    if str(pages.dtype) not in SCALED:
        raise TypeError(f"{name}_pages has dtype {pages.dtype}; with {name}_scales it must be {', '.join(SCALED[:-1])} or {SCALED[-1]}")
    check_dtype(f"{name}_scales", scales, SCALES)
    if scales.ndim < 3:
        scales = scales.reshape((1,) * (3 - scales.ndim) + scales.shape)
    shape: tuple[int, ...] = scales.shape
    fits = len(shape) <= 4 and all(n == m or n == 1 and not compute for n, m in zip(shape, pages.shape[:3]))
    if not fits or len(shape) == 4 and shape[3] != 1 and pages.shape[3] not in [n * shape[3] for n in (32, 64, 128)]:
        raise ValueError(f"{name}_scales has shape {shape}; it must {'be' if compute else 'broadcast to'} {pages.shape[:3]}, "
                         "or have one more axis: a scale for each 32, 64 or 128 elements")  # fmt: skip
    return _COMPUTED if compute else _GIVEN, scales

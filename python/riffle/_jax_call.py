"""What the functions of riffle.jax share: custom calls, and checks of what they are given."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from riffle import _core
from riffle._arguments import as_float, short_repr

Array = Any

for _name, _handler in _core.xla_handlers.items():
    jax.ffi.register_ffi_target(_name, _handler, platform="cpu")

FLOATING = ("float32", "float16", "bfloat16")
INDICES = ("int32", "int64")
SCALED = ("int8", "float8_e4m3fn", "float8_e5m2")  # elements that may have scales
SCALES = (*FLOATING, "float8_e8m0fnu")


def is_quantized(pages):
    return isinstance(pages, tuple) and hasattr(pages, "weight") and hasattr(pages, "scales")


def check_dtype(name, x, dtypes=FLOATING):
    if str(x.dtype) not in dtypes:
        raise TypeError(f"{name} must be {', '.join(dtypes[:-1])}{' or ' * (len(dtypes) > 1)}{dtypes[-1]}, not {x.dtype}")


def check_shape(name, x, shape, why):
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {x.shape}; it must be {tuple(shape)}, {why}")


def check_axes(name, x, form):
    if x.ndim != form.count(",") + 1:
        raise ValueError(f"{name} has shape {x.shape}; it must be {form}")


def check_arrays(**arrays):
    """TypeError for what has no dtype of JAX's. It names the argument, which the error of jax.jit would not."""
    for name, x in arrays.items():
        if is_quantized(x):
            check_arrays(**{f"{name}.weight": x.weight, f"{name}.scales": x.scales})
        elif getattr(x, "dtype", None) is None or getattr(x.dtype, "kind", "") in "OSUmM" or isinstance(x, type):
            kind = short_repr(x) if getattr(x, "dtype", None) is None else f"one of dtype {x.dtype}"
            raise TypeError(f"{name} must be an array, not {kind}")


def as_finite_float(name, value):
    value = as_float(name, value)
    if not math.isfinite(np.float32(value)):
        raise ValueError(f"{name} = {value} is not a finite float32")
    return value


def custom_call(target, result, **options):
    """A function of operands and attributes."""
    # The handlers get the leading axes that vmap adds, with size 1 where an operand is not batched, so nothing is copied.
    return jax.ffi.ffi_call(target, result, vmap_method="expand_dims", **options)

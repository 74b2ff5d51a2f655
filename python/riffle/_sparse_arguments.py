"""What the functions of sparse attention make of their arguments before they pass them to the extension."""

from __future__ import annotations

from typing import Any

import numpy

from riffle._arguments import as_list, short_repr

Array = Any


def as_int32(name: str, x: Array) -> Array:
    """An int64 array as int32 of NumPy; any other x as it is, for the bindings to judge.

    Raises ValueError, naming the first element that does not fit into int32.
    """
    if str(getattr(x, "dtype", "")).removeprefix("torch.") != "int64" or isinstance(x, numpy.ma.MaskedArray):
        return x
    try:
        numbers = numpy.asarray(x)
    except (TypeError, ValueError, RuntimeError):  # sparse, traced, on another device, ...
        return x
    limits = numpy.iinfo(numpy.int32)
    outside = (numbers < limits.min) | (numbers > limits.max)
    if outside.any():
        at = tuple(int(i) for i in numpy.argwhere(outside)[0])
        raise ValueError(f"{name}[{', '.join(map(str, at))}] = {numbers[at]} is not in {limits.min}..{limits.max}")
    return numbers.astype(numpy.int32)


def e4m3_codes(x: Array) -> tuple[Array, bool]:
    """A float8_e4m3fn array as its codes in uint8, and whether it was one; any other x as it is."""
    if str(getattr(x, "dtype", "")).removeprefix("torch.") != "float8_e4m3fn":
        return x, False
    module = type(x).__module__.partition(".")[0]
    if module == "torch":
        import torch

        return x.view(torch.uint8), True
    return numpy.asarray(x).view(numpy.uint8), True


def scopes_of(extra: Any, parts: str = "rows, slots, lengths, row_format") -> list[tuple]:
    """The further scopes of sparse attention. Raises TypeError for what is no list of them, ValueError for another number of parts.

    parts: their names; the fifth, if there is one, may be left out.
    """
    max_parts = len(parts.split(", "))
    scopes = as_list("extra", extra, f"({parts})")
    for i, scope in enumerate(scopes):
        if not isinstance(scope, (list, tuple)) or not 4 <= len(scope) <= max_parts:
            raise ValueError(f"extra[{i}] must be ({parts}), not {short_repr(scope)}")
    return [tuple(scope) for scope in scopes]

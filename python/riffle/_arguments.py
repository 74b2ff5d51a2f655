"""Arguments that several calls check or convert in Python before they reach the bindings."""

from __future__ import annotations

from typing import Any

import numpy

Array = Any
_INT32 = numpy.iinfo(numpy.int32)


def as_bool(name: str, value: Any) -> bool:
    """A flag. TypeError for anything but a bool, since "no" and 0.5 count as true in Python."""
    if isinstance(value, (bool, numpy.bool_)):
        return bool(value)
    raise TypeError(f"{name} must be a bool, not {value!r}")


def check_mask_value(value: Any) -> None:
    """The mask_value of published signatures of attention, which has no effect: masked keys are skipped.

    Raises TypeError for what is no number and ValueError for one above -1e30, at which a masked key would count.
    """
    if value is None:
        return
    if not hasattr(value, "__float__"):
        raise TypeError(f"mask_value must be a number or None, not {value!r}")
    if not float(value) <= -1e30:
        raise ValueError(f"mask_value = {value} is not at most -1e30")


def is_int64(x: Array) -> bool:
    """Whether x is an int64 array of NumPy, PyTorch or JAX. 0.1 us."""
    dtype = getattr(x, "dtype", None)
    return getattr(dtype, "itemsize", 4) == 8 and str(dtype).removeprefix("torch.") == "int64"


def narrowed(name: str, x: Array) -> Array:
    """An int64 array as int32 of NumPy; any other x as it is, for the bindings to judge.

    Raises ValueError, naming the first element that int32 does not have.
    """
    numbers = _int64_numbers(x)
    if numbers is None:
        return x
    outside = _outside(numbers)
    if outside is not None:
        _raise_outside(name, numbers, outside)
    return numbers.astype(numpy.int32)


def narrowed_page_table(page_table: Array, kv_lens: Array, page_size: int) -> Array:
    """narrowed(page_table), where what stands behind the last page of a sequence may be anything, since it is not read."""
    numbers = _int64_numbers(page_table)
    if numbers is None:
        return page_table
    outside = _outside(numbers)
    if outside is None:
        return numbers.astype(numpy.int32)
    lengths = numpy.asarray(kv_lens)
    if numbers.ndim == 2 and lengths.shape == numbers.shape[:1]:
        outside = outside & (numpy.arange(numbers.shape[1]) * page_size < lengths[:, None])
    if outside.any():
        _raise_outside("page_table", numbers, outside)
    return numbers.clip(_INT32.min, _INT32.max).astype(numpy.int32)


def _int64_numbers(x: Array) -> numpy.ndarray | None:
    """x as an array of NumPy; None where it is not int64 or has no numbers to be read."""
    if not is_int64(x) or isinstance(x, numpy.ma.MaskedArray):
        return None
    try:
        return numpy.asarray(x)
    except (TypeError, ValueError, RuntimeError):  # sparse, traced, on another device, ...
        return None


def _outside(numbers: numpy.ndarray) -> numpy.ndarray | None:
    """Which numbers int32 does not have; None for none of them."""
    if numbers.size == 0 or (numbers.min() >= _INT32.min and numbers.max() <= _INT32.max):
        return None
    return (numbers < _INT32.min) | (numbers > _INT32.max)


def _raise_outside(name: str, numbers: numpy.ndarray, outside: numpy.ndarray) -> None:
    element = tuple(int(i) for i in numpy.argwhere(outside)[0])
    raise ValueError(
        f"{name}[{', '.join(map(str, element))}] = {numbers[element]} is beyond int32; int64 is accepted where every "
        f"number fits into {_INT32.min}..{_INT32.max}"
    )

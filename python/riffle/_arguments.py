"""Arguments that several calls check or convert in Python before they reach the bindings."""

from __future__ import annotations

import operator
from typing import Any

import numpy


def short_repr(value: Any) -> str:
    """repr(value) for the text of an error, at most 200 characters; where it has none, its type."""
    try:
        text = repr(value)
    except Exception:  # whatever an object's own code raises
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."


def as_float(name: str, value: Any, form: str = "a number") -> float:
    """A number. TypeError for anything else, a str included."""
    try:
        if not isinstance(value, (str, bytes, bytearray)):
            return float(value)
    except Exception:  # as above
        pass
    raise TypeError(f"{name} must be {form}, not {short_repr(value)}")


def as_int(name: str, value: Any) -> int:
    """An int, or whatever has __index__."""
    try:
        return operator.index(value)
    except Exception:  # as above
        raise TypeError(f"{name} must be an int, not {short_repr(value)}") from None


def as_bool(name: str, value: Any) -> bool:
    """A flag. TypeError for anything but a bool, since "no" and 0.5 count as true in Python."""
    if isinstance(value, (bool, numpy.bool_)):
        return bool(value)
    raise TypeError(f"{name} must be a bool, not {short_repr(value)}")


def as_list(name: str, value: Any, what: str) -> list:
    """The elements of any iterable that is not text. TypeError for the rest."""
    try:
        if not isinstance(value, (str, bytes, bytearray)):
            return list(value)
    except TypeError:
        pass
    raise TypeError(f"{name} must be a sequence of {what}, not {short_repr(value)}")


def check_mask_value(value: Any) -> None:
    """The mask_value of published signatures of attention, which has no effect: masked keys are skipped.

    Raises TypeError for what is not a number, and ValueError for a number above -1e30, which would not hide a key.
    """
    if value is None:
        return
    if not as_float("mask_value", value, "a number or None") <= -1e30:
        raise ValueError(f"mask_value = {value} is not at most -1e30")

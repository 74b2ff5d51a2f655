"""What the tests of riffle.jax share."""

import re

import jax
import numpy as np
from frameworks import bits


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and (bits(a) == bits(b)).all()


def only_custom_calls(function, *arguments):
    """Whether the program is nothing but the call on what it is given: no copy, no temporary."""
    compiled = jax.jit(function).lower(*arguments).compile()
    operations = set(re.findall(r"^ +(?:ROOT )?%\S+ = .*? ([a-z][a-z-]*)\(", compiled.as_text(), re.MULTILINE))
    assert {"custom-call", "parameter"} <= operations
    views = {"custom-call", "parameter", "bitcast", "tuple", "get-tuple-element"}
    return operations <= views and compiled.memory_analysis().temp_size_in_bytes == 0

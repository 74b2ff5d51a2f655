"""JAX arrays outside of JAX programs."""

from __future__ import annotations

import math

import jax
import numpy as np

try:
    from riffle.jax import _top_k
except ImportError:  # riffle.jax does not support this version of JAX
    _top_k = None

_DTYPES = frozenset(
    (np.dtype(jax.numpy.bfloat16), *(np.dtype(code) for code in "f2 f4 f8 i1 u1 i2 u2 i4 u4 i8 u8 ?".split()))
)

# Results cannot be written into JAX's own memory, so they are made in host memory that XLA adopts. It adopts memory of this
# alignment and copies any other.
_ALIGNMENT = 64


def top_k(x, k):
    """(values, indices) of JAX array x by the compiled call of riffle.jax, 40 us quicker than `wrap`; None unless it is a
    valid call on an array of one CPU device.
    """
    if _top_k is None or type(k) is not int or not x.shape or not 1 <= k <= x.shape[-1] or x.dtype not in _DTYPES:
        return None
    devices = x.devices()
    if len(devices) != 1 or next(iter(devices)).platform != "cpu":
        return None
    return _top_k(k, -1)(x)


def empty(shape, dtype):
    """An uninitialised NumPy array that `wrap` need not copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def gathered(x):
    """JAX array x, which several CPU devices hold in shards or copies, as one NumPy array; None where one device holds
    it, and for memory that is not the CPU's.
    """
    devices = x.devices()
    if len(devices) == 1 or any(device.platform != "cpu" for device in devices):
        return None
    if not x.is_fully_addressable:
        raise ValueError(f"an array with sharding {x.sharding} has shards in other processes, which riffle cannot read")
    return np.asarray(x)


def wrap(like, array):
    """NumPy array `array`, which must not be written any more, as a JAX array on the devices of `like`: a copy on each, if
    there are several.
    """
    sharding = like.sharding
    if not isinstance(sharding, jax.sharding.SingleDeviceSharding):
        devices = like.devices()
        if len(devices) == 1:
            sharding = jax.sharding.SingleDeviceSharding(*devices)
        else:
            sharding = _replicated(sharding, devices)
    # The quickest public way that needs no compilation: 12 us; jnp.asarray takes 18 and copies, from_dlpack takes 50.
    return jax.make_array_from_callback(array.shape, sharding, lambda _: array)


def _replicated(sharding, devices):
    if isinstance(sharding, jax.sharding.NamedSharding):
        mesh = sharding.mesh  # so that results go together with what the caller has
    else:
        mesh = jax.sharding.Mesh(np.array(sorted(devices, key=lambda device: device.id)), ("devices",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

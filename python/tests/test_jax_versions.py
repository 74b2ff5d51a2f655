"""What riffle's handlers tell XLA of the version of its interface that they were built for."""

import ctypes

import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")
from riffle import _core  # noqa: E402


class Version(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("major", ctypes.c_int), ("minor", ctypes.c_int)]


class Api(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("version", Version)]


class Metadata(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("version", Version), ("traits", ctypes.c_uint32),
                ("state_type_id", ctypes.c_int64)]  # the last one since 0.2


class Extension(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("type", ctypes.c_int), ("next", ctypes.c_void_p),
                ("metadata", ctypes.POINTER(Metadata))]


class CallFrame(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("extension", ctypes.POINTER(Extension)), ("api", ctypes.POINTER(Api)),
                ("rest", ctypes.c_void_p * 32)]


@pytest.mark.parametrize("name", _core.xla_handlers)
@pytest.mark.parametrize("minor, told", [(None, 1), (1, 1), (2, 2), (5, 5), (99, 5)])
def test_xla_is_told_its_own_version_or_the_newest_known(name, minor, told):
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(CallFrame))(get_pointer(_core.xla_handlers[name], None))
    metadata = Metadata(size=Metadata.state_type_id.offset, traits=7, state_type_id=-77)
    frame = CallFrame(extension=ctypes.pointer(Extension(type=1, metadata=ctypes.pointer(metadata))))
    if minor is not None:  # XLA 0.1 leaves the table of its functions out
        frame.api = ctypes.pointer(Api(version=Version(major=0, minor=minor)))
    assert handler(frame) is None
    assert (metadata.version.major, metadata.version.minor, metadata.traits) == (0, told, 0)
    assert metadata.state_type_id == (0 if told >= 2 else -77)

"""Riffle's C API through ctypes, without NumPy: the best logits of each row, a drawn token, and a call that fails.

    python3 top_k.py libriffle.so
"""

import ctypes
import sys
from ctypes import POINTER, byref, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p


class Matrix(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("rows", c_int64), ("cols", c_int64), ("row_stride", c_int64), ("dtype", c_int32), ("reserved", c_int32)]


class TopKOut(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("values", c_void_p), ("values_stride", c_int64), ("indices", c_void_p), ("indices_stride", c_int64),
        ("stats", c_void_p), ("index_type", c_int32), ("reserved", c_int32),
    ]  # fmt: skip


class List(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("count", c_int64)]


class SampleOptions(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("pool", c_void_p), ("temperature", List), ("top_k", List), ("top_p", List), ("min_p", List),
        ("stream", List), ("position", List), ("seed", c_uint64),
    ]  # fmt: skip


riffle = ctypes.CDLL(sys.argv[1])
riffle.riffle_error_message.restype = ctypes.c_char_p
riffle.riffle_topk.argtypes = [POINTER(Matrix), c_int64, POINTER(TopKOut), c_void_p]
riffle.riffle_sample.argtypes = [POINTER(Matrix), c_void_p, c_void_p, POINTER(SampleOptions)]


def check(status: int) -> None:
    if status != 0:
        raise ValueError(riffle.riffle_error_message().decode())


logits = (c_float * 10)(0.5, 3, -1, 3, 2, -4, -2, -3, -1, -5)
x = Matrix(ctypes.addressof(logits), rows=2, cols=5, row_stride=5)
values, indices = (c_float * 6)(), (c_int32 * 6)()
out = TopKOut(ctypes.sizeof(TopKOut), ctypes.addressof(values), 3, ctypes.addressof(indices), 3)
check(riffle.riffle_topk(byref(x), 3, byref(out), None))
print(list(indices), list(values))
assert list(indices) == [1, 3, 4, 3, 1, 2]  # of equal logits the lower column comes first

zero = (c_float * 1)(0.0)  # the temperature of greedy choice
tokens = (c_int32 * 2)()
options = SampleOptions(ctypes.sizeof(SampleOptions), temperature=List(ctypes.addressof(zero), 1))
check(riffle.riffle_sample(byref(x), tokens, None, byref(options)))
assert list(tokens) == [1, 3]

try:
    check(riffle.riffle_topk(byref(x), 6, byref(out), None))
except ValueError as error:
    print(error)
else:
    raise AssertionError("k = 6 of 5 columns must fail")

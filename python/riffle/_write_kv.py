"""Writing keys and values into pages."""

from __future__ import annotations

from typing import Any, Literal

from riffle import _core

Array = Any


def write_kv(
    keys: Array,
    values: Array,
    slots: Array,
    key_pages: Array,
    value_pages: Array,
    *,
    layout: Literal["HND", "NHD", "JAX"] = "HND",
    key_scales: float | Array | None = None,
    value_scales: float | Array | None = None,
    key_format: str | None = None,
    value_format: str | None = None,
    compute_scales: bool = False,
) -> None:
    """Writes tokens' keys and values into pages, in place: copied, rounded or quantised.

    Token t goes to slot slots[t] = page * page_size + offset; -1 skips it, and where slots are equal the last token's keys and values stay.
    Everything is checked first: where an error is raised nothing has been written.

    Args:
      keys, values: [tokens, kv_heads, head_dim] float32, float16 or bfloat16; any strides with head_dim contiguous. Their
        dtypes and head_dims may differ.
      slots: int32 or int64 [tokens].
      key_pages, value_pages: the pages, NumPy or PyTorch, any strides with the last axis contiguous; float32, float16,
        bfloat16, float8_e4m3fn, float8_e5m2 (of PyTorch or ml_dtypes) or int8, each its own; or uint8 with a format, whose
        last axis is the bytes of a row: head_dim / 32 blocks. Numbers round to the nearest, ties to even; what overflows
        float8_e4m3fn or int8 becomes its largest number.
      layout: "HND" [pages, kv_heads, page_size, head_dim], "NHD" [pages, page_size, kv_heads, head_dim] or "JAX"
        [kv_heads, pages, page_size, head_dim].
      key_scales, value_scales: of float8 and int8 pages; x / scale is what is written. A number, or an array of float32,
        float16, bfloat16 or float8_e8m0fnu that broadcasts to the pages' shape without its last axis, or has one more axis
        of groups of 32, 64 or 128 elements along head_dim. int8 pages must have them.
      key_format, value_format: of uint8 pages: "q8_0", "q4_0", "q4_1", "q5_0", "q5_1" or "iq4_nl", GGUF's blocks. For uint8
        pages that hold codes of float8, "float8_e4m3fn" or "float8_e5m2".
      compute_scales: a scale is made from the largest magnitude of each row, or group, that is written (divided by 448 for
        float8_e4m3fn, 57344 for float8_e5m2, 127 for int8) and written into key_scales or value_scales, which must then be
        arrays in which no two rows share a scale.

    Raises:
      ValueError: shapes, strides, scales or a format that do not fit; a slot outside the pool; arguments that share memory.
      TypeError: a wrong dtype, or no array; pages of JAX, which are immutable (see riffle.jax.write_kv).
      MemoryError: no memory for scratch.

    >>> import numpy as np, riffle
    >>> keys, values = np.ones((2, 1, 32), np.float32), np.full((2, 1, 32), 254, np.float32)
    >>> key_pages, value_pages = np.zeros((3, 1, 4, 32), np.float16), np.zeros((3, 1, 4, 32), np.int8)
    >>> scales = np.zeros((3, 1, 4), np.float32)
    >>> riffle.write_kv(keys, values, np.array([5, -1]), key_pages, value_pages, value_scales=scales, compute_scales=True)
    >>> key_pages[1, 0, :, 0], value_pages[1, 0, :, 0], scales[1, 0]
    (array([0., 1., 0., 0.], dtype=float16), array([  0, 127,   0,   0], dtype=int8), array([0., 2., 0., 0.], dtype=float32))
    """
    _core.write_kv(keys, values, slots, key_pages, value_pages, layout, key_scales, value_scales, key_format, value_format,
                   compute_scales)  # fmt: skip

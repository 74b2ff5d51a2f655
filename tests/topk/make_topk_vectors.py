"""Writes tests/data/topk_vectors.txt: what topk_vectors_test expects on every machine. NumPy alone; nothing of Riffle runs.

    python3 tests/topk/make_topk_vectors.py >tests/data/topk_vectors.txt

A line is: dtype, pattern, rows, columns, k, then FNV-1a of the int32 indices and of the bits of the values, both in little endian.
"""

import numpy as np

# bytes, is a float: the bits of its exponent, else whether it is signed
DTYPES = {
    "float32": (4, 8), "float16": (2, 5), "bfloat16": (2, 8), "float64": (8, 11),
    "int8": (1, True), "uint8": (1, False), "int16": (2, True), "uint16": (2, False),
    "int32": (4, True), "uint32": (4, False), "int64": (8, True), "uint64": (8, False),
}  # fmt: skip
SHAPES = [(3, 1000, 64), (2, 20011, 64), (1, 70001, 1000), (5, 37, 37), (4, 3000, 1), (40, 100, 5)]


def splitmix64(first: int, count: int) -> np.ndarray:
    x = np.arange(first, first + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def elements(pattern: str, width: int, rows: int, n: int) -> np.ndarray:
    """Bits: any; or 16 values, the upper four bits, so that most are ties, and -0 meets +0."""
    random = splitmix64(width * 1000 + n, rows * n).reshape(rows, n)
    return random >> np.uint64(64 - width) if pattern == "bits" else (random >> np.uint64(60)) << np.uint64(width - 4)


def keys(bits: np.ndarray, width: int, name: str, kind: int | bool) -> np.ndarray:
    """Unsigned integers in the order of the elements: NaN highest and all equal, -0 as +0."""
    sign, full = np.uint64(1 << (width - 1)), np.uint64((1 << width) - 1)
    if "float" not in name:
        return bits ^ sign if kind else bits
    magnitude = bits & (full ^ sign)
    infinity = np.uint64(((1 << kind) - 1) << (width - 1 - kind))
    key = np.where((bits & sign != 0) & (magnitude != 0), full ^ bits, magnitude | sign)
    return np.where(magnitude > infinity, full, key)


def fnv1a(array: np.ndarray) -> str:
    value = 0xCBF29CE484222325
    for byte in array.astype(array.dtype.newbyteorder("<")).tobytes():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return f"{value:016x}"


def main() -> None:
    for name, (size, kind) in DTYPES.items():
        width = 8 * size
        for pattern in ("bits", "ties"):
            for rows, n, k in SHAPES:
                bits = elements(pattern, width, rows, n)
                descending = np.uint64((1 << width) - 1) - keys(bits, width, name, kind)
                indices = np.argsort(descending, axis=1, kind="stable")[:, :k]
                values = np.take_along_axis(bits, indices, axis=1).astype(f"u{size}")
                print(name, pattern, rows, n, k, fnv1a(indices.astype(np.int32)), fnv1a(values))


if __name__ == "__main__":
    with np.errstate(over="ignore"):
        main()

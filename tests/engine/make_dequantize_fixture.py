"""Writes tests/data/gemma3_dequantized.txt: CRC-32 of tensors of the model expanded to float32 by the Python package gguf.

    python tests/engine/make_dequantize_fixture.py MODEL.gguf tests/data/gemma3_dequantized.txt

Needs gguf. All tensors of layers 0 and 9 and the first 256 rows of the embedding: every type that the file holds.
"""

import sys
import zlib

import gguf
import numpy

ROWS = 256


def main(model: str, out: str) -> None:
    with open(out, "w") as file:
        for tensor in gguf.GGUFReader(model).tensors:
            if not tensor.name.startswith(("blk.0.", "blk.9.", "token_embd", "output_norm")):
                continue
            data = tensor.data[:ROWS] if tensor.name.startswith("token_embd") else tensor.data
            values = numpy.ascontiguousarray(gguf.dequantize(data, tensor.tensor_type), dtype=numpy.float32)
            file.write(f"{tensor.name} {tensor.tensor_type.name} {values.size} {zlib.crc32(values.tobytes()):08x}\n")


main(*sys.argv[1:])

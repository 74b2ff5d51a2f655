"""Writes CRC-32 of tensors expanded to float32 by the Python package gguf.

    python tests/engine/make_dequantize_fixture.py MODEL.gguf tests/data/gemma3_dequantized.txt
    build/dev/tests/write_random_models FOLDER
    python tests/engine/make_dequantize_fixture.py FOLDER/formats.gguf tests/data/formats_dequantized.txt

Needs gguf. Of a model all tensors of layers 0 and 9 and the first 256 rows of the embedding: every type that Gemma's file holds.
"""

import sys
import zlib

import gguf
import numpy

ROWS = 256


def main(model: str, out: str) -> None:
    with open(out, "w") as file:
        for tensor in gguf.GGUFReader(model).tensors:
            if "." in tensor.name and not tensor.name.startswith(("blk.0.", "blk.9.", "token_embd", "output_norm")):
                continue
            data = tensor.data[:ROWS] if tensor.name.startswith("token_embd") else tensor.data
            values = numpy.ascontiguousarray(gguf.dequantize(data, tensor.tensor_type), dtype=numpy.float32)
            file.write(f"{tensor.name} {tensor.tensor_type.name} {values.size} {zlib.crc32(values.tobytes()):08x}\n")


main(*sys.argv[1:])

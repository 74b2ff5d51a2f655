"""Files that bench/llama_bench.py gives to llama.cpp: models of a shape with random weights, and caches of any depth."""

import array
import pathlib
import random
import struct

VOCABULARY = 128256

# Layers, width, feed-forward width, heads, KV heads, head_dim. Decode of the first reads 785 MB of weights.
SHAPES = {
    "llama-8b-shape": (4, 4096, 14336, 32, 8, 128),
    "llama-1b-shape": (16, 2048, 8192, 32, 8, 64),
}

U32, I32, F32, STRING, ARRAY = 4, 5, 6, 8, 9  # types of metadata
TENSOR_F32, TENSOR_Q4_0 = 0, 2
ALIGNMENT = 32
MAGIC, VERSION = 0x67677371, 4  # of a file of llama-server's slots


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def metadata(shape: tuple[int, ...]) -> list[bytes]:
    layers, width, ff, heads, kv_heads, dim = shape
    numbers = {
        "block_count": layers,
        "context_length": 131072,
        "embedding_length": width,
        "feed_forward_length": ff,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "rope.dimension_count": dim,
        "vocab_size": VOCABULARY,
    }
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    kinds = [2, 3, 3] + [6] * 256
    tokens += [f"t{i}" for i in range(VOCABULARY - len(tokens))]
    kinds += [1] * (VOCABULARY - len(kinds))
    head = struct.pack("<I", ARRAY)
    return [
        text("general.architecture") + struct.pack("<I", STRING) + text("llama"),
        *(text(f"llama.{key}") + struct.pack("<II", U32, value) for key, value in numbers.items()),
        text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", F32, 1e-5),
        text("llama.rope.freq_base") + struct.pack("<If", F32, 500000.0),
        text("tokenizer.ggml.model") + struct.pack("<I", STRING) + text("llama"),
        text("tokenizer.ggml.tokens") + head + struct.pack("<IQ", STRING, VOCABULARY) + b"".join(map(text, tokens)),
        text("tokenizer.ggml.scores") + head + struct.pack("<IQ", F32, VOCABULARY) + bytes(4 * VOCABULARY),
        text("tokenizer.ggml.token_type") + head + struct.pack("<IQ", I32, VOCABULARY) + array.array("i", kinds).tobytes(),
        text("tokenizer.ggml.bos_token_id") + struct.pack("<II", U32, 1),
        text("tokenizer.ggml.eos_token_id") + struct.pack("<II", U32, 2),
    ]


def tensors(shape: tuple[int, ...]) -> list[tuple[str, int, int]]:
    """Names, rows and columns; one row: a vector of f32."""
    layers, width, ff, heads, kv_heads, dim = shape
    result = [("token_embd.weight", VOCABULARY, width), ("output_norm.weight", 1, width)]
    for layer in range(layers):
        parts = [("attn_norm", 1, width), ("ffn_norm", 1, width), ("attn_output", width, heads * dim)]
        parts += [("attn_q", heads * dim, width), ("attn_k", kv_heads * dim, width), ("attn_v", kv_heads * dim, width)]
        parts += [("ffn_gate", ff, width), ("ffn_up", ff, width), ("ffn_down", width, ff)]
        result += [(f"blk.{layer}.{name}.weight", rows, columns) for name, rows, columns in parts]
    return result


def write_blocks(file, blocks: int, columns: int, numbers: random.Random) -> None:
    """Blocks of a scale in f16 and 32 codes; codes less 8 have a variance of 21.25."""
    scale = struct.pack("<e", (21.25 * columns) ** -0.5)
    while blocks > 0:
        count = min(blocks, 1 << 20)
        data = bytearray(numbers.randbytes(18 * count))
        data[0::18] = scale[:1] * count
        data[1::18] = scale[1:] * count
        file.write(data)
        blocks -= count


def write_model(name: str, path: pathlib.Path) -> None:
    shape = SHAPES[name]
    numbers = random.Random(1)
    infos, offset = [], 0
    parts = tensors(shape)
    for tensor, rows, columns in parts:
        dims, kind = (struct.pack("<IQ", 1, columns), TENSOR_F32) if rows == 1 else (struct.pack("<IQQ", 2, columns, rows), TENSOR_Q4_0)
        infos.append(text(tensor) + dims + struct.pack("<IQ", kind, offset))
        size = columns * 4 if rows == 1 else rows * columns // 32 * 18
        offset += size + -size % ALIGNMENT
    pairs = metadata(shape)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(parts), len(pairs)) + b"".join(pairs) + b"".join(infos)
    with path.with_suffix(".part").open("wb") as file:
        file.write(head + bytes(-len(head) % ALIGNMENT))
        for _, rows, columns in parts:
            size = columns * 4 if rows == 1 else rows * columns // 32 * 18
            if rows == 1:
                file.write(array.array("f", [1.0] * columns).tobytes())
            else:
                write_blocks(file, size // 18, columns, numbers)
            file.write(bytes(-size % ALIGNMENT))
    path.with_suffix(".part").rename(path)


class State:
    """A file of llama-server's slots: what a cache holds of one sequence. Made longer by its own rows, again and again."""

    def __init__(self, path: pathlib.Path):
        self.data = memoryview(path.read_bytes())
        self.at = 0
        magic, version, count, mark, form, tokens = self.take("IIIiII")
        if (magic, version, mark, form, count) != (MAGIC, VERSION, -1, 1, tokens + 4):
            raise ValueError(f"{path} is not a file of the llama-server this was written for")
        self.tokens = self.bytes(4 * tokens).cast("i")
        self.take("I")  # how many of them are images
        self.caches = []
        # Behind the caches there may be snapshots of sliding windows, which no decode needs.
        while self.at < len(self.data) and self.data[self.at : self.at + 4] == struct.pack("<I", 1):
            self.caches.append(self.read_cache())

    def take(self, form: str) -> tuple:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def bytes(self, count: int) -> memoryview:
        self.at += count
        return self.data[self.at - count : self.at]

    def read_cache(self) -> dict:
        (streams,) = self.take("I")
        (cells,) = self.take("I")
        assert streams == 1
        places = [self.take("iIi") for _ in range(cells)]  # position, one sequence, its number
        transposed, layers, *rotations = self.take("IIII")
        assert not transposed
        sides = []
        for _ in range(2 * layers):  # all keys, then all values
            kind, row = self.take("iQ")
            sides.append((kind, row, self.bytes(cells * row)))
        return {"positions": [place[0] for place in places], "layers": layers, "rotations": rotations, "sides": sides}

    def write(self, path: pathlib.Path, depth: int, streams: int, transposed: bool) -> list[int]:
        """Writes the state at a depth, for a server with that many streams. Returns its tokens."""
        now = len(self.tokens)
        tokens = array.array("i", (list(self.tokens) * (depth // now + 1))[:depth])
        with path.open("wb") as file:
            file.write(struct.pack("<IIIiII", MAGIC, VERSION, depth + 4, -1, 1, depth) + tokens.tobytes() + bytes(4))
            for cache in self.caches:
                # A cache of a sliding window keeps the last cells only.
                whole = cache["positions"][0] == 0
                cells = depth if whole else len(cache["positions"])
                file.write(struct.pack("<II", streams, cells))
                places = range(cells) if whole else (position + depth - now for position in cache["positions"])
                file.write(b"".join(struct.pack("<iIi", place, 1, 0) for place in places))
                file.write(struct.pack("<IIII", transposed, cache["layers"], *cache["rotations"]))
                for i, (kind, row, rows) in enumerate(cache["sides"]):
                    if transposed and i >= cache["layers"]:
                        self.write_transposed(file, kind, row, rows, cells)
                    else:
                        file.write(struct.pack("<iQ", kind, row))
                        file.write((bytes(rows) * (cells * row // len(rows) + 1))[: cells * row])
                file.write(bytes(4 * (streams - 1)))  # the other streams are empty
        return tokens.tolist()

    @staticmethod
    def write_transposed(file, kind: int, row: int, rows: memoryview, cells: int) -> None:
        width = row // 2
        file.write(struct.pack("<iII", kind, 2, width))
        numbers = rows.cast("H").tolist()
        for i in range(width):
            column = array.array("H", numbers[i::width]).tobytes()
            file.write((column * (2 * cells // len(column) + 1))[: 2 * cells])

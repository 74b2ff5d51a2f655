"""Writes tests/data/unigram_tokens.json: what the library tokenizers makes of 20000 texts with a unigram vocabulary, in three settings.

    python tests/engine/make_unigram_fixture.py SMOLLM2.gguf tests/data/unigram_tokens.json

Needs tokenizers and gguf, which `scripts/venv.sh` installs. The texts are those of make_bpe_fixture.py. The vocabulary is "<unk>", then the
texts of SmolLM2's tokens with made-up scores, then, in one setting, the bytes. The fixture has the low half of the tokens' CRC-32, a text
each, and the tokens of the first few.
"""

import json
import sys
import zlib

import gguf
import numpy
from make_bpe_fixture import SHOWN, TEXTS, parts, text_of
from tokenizers import Regex, Tokenizer, models, normalizers

SPACE = "\u2581"


def byte_of():
    """The bytes that the characters of a byte-level vocabulary stand for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def score(index):
    return -(1 + index * 7919 % 4093) / 256


def vocabulary(fields):
    bytes_of = byte_of()
    texts = ["<unk>"]
    for token, kind in zip(fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.token_type"].contents()):
        if kind != 1:
            continue
        try:
            text = bytes(bytes_of[c] for c in token).decode().replace(" ", SPACE)
        except UnicodeDecodeError:
            continue
        texts.append(text)
    assert len(set(texts)) == len(texts)
    return [(text, 0.0 if i == 0 else score(i)) for i, text in enumerate(texts)]


def tokenizer(vocab, kind):
    spaces = normalizers.Replace(" ", SPACE)
    if kind == "bytes":
        vocab = vocab + [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    made = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=kind == "bytes"))
    if kind == "trimmed":
        ends = normalizers.Replace(Regex(r"\A +| +\z"), "")
        runs = normalizers.Replace(Regex(" {2,}"), " ")
        made.normalizer = normalizers.Sequence([ends, runs, spaces, normalizers.Prepend(SPACE)])
    else:
        made.normalizer = spaces
    return made


def main(model, out):
    vocab = vocabulary(gguf.GGUFReader(model).fields)
    pool = parts()
    texts = [text_of(i, pool) for i in range(TEXTS)]
    fixture = {"vocabulary": len(vocab), "kinds": {}}
    for kind in ("plain", "bytes", "trimmed"):
        encoded = [e.ids for e in tokenizer(vocab, kind).encode_batch(texts, add_special_tokens=False)]
        crcs = "".join(f"{zlib.crc32(numpy.array(ids, '<i4').tobytes()) & 0xFFFF:04x}" for ids in encoded)
        fixture["kinds"][kind] = {"shown": encoded[:SHOWN], "crc16": crcs}
        print(kind, sum(map(len, encoded)), "tokens,", sum(ids.count(0) for ids in encoded), "unknown")
    with open(out, "w", encoding="ascii") as file:
        json.dump(fixture, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

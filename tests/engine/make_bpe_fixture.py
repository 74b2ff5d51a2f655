"""Writes tests/data/bpe_tokens.json: what the library tokenizers makes of 20000 texts with the vocabulary of SmolLM2 and each of four
pre-tokenizers.

    python tests/engine/make_bpe_fixture.py SMOLLM2.gguf tests/data/bpe_tokens.json

Needs tokenizers (Transformers brings it) and gguf, which `scripts/venv.sh` installs. The texts are put together of the parts in the
fixture, by the same numbers here and in byte_bpe_test.cc, so that the fixture has only their tokens' CRC-32, a text each, and the
tokens of the first few.
"""

import json
import random
import sys
import unicodedata
import zlib

import gguf
import numpy
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

TEXTS = 20000
SHOWN = 40
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = [
    "the", " of", " The", "ing", "tion", " capital", "Hello", " world", "def ", "return", "self", " => ", "()", "{}", "://", "www.", ".com",
    "'s", "'S", "'t", "'re", "'RE", "'ve", "'m", "'M", "'ll", "'Ll", "'d", "'\u017f", "'x", "''", "don't", "I'll", "WE'VE",
    " ", "  ", "   ", "    ", "\n", "\n\n", "\r\n", "\r", "\t", "\t\t", " \n", "\n ", " \t ", "\u00a0", "\u2003", "\u3000", "\u0085", "\u2028", "\x0b", "\x0c",
    "1", "12", "123", "1234", "3.14", "1,000", " 7", "\u00bd", "\u00b2", "\u0663\u0664", "\u2163", "\u4e09", "!", "!!!", "?!", "...", " ...", "--", "==", "/*", "*/", "#", "$", "%",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "<repo_name>", "<|", "|>", "user", "assistant", "e\u0301", "o\u0308", "\u0301", "\u1100\u1161", "\ufb01", "\u212b",
    "caf\u00e9", "Stra\u00dfe", "\u041f\u0440\u0438\u0432\u0435\u0442", " \u03ba\u03cc\u03c3\u03bc\u03b5", "\u4f60\u597d", "\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f", "\uc548\ub155", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e44\u0e17\u0e22",
    "\U0001f98a", "\U0001f469\u200d\U0001f680", "\U0001f1eb\U0001f1f7", "\U0001d573", "\U00020bb7", "\u200b", "\ufeff", "\x00", "\x7f", "\ud7a3", "\uffff", "\U0010ffff", "aaaaaaaaaaaaaaaa", "        ", "________",
]  # fmt: skip


def parts():
    """The words, and characters of every kind that Python's table, of Unicode 14, assigns. Combining characters that are new in it are
    left out: tokenizers composes by an older table."""
    rng = random.Random(1)
    characters = []
    while len(characters) < 800:
        code = rng.choice([rng.randrange(0x250), rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x110000)])
        if 0xD800 <= code < 0xE000 or 0x1AC1 <= code <= 0x1ACE or unicodedata.category(chr(code)) == "Cn":
            continue
        characters.append(chr(code))
    return WORDS + characters


def text_of(number, parts, words=len(WORDS)):
    """SplitMix64 (Steele, Lea, Flood 2014) from `number` on. Words are four times as frequent as characters."""
    state = number

    def below(limit):
        nonlocal state
        mask = 2**64 - 1
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        return (z ^ z >> 31) % limit

    text = ""
    for _ in range(1 + below(24)):
        text += parts[below(words) if below(5) > 0 else below(len(parts))]
    return text


def tokenizer(fields, kind):
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=kind == "llama-bpe")
    made = tokenizers.Tokenizer(model)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if kind == "gpt-2":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif kind == "smollm":
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    else:
        pattern = LLAMA3 if kind == "llama-bpe" else LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), plain])
    if kind == "qwen2":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    special = [tokens[i] for i, type in enumerate(types) if type in (3, 4)]
    made.add_special_tokens([tokenizers.AddedToken(text, normalized=False) for text in special])
    return made


def main(model, out):
    fields = gguf.GGUFReader(model).fields
    pool = parts()
    texts = [text_of(i, pool) for i in range(TEXTS)]
    fixture = {"words": len(WORDS), "parts": pool, "kinds": {}}
    for kind in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
        encoded = [e.ids for e in tokenizer(fields, kind).encode_batch(texts, add_special_tokens=False)]
        crcs = "".join(f"{zlib.crc32(numpy.array(ids, '<i4').tobytes()):08x}" for ids in encoded)
        fixture["kinds"][kind] = {"shown": encoded[:SHOWN], "crc32": crcs}
        print(kind, sum(map(len, encoded)), "tokens")
    with open(out, "w", encoding="ascii") as file:
        json.dump(fixture, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Writes tests/data/charsmap_tokens.json: what SentencePiece makes of 5000 texts with vocabularies that normalize by a table, in three
settings.

    python tests/engine/make_charsmap_fixture.py tests/data/charsmap_tokens.json [RULE]

Needs sentencepiece and protobuf (`scripts/venv.sh reference`); a minute. SentencePiece makes the table: of a part of the compatibility
composition of Unicode, of characters that vanish, and of spaces, or of all that the named RULE has (nmt_nfkc, nmt_nfkc_cf, nfkc, nfkc_cf; a
fixture of 500 KB). It trains the vocabularies on some of the texts. The fixture has the low half of the tokens' CRC-32, a text each, and the
tokens of the first few.
"""

import base64
import io
import json
import random
import sys
import tempfile
import unicodedata
import zlib

import numpy
import sentencepiece
from make_bpe_fixture import text_of
from sentencepiece import sentencepiece_model_pb2

TEXTS = 5000
SHOWN = 20
WORDS = [
    " ", "  ", "   ", "\u00a0", "\u3000", "\u2003 ", "\t", "\n", "\u2581", " \u2581 ", "\u200b", "\ufeff", "\u00ad", "\u0301", "\u3099",
    "the", " of", "ing", " capital", "Hello", " world", "def", "()", "1", "12", "!", "...", "a\u0301", "e\u0301", "o\u0308", "A\u030a",
    "u\u0308\u0304", "u\u0308", "\ufb01", "\ufb03x", "\u212b", "\uff21\uff42\uff43", "\uff11\uff12", "\u2460", "\u00bd", "\u2167", "\u33a5",
    "\u30ab\u3099", "\uff76\uff9e", "\uff76", "\u1112\u1161\u11ab", "\u1112\u1161", "\ud55c", "\ufdfa", "\u0628", "\ufe8f", "\u1e9b\u0323",
    "Stra\u00dfe", "caf\u00e9", "\u4f60\u597d", "\u3053\u3093", "\U0001f98a", "\U0001d573", "\U0002f800", "\U00020bb7", "\u017f", "\u0149",
]  # fmt: skip


def parts():
    rng = random.Random(3)
    changed = [c for c in map(chr, range(0xA0, 0x30000)) if not 0xD800 <= ord(c) < 0xE000 and unicodedata.normalize("NFKC", c) != c]
    return WORDS + rng.sample(changed, 800) + [chr(rng.randrange(0x20, 0x3000)) for _ in range(150)]


def rules(pool):
    """What SentencePiece takes as a table: code points, a tab, code points."""
    sources = set()
    for part in pool:
        for length in (1, 2, 3):
            sources |= {part[i : i + length] for i in range(len(part) - length + 1)}
    table = {s: unicodedata.normalize("NFKC", s) for s in sources if len(s) == 1 or unicodedata.combining(s[-1]) or "\u1100" <= s[0] < "\u1200"}
    table |= {c: " " for c in "\t\n\u00a0\u2003\u3000\u2581"} | {c: "" for c in "\u200b\ufeff\u00ad"}
    table |= {"...": "\u2026", "..": ". ", " of": "  OF "}  # sequences that are no composition, with spaces
    codes = lambda text: " ".join(f"{ord(c):04X}" for c in text)  # noqa: E731
    return "".join(f"{codes(s)}\t{codes(t)}\n" for s, t in sorted(table.items()) if s != t and s != " ")


def train(texts, rule, **options):
    writer = io.BytesIO()
    named = {"normalization_rule_name": rule} if rule else {}
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as tsv:
        if not rule:
            tsv.write(rules(parts()))
            tsv.flush()
            named = {"normalization_rule_tsv": tsv.name}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=writer, hard_vocab_limit=False, character_coverage=0.98, minloglevel=2,
            num_threads=1, bos_id=-1, eos_id=-1, **named, **options,
        )  # fmt: skip
    return writer.getvalue()


KINDS = {
    "trimmed": dict(model_type="unigram", vocab_size=500),
    "as written": dict(model_type="unigram", vocab_size=700, byte_fallback=True, remove_extra_whitespaces=False, add_dummy_prefix=False),
    "bpe": dict(model_type="bpe", vocab_size=700, byte_fallback=True),
}


def main(out, rule=None):
    pool = parts()
    texts = [text_of(i, pool, len(WORDS)) for i in range(TEXTS)]
    fixture = {"parts": pool, "words": len(WORDS), "kinds": {}}
    for kind, options in KINDS.items():
        sample = [text.replace("\n", " ").replace("\0", "") for text in texts[::4]]
        model = train(sample, rule, **options)
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        spec = proto.normalizer_spec
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        assert fixture.setdefault("charsmap", charsmap) == charsmap
        encoded = sentencepiece.SentencePieceProcessor(model_proto=model).encode(texts)
        crcs = "".join(f"{zlib.crc32(numpy.array(ids, '<i4').tobytes()) & 0xFFFF:04x}" for ids in encoded)
        fixture["kinds"][kind] = {
            "model": {"unigram": "t5", "bpe": "llama"}[options["model_type"]],
            "add_space_prefix": spec.add_dummy_prefix, "remove_extra_whitespaces": spec.remove_extra_whitespaces,
            "texts": [p.piece for p in proto.pieces], "scores": [p.score for p in proto.pieces], "types": [p.type for p in proto.pieces],
            "shown": encoded[:SHOWN], "crc16": crcs,
        }  # fmt: skip
        print(kind, len(proto.pieces), "pieces,", len(spec.precompiled_charsmap), "bytes of table,", sum(map(len, encoded)), "tokens")
    with open(out, "w", encoding="ascii") as file:
        json.dump(fixture, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

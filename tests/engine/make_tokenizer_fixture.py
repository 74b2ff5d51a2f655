"""Writes tests/data/gemma3_tokens.json: texts and their tokens by SentencePiece itself, to hold engine's tokenizer against.

    python tests/engine/make_tokenizer_fixture.py MODEL.gguf tests/data/gemma3_tokens.json

Needs sentencepiece, protobuf, gguf and llama-cpp-python, which `scripts/venv.sh reference` installs. The vocabulary of the GGUF
file is put into a SentencePiece model of type BPE; llama.cpp's tokenizer, given the file itself, must agree on every text.
"""

import json
import random
import sys

import gguf
import llama_cpp
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as spm

TEXTS = [
    "", " ", "  ", "   a", "a  ", "Hello, world!", "Hello", " Hello", "The capital of France is", "\n", "\n\n", "\t", "\r\n",
    "one\ntwo\n\nthree\n\n\n\tfour\t\tfive", " " * 31 + "x", " " * 70, "\n" * 40, "\t" * 33 + "y", " \n \n ", "a\u00a0b\u2003c\u3000d",
    "def f(x):\n    if x > 1:\n        return x * f(x - 1)  # recursion\n    return 1\n",
    "int main() { std::cout << \"hi\" << '\\n'; }", "for(i=0;i<10;++i)a[i]+=b[i]<<2;", "{\"k\": [1, 2.5, -3e10, null, true]}",
    "https://example.org/a/b?c=d&e=%20f#g", "1234567890 3.14159 1,000,000 0x1F 1e-9 ½ ² ₃ Ⅳ", "It's John's; don't—won't … “quoted” ‘q’",
    "<b>bold</b><i>it</i> <h1>Title</h1><table><tr><td>1</td></tr></table>", "<b", "</", "<<b>>", "<unused", "[multimodal] [multi",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "<bos><eos><pad><unk><mask><unused0><unused6241>", "<0x41><0x0A>",
    "naïve café Ångström Straße ŒUVRE", "e\u0301 o\u0308 a\u030a (combining)", "Ελληνικά Кириллица עברית العربية", "हिन्दी தமிழ் ไทย ខ្មែរ አማርኛ",
    "日本語の文章です。漢字とかな。", "今天天气很好，我们去公园吧！", "한국어 문장입니다.", "日本語English混在テキスト123", "𠀀𠮷𡈽 𓀀𓁐 𐍈𐌰 𝕳𝖊𝖑𝖑𝖔",
    "🦊🐍🚀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇫🇷", "\u200b\u200d\ufeff\u2060zero width", "\x00\x01\x1f\x7f\x80\x85", "\ue000\uf8ff\U000f0000\U0010ffff",
    "a" * 300, "ab" * 200, "=" * 100, "-" * 37, "." * 65, "ha" * 50, "!?" * 30, "🦊" * 20, "\U0010fffd" * 5,
    "supercalifragilisticexpialidocious antidisestablishmentarianism", "ALLCAPS MixedCase camelCase snake_case kebab-case",
    "\u2581", "a\u2581b", "\u2581\u2581 \u2581", "x=\u2581y", "The quick brown fox jumps over the lazy dog. " * 12,
]


def random_texts(seed: int, count: int) -> list[str]:
    """Texts that mix characters of all kinds, spaces and tokens, on which tokenizers differ."""
    rng = random.Random(seed)
    alphabets = [
        "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " \t\n", " ", ".,;:!?'\"()[]{}<>/\\|@#$%^&*-_=+~`",
        "áàâäãåçéèêëíìîïñóòôöõúùûüýÿæœß", "абвгдежзийклмнопрстуфхцчшщъыьэюя", "αβγδεζηθικλμνξοπρστυφχψω", "的一是在不了有和人这中大为上个国我以要他",
        "あいうえおかきくけこアイウエオ", "가나다라마바사아자차", "ابتثجحخدذرز", "🦊🐍🚀😀🏽\u200d\ufe0f", "\u0300\u0301\u0308", "\u00a0\u2003\u200b",
    ]
    words = ["the", " of", "<b>", "</b>", "<end_of_turn>", "  ", "\n\n", "ing", "<td>", "tion", "<unused7>", "http://", "[multimodal]"]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(1, 12)):
            kind = rng.randrange(10)
            if kind == 0:
                parts.append(rng.choice(words))
            elif kind == 1:  # any character that UTF-8 can write
                code = rng.choice([rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x110000)])
                parts.append(chr(code) if not 0xD800 <= code < 0xE000 else "?")
            else:
                alphabet = rng.choice(alphabets)
                parts.append("".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 8))))
        texts.append("".join(parts))
    return texts


def strings(reader: gguf.GGUFReader, key: str) -> list[str]:
    field = reader.fields[key]
    return [bytes(field.parts[i]).decode() for i in field.data]


def numbers(reader: gguf.GGUFReader, key: str) -> list[float]:
    field = reader.fields[key]
    return [field.parts[i][0].item() for i in field.data]


def sentencepiece_of(path: str) -> sentencepiece.SentencePieceProcessor:
    reader = gguf.GGUFReader(path)
    pieces = strings(reader, "tokenizer.ggml.tokens")
    scores = numbers(reader, "tokenizer.ggml.scores")
    types = numbers(reader, "tokenizer.ggml.token_type")
    model = spm.ModelProto()
    model.trainer_spec.model_type = spm.TrainerSpec.BPE
    model.trainer_spec.vocab_size = len(pieces)
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id, model.trainer_spec.bos_id = pieces.index("<unk>"), pieces.index("<bos>")
    model.trainer_spec.eos_id, model.trainer_spec.pad_id = pieces.index("<eos>"), pieces.index("<pad>")
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    proto_type = spm.ModelProto.SentencePiece
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        kind = int(kind)
        if piece == "<unk>":
            kind = proto_type.UNKNOWN
        elif kind == proto_type.CONTROL and piece not in ("<bos>", "<eos>", "<pad>"):
            kind = proto_type.USER_DEFINED  # so that SentencePiece, too, finds them in a text
        if kind == proto_type.USER_DEFINED:
            piece = piece.replace(" ", "\u2581")
        model.pieces.append(proto_type(piece=piece, score=score, type=kind))
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def main() -> None:
    path, out = sys.argv[1:]
    reference = sentencepiece_of(path)
    llama = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    bos = llama.token_bos()
    cases, only_sentencepiece = [], 0
    for text in TEXTS + random_texts(7, 400):
        by_llama = llama.tokenize(text.encode(), add_bos=True, special=True)
        # SentencePiece finds no <bos>, <eos>, <pad> or <unk> in a text.
        spelled = any(name in text for name in ("<bos>", "<eos>", "<pad>", "<unk>"))
        tokens = by_llama if spelled else [bos, *reference.encode(text)]
        if tokens != by_llama:
            only_sentencepiece += 1
            print(f"llama.cpp differs on {text!r}: {by_llama[1:]} against {tokens[1:]}")
        cases.append({"text": text, "tokens": tokens})
    with open(out, "w", encoding="ascii") as file:
        file.write("[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "\n]\n")
    print(f"{len(cases)} texts, {sum(len(case['tokens']) for case in cases)} tokens, {only_sentencepiece} where llama.cpp differs")


if __name__ == "__main__":
    main()

"""Writes tests/data/smollm2_greedy.json: prompts, and the tokens that Transformers generates greedily in float32 from the weights of
SmolLM2's GGUF file, with the gap between the two best logits at each step.

    python tests/engine/make_smollm2_fixture.py SMOLLM2.gguf tests/data/smollm2_greedy.json

Needs torch, transformers and gguf, which `scripts/venv.sh` installs; minutes. The prompts' tokens are the library tokenizers' own.
"""

import json
import sys

import gguf
import torch
from make_bpe_fixture import tokenizer
from make_random_models_fixture import File, generate, load

NEW_TOKENS = 32


def chat(question):
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def long_text():
    """More than 2000 tokens; its end asks for what stands at its start."""
    lines = ["The name of the ship is Marigold. Remember it."]
    for day in range(1, 90):
        lines.append(f"On day {day} the keeper saw {day * 7 % 31} boats pass the harbour and wrote the number {day * 13 % 97} into the book.")
    lines.append("At last the keeper was asked for the name of the ship. He answered: the name of the ship is")
    return " ".join(lines)


PROMPTS = {
    "fact": "The capital of France is",
    "word": "Once",
    "story": "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    "code": 'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "json": '{"name": "Ada", "born": 1815, "field": "mathematics"}\n{"name": "Alan", "born":',
    "arithmetic": "2 + 2 = 4\n3 + 3 = 6\n4 + 4 = 8\n5 + 5 =",
    "list": "Planets of the solar system:\n1. Mercury\n2. Venus\n3.",
    "html": "<html>\n<body>\n<h1>Prices</h1>\n<table>\n<tr><th>Fruit</th><th>Price</th></tr>\n<tr><td>Apple</td>",
    "german": "Die Hauptstadt von \u00d6sterreich hei\u00dft",
    "chinese": "\u6c34\u7684\u5316\u5b66\u5f0f\u662f",
    "chat": chat("Name three primary colours."),
    "chat-why": chat("Why is the sky blue?"),
    "repeat": "one two three one two three one two three one two",
    "long": long_text(),
}


def main(path, out):
    torch.set_num_threads(1)
    file = File(path)
    model = load(file)
    made = tokenizer(gguf.GGUFReader(path).fields, "smollm")
    cases = []
    for name, text in PROMPTS.items():
        prompt = made.encode(text, add_special_tokens=False).ids
        tokens, gaps = generate(model, prompt, file.fields["tokenizer.ggml.eos_token_id"], NEW_TOKENS)
        print(f"{name}: {len(prompt)} + {len(tokens)} tokens, smallest gap {min(gaps)}: {made.decode(tokens)!r}", flush=True)
        cases.append({"name": name, "text": text, "prompt_tokens": len(prompt), "tokens": tokens, "gaps": gaps})
    with open(out, "w", encoding="ascii") as target:
        target.write("[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

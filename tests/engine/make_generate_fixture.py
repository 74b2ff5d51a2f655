"""Writes tests/data/gemma3_greedy.json: prompts, and the tokens that Transformers generates greedily from the same GGUF file with
its weights expanded to float32, with the gap between the two best logits at each step.

    python tests/engine/make_generate_fixture.py MODEL.gguf tests/data/gemma3_greedy.json

Needs torch, transformers, gguf and llama-cpp-python, which `scripts/venv.sh reference` installs; about two minutes on two cores.
The tokens that llama.cpp generates (it rounds activations to int8) are compared too, and differences printed.
"""

import json
import os
import sys

import llama_cpp
import torch
import transformers

NEW_TOKENS = 48


def long_prompt() -> str:
    """More than 600 tokens, longer than the window of the local layers; its end asks for what stands at its start."""
    colours = ["red", "green", "blue", "yellow", "white", "black", "orange"]
    animals = ["heron", "otter", "badger", "lynx", "raven", "salmon", "hare", "stoat", "toad"]
    lines = ["The password of the north gate is marigold. Remember it, because the guard will ask for it at the end."]
    for day in range(1, 43):
        lines.append(f"On day {day} the guard counted {day * 7 % 31} boats with {colours[day % 7]} sails and saw one {animals[day % 9]} by the river.")
    lines.append("At last the guard asked for the password of the north gate. The traveller answered: the password of the north gate is")
    return " ".join(lines)


PROMPTS = {
    "fact": "The capital of France is",
    "word": "Once",
    "story": "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    "code": "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "json": "{\"name\": \"Ada\", \"born\": 1815, \"field\": \"mathematics\"}\n{\"name\": \"Alan\", \"born\":",
    "arithmetic": "2 + 2 = 4\n3 + 3 = 6\n4 + 4 = 8\n5 + 5 =",
    "list": "Planets of the solar system:\n1. Mercury\n2. Venus\n3.",
    "html": "<html>\n<body>\n<h1>Prices</h1>\n<table>\n<tr><th>Fruit</th><th>Price</th></tr>\n<tr><td>Apple</td>",
    "german": "Die Hauptstadt von Österreich heißt",
    "chinese": "水的化学式是",
    "emoji": "🍎 apple\n🍌 banana\n🍒",
    "chat": "<start_of_turn>user\nName three primary colours.<end_of_turn>\n<start_of_turn>model\n",
    "repeat": "one two three one two three one two three one two",
    "long": long_prompt(),
}


@torch.inference_mode()
def by_transformers(model: torch.nn.Module, prompt: list[int]) -> tuple[list[int], list[float]]:
    tokens, gaps = [], []
    cache = transformers.DynamicCache(config=model.config)
    feed = torch.tensor([prompt])
    while len(tokens) < NEW_TOKENS:
        logits = model(feed, past_key_values=cache, use_cache=True).logits[0, -1].double()
        best = torch.topk(logits, 2)
        tokens.append(best.indices[0].item())
        gaps.append(round((best.values[0] - best.values[1]).item(), 4))
        if tokens[-1] == model.config.eos_token_id:
            break
        feed = torch.tensor([[tokens[-1]]])
    return tokens, gaps


def by_llama(llama: llama_cpp.Llama, prompt: list[int]) -> list[int]:
    llama.reset()
    tokens = []
    for token in llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
        tokens.append(token)
        if len(tokens) == NEW_TOKENS or token == llama.token_eos():
            break
    return tokens


def main() -> None:
    path, out = sys.argv[1:]
    torch.set_num_threads(2)
    folder, name = os.path.split(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    print(model.config)
    llama = llama_cpp.Llama(path, n_ctx=2048, n_threads=2, verbose=False)
    cases = []
    for name, text in PROMPTS.items():
        prompt = llama.tokenize(text.encode(), add_bos=True, special=True)
        tokens, gaps = by_transformers(model, prompt)
        llama_tokens = by_llama(llama, prompt)
        same = next((i for i, (a, b) in enumerate(zip(tokens, llama_tokens)) if a != b), len(tokens))
        differs = "" if same == len(tokens) else f"; llama.cpp differs at {same}, where the gap is {gaps[same]}"
        print(f"{name}: {len(prompt)} + {len(tokens)} tokens, smallest gap {min(gaps)}{differs}", flush=True)
        print("   ", repr(llama.detokenize(tokens).decode(errors="replace")))
        cases.append({"name": name, "prompt": text, "prompt_tokens": len(prompt), "tokens": tokens, "gaps": gaps})
    with open(out, "w", encoding="ascii") as file:
        file.write("[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()

"""Writes tests/data/penalties.json: logits after the repetition penalty of Transformers, and what Transformers generates greedily, in
float32, with penalties from a file that write_random_models makes.

    build/dev/tests/write_random_models FOLDER
    python tests/engine/make_penalties_fixture.py FOLDER tests/data/penalties.json

The repetition penalty is Transformers' RepetitionPenaltyLogitsProcessor. Presence and frequency penalties, which Transformers does not have,
are OpenAI's formula. `gaps` are between the two best logits after all penalties. Needs what make_random_models_fixture.py needs; seconds.
"""

import collections
import json
import pathlib
import random
import sys
import zlib

import torch
import transformers
from make_random_models_fixture import File, load

MODEL = "qwen3"
VOCAB = 1000
NEW_TOKENS = 40
# repetition, presence, frequency
GENERATED = [(1.3, 0, 0), (1.05, 0, 0), (0.8, 0, 0), (1, 1.5, 0), (1, 0, 0.7), (1, -0.5, -0.25), (1.2, 0.5, 0.25)]


def numbers(seed, count):
    """32 bits each, as penalties_test.cc makes them."""
    made = []
    for _ in range(count):
        seed = (seed * 1664525 + 1013904223) % 2**32
        made.append(seed)
    return made


def rows():
    crcs = []
    for row in range(200):
        penalty = (0.5, 0.9, 1.0, 1.1, 1.3, 2.5)[row % 6]
        made = numbers(row, VOCAB + 50)
        logits = torch.tensor([((n >> 8) - 2**23) / 2**18 for n in made[:VOCAB]], dtype=torch.float32)
        tokens = torch.tensor([(n >> 8) % VOCAB for n in made[VOCAB:]])
        result = transformers.RepetitionPenaltyLogitsProcessor(penalty)(tokens[None], logits[None])
        crcs.append(zlib.crc32(result[0].numpy().astype("<f4").tobytes()))
    return crcs


@torch.inference_mode()
def generate(model, prompt, stop, penalties):
    repetition, presence, frequency = penalties
    processor = transformers.RepetitionPenaltyLogitsProcessor(float(repetition))
    tokens, gaps = [], []
    while len(tokens) < NEW_TOKENS and stop not in tokens:
        logits = model(torch.tensor([prompt + tokens]), logits_to_keep=1).logits[0, -1:]
        logits = processor(torch.tensor([prompt + tokens]), logits)[0].double()
        for token, count in collections.Counter(tokens).items():
            logits[token] -= count * frequency + (count > 0) * presence
        best = torch.topk(logits, 2)
        tokens.append(best.indices[0].item())
        gaps.append(round((best.values[0] - best.values[1]).item(), 4))
    return tokens, gaps


def main(folder, out):
    file = File(pathlib.Path(folder) / f"{MODEL}.gguf")
    model = load(file)
    pool = random.Random(1)
    cases = []
    for penalties in GENERATED:
        for length in (3, 12, 60):
            prompt = [1] + [pool.randrange(3, 128) for _ in range(length - 1)]
            tokens, gaps = generate(model, prompt, file.fields["tokenizer.ggml.eos_token_id"], penalties)
            cases.append({"penalties": penalties, "prompt": prompt, "tokens": tokens, "gaps": gaps})
            print(penalties, length, len(tokens), "tokens,", len(set(tokens)), "different,", sum(gap > 0.05 for gap in gaps), "clear")
    with open(out, "w", encoding="ascii") as target:
        json.dump({"model": MODEL, "rows": rows(), "cases": cases}, target, separators=(",", ":"))
        target.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

#!/usr/bin/env python3
"""Transformers' generate and generate_batch on Gemma 3 270M with sdpa and with riffle, and its sampling beside riffle's Sampler.

    .venv/bin/python bench/transformers_generate.py         a table in Markdown

Set up with `make python` and scripts/model.sh. Weights are expanded to float32. Both run in one process, in turns, and a step of
decode is the time from one forward to the next: the median is printed. Answers come first: both must give the same greedy
tokens (after the same prompt; a step whose two best logits nearly tie would end the run), and a token that riffle draws must
be among those that Transformers' filters keep.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList

import riffle
import riffle.transformers

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = ("sdpa", "riffle")


def prompts(requests: int, length: int) -> list[list[int]]:
    """Text that the model wrote, each request with another start."""
    entries = json.loads((ROOT / "tests" / "data" / "gemma3_greedy.json").read_text())
    text = [token for entry in entries for token in entry["tokens"]] * (length // 600 + 2)
    return [[2, *text[7 * i : 7 * i + length - 1]] for i in range(requests)]


class Clock:
    """The starts of a model's forwards that decode `tokens` tokens; `step` is the median time between them."""

    def __init__(self, model: torch.nn.Module, tokens: int) -> None:
        self.tokens, self.starts = tokens, []
        self.hook = model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        if ids.numel() == self.tokens:
            self.starts.append(time.perf_counter())

    def step(self) -> float:
        self.hook.remove()
        return statistics.median(b - a for a, b in zip(self.starts, self.starts[1:]))


def generate(model, name: str, rows, new_tokens: int, batched: bool) -> tuple[list[list[int]], float]:
    """Greedy tokens, and the seconds of a step."""
    model.set_attn_implementation(name)
    clock = Clock(model, len(rows))
    if batched:
        generation = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        batching = ContinuousBatchingConfig(num_blocks=512, page_size=32, max_batch_tokens=1024, max_requests_per_batch=32)
        outputs = model.generate_batch(rows, generation_config=generation, continuous_batching_config=batching)
        ordered = sorted(outputs.items(), key=lambda item: int(item[0].split("_")[-1]))
        return [output.generated_tokens for _, output in ordered], clock.step()
    ids = torch.tensor(rows)
    arguments = dict(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments)
    return out[:, ids.shape[1] :].tolist(), clock.step()


def measure_decode(model, requests: int, length: int, new_tokens: int, batched: bool, rounds: int) -> None:
    rows = prompts(requests, length)
    steps, answers = {name: [] for name in NAMES}, {}
    for _ in range(rounds):
        for name in NAMES:
            answers[name], step = generate(model, name, rows, new_tokens, batched)
            steps[name].append(step)
        if answers["sdpa"] != answers["riffle"]:
            sys.exit(f"the tokens differ: {answers}")
    before, after = (1e3 * min(steps[name]) for name in NAMES)
    call = "generate_batch" if batched else "generate"
    print(f"| `{call}`, {requests} x {length} tokens | {before:.1f} ms | {after:.1f} ms | {before / after:.2f} |", flush=True)


def measure_sampling(rows: int, vocab: int, top_k: int, top_p: float) -> None:
    torch.manual_seed(1)
    scores = 3 * torch.randn(rows, vocab)
    filters = LogitsProcessorList([transformers.TemperatureLogitsWarper(0.8)])
    if top_k:
        filters.append(transformers.TopKLogitsWarper(top_k))
    filters.append(transformers.TopPLogitsWarper(top_p))
    sampler = riffle.transformers.Sampler(temperature=0.8, top_k=top_k, top_p=top_p)
    kept = filters(None, scores.clone()).isfinite()

    def by_transformers(x, step):
        return torch.multinomial(torch.softmax(filters(None, x), -1), 1)

    def by_riffle(x, step):
        return sampler(torch.empty(rows, step), x).argmax(-1, keepdim=True)

    times = {by_transformers: [], by_riffle: []}
    for step in range(7):
        for draw, seconds in times.items():
            x = scores.clone()
            start = time.perf_counter()
            tokens = draw(x, step)
            seconds.append(time.perf_counter() - start)
            assert kept.gather(1, tokens).all()
    before, after = (1e3 * statistics.median(seconds) for seconds in times.values())
    what = f"top_k {top_k}, top_p {top_p}" if top_k else f"top_p {top_p}"
    print(f"| a token of {rows} x {vocab} logits, {what} | {before:.2f} ms | {after:.2f} ms | {before / after:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=["sampling", "generate", "generate_batch"])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    riffle.set_num_threads(arguments.threads)
    riffle.transformers.register()
    print("| a step of decode, or a draw | Transformers alone | with riffle | times as fast |\n|---|---|---|---|")
    for rows in (1, 8) if arguments.only in (None, "sampling") else ():
        for top_k in (64, 0):
            measure_sampling(rows, 262144, top_k, 0.95)
    if arguments.only == "sampling":
        return
    path = subprocess.run([ROOT / "scripts" / "model.sh", "--path"], capture_output=True, text=True, check=True).stdout.strip()
    folder, name = pathlib.Path(path).parent, pathlib.Path(path).name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    if arguments.only != "generate_batch":
        measure_decode(model, 1, 600, 12, False, arguments.rounds)
    if arguments.only != "generate":
        measure_decode(model, 4, 600, 8, True, 1)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Transformers on Gemma 3 270M, with sdpa and with riffle: steps of decode, continuous batching, sampling.

    .venv/bin/python bench/transformers_generate.py         tables in Markdown, in less than three minutes

Set up with `make python` and scripts/model.sh. All ways run in one process, in turns, on caches of their own that hold the same
text; the medians are printed. Answers come first: all must give the same greedy tokens, except where the two best logits are
within rounding of each other, and a token that riffle draws must be among those that Transformers' filters keep.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import riffle
import riffle.transformers
import torch
import transformers
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, LogitsProcessorList
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ROOT = pathlib.Path(__file__).resolve().parents[1]


def prompts(requests: int, length: int) -> list[list[int]]:
    """Text that the model wrote, each request with another start."""
    entries = json.loads((ROOT / "tests" / "data" / "gemma3_greedy.json").read_text())
    text = [token for entry in entries for token in entry["tokens"]] * (length // 600 + 2)
    return [[2, *text[7 * i : 7 * i + length - 1]] for i in range(requests)]


def greedy_step(model, cache, ids: torch.Tensor, position: int) -> tuple[torch.Tensor, float, float]:
    """Logits [rows, vocab], the seconds of a step of decode, and those of them in attention."""
    mask = torch.ones(len(ids), position + 1, dtype=torch.int64)
    Attention.seconds = 0.0
    start = time.perf_counter()
    out = model(input_ids=ids, attention_mask=mask, position_ids=torch.full_like(ids, position), past_key_values=cache)
    out.logits[:, -1].argmax(-1)
    return out.logits[:, -1], time.perf_counter() - start, Attention.seconds


class Attention:
    """Counts the seconds in the attention functions."""

    seconds = 0.0

    @classmethod
    def watch(cls, name: str) -> None:
        function = ALL_ATTENTION_FUNCTIONS[name]

        def watched(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            cls.seconds += time.perf_counter() - start
            return result

        ALL_ATTENTION_FUNCTIONS.register(name, watched)


def prefilled(model, length: int) -> DynamicCache:
    """The cache of a prompt."""
    cache = DynamicCache(config=model.config)
    model.set_attn_implementation("riffle")
    model(input_ids=torch.tensor(prompts(1, length)), past_key_values=cache, logits_to_keep=1)
    return cache


def repeated(model, prompt: DynamicCache, rows: int, length: int, kind: type) -> DynamicCache:
    """`rows` sequences of `length` tokens, the prompt's over and over, in a cache of that kind."""
    cache = kind(config=model.config)
    for i, (layer, attention) in enumerate(zip(prompt.layers, model.config.layer_types)):
        seen = length if attention == "full_attention" else min(length, model.config.sliding_window - 1)
        times = -(-seen // layer.keys.shape[2])
        cache.update(*(x.repeat(rows, 1, times, 1)[:, :, -seen:].contiguous() for x in (layer.keys, layer.values)), i)
        if attention != "full_attention":
            cache.layers[i].cumulative_length = length
    return cache


def check_tokens(expected: torch.Tensor, actual: torch.Tensor, what: str) -> int:
    """Ends the program unless the greedy tokens are the same, except where the two best logits are within rounding (7 bits of
    bfloat16, 14 of float32). Returns how many were compared."""
    best = expected.float().topk(2, -1).values
    near = best[:, 0] - best[:, 1] <= best[:, 0].abs() * (2**-7 if expected.dtype == torch.bfloat16 else 2**-14)
    different = expected.argmax(-1) != actual.argmax(-1)
    if bool((different & ~near).any()):
        sys.exit(f"{what}: the tokens differ: {expected.argmax(-1)} {actual.argmax(-1)}")
    return int((~near).sum())


def measure_decode(model, prompt: DynamicCache, rows: int, length: int, steps: int) -> None:
    """A step of sdpa, riffle, and riffle with its LM head and cache, in turns on caches of their own; sdpa's tokens lead."""
    growing = riffle.transformers.GrowingCache
    ways = {
        "sdpa": ("sdpa", 0, DynamicCache), "riffle": ("riffle", 0, DynamicCache), "head": ("riffle", 64, DynamicCache),
        "cache": ("riffle", 64, growing),
    }  # fmt: skip
    caches = {way: repeated(model, prompt, rows, length, kind) for way, (*_, kind) in ways.items()}
    ids = torch.arange(rows)[:, None] + 1000
    times, compared = {way: [] for way in ways}, 0
    for step in range(steps + 1):  # the first is not counted
        for way, (attention, k, _) in ways.items():
            model.set_attn_implementation(attention)
            riffle.transformers.use_top_k_head(model, k)
            logits, *seconds = greedy_step(model, caches[way], ids, length + step)
            if way == "sdpa":
                expected = logits
            else:
                compared += check_tokens(expected, logits, f"{way}, {rows} x {length}, step {step}")
            if step:
                times[way].append(seconds)
        ids = expected.argmax(-1, keepdim=True)
    riffle.transformers.use_top_k_head(model, 0)
    if compared < 2 * rows:
        sys.exit(f"{rows} x {length}: only {compared} tokens could be compared")
    step, attention = ({way: 1e3 * statistics.median(t[i] for t in times[way]) for way in ways} for i in (0, 1))
    dtype = str(model.dtype).removeprefix("torch.")
    others = (f"{step[way]:.1f} ({step['sdpa'] / step[way]:.2f})" for way in ("riffle", "head", "cache"))
    print(f"| {dtype}, {rows} x {length} | {attention['sdpa']:.1f} | {attention['riffle']:.1f} | {step['sdpa']:.1f} "
          f"| {' | '.join(others)} |", flush=True)  # fmt: skip


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


def measure_batching(model, requests: int, length: int, new_tokens: int) -> None:
    """generate_batch: a step of decode of all requests, and all of it."""
    rows, answers, texts = prompts(requests, length), [], []
    generation = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(
        num_blocks=1 + requests * (length + new_tokens) // 32 * 2, page_size=32, max_batch_tokens=1024,
        max_requests_per_batch=requests,
    )  # fmt: skip
    for attention, k in (("sdpa", 0), ("eager", 0), ("riffle", 0), ("riffle", 64)):
        model.set_attn_implementation(attention)
        riffle.transformers.use_top_k_head(model, k)
        clock, start = Clock(model, requests), time.perf_counter()
        outputs = model.generate_batch(
            rows, generation_config=generation, continuous_batching_config=batching, progress_bar=False
        )
        seconds = time.perf_counter() - start
        ordered = sorted(outputs.items(), key=lambda item: int(item[0].split("_")[-1]))
        answers.append([output.generated_tokens for _, output in ordered])
        if answers[-1] != answers[0]:
            sys.exit(f"generate_batch: the tokens differ: {answers}")
        texts.append(f"{1e3 * clock.step():.0f} / {seconds:.1f}")
    riffle.transformers.use_top_k_head(model, 0)
    print(f"| {requests} x {length}, {new_tokens} new | {' | '.join(texts)} |", flush=True)


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


def load(dtype: torch.dtype) -> torch.nn.Module:
    """The GGUF's weights expanded to `dtype`."""
    path = subprocess.run([ROOT / "scripts" / "model.sh", "--path"], capture_output=True, text=True, check=True).stdout.strip()
    folder, name = pathlib.Path(path).parent, pathlib.Path(path).name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    return model.eval().requires_grad_(False).to(dtype)


DECODE = {
    torch.float32: [(1, 600), (1, 16384), (8, 600), (8, 4096), (32, 600)],
    torch.bfloat16: [(1, 600), (1, 16384), (8, 600), (8, 4096), (32, 600)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="of each way; four times as many for one sequence")
    parser.add_argument("--only", choices=["sampling", "float32", "bfloat16", "generate_batch"])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    def wanted(part):
        return arguments.only in (None, part)

    torch.set_num_threads(arguments.threads)
    riffle.transformers.register()
    torch.set_grad_enabled(False)
    if wanted("sampling"):
        print("| a draw | Transformers alone | with riffle | times as fast |\n|---|---|---|---|")
        for rows in (1, 8):
            for top_k in (64, 0):
                measure_sampling(rows, 262144, top_k, 0.95)
    if arguments.only == "sampling":
        return
    print("loading the model (20 s)", file=sys.stderr, flush=True)
    model = load(torch.float32)
    if wanted("generate_batch"):
        print("\n| ms of a step / s of all | sdpa | eager | riffle | riffle and its LM head |\n|---|---|---|---|---|")
        measure_batching(model, 4, 600, 8)
    for name in ("sdpa", "riffle"):
        Attention.watch(name)
    for dtype, cases in DECODE.items():
        if wanted(str(dtype).removeprefix("torch.")):
            model = model.to(dtype)
            prompt = prefilled(model, 1024)
            print("\n| ms of a step of decode | attention, sdpa | riffle | step, sdpa | riffle | and its LM head | and GrowingCache |")
            print("|---|---|---|---|---|---|---|")
            for rows, length in cases:
                measure_decode(model, prompt, rows, length, arguments.steps * (4 if rows == 1 else 1))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""`riffle generate` beside llama-cpp-python, on the same GGUF file with the same number of threads.

    .venv/bin/python bench/generate_peers.py            a table in Markdown
    .venv/bin/python bench/generate_peers.py --rounds 1 --only decode-1

Set up with `make build`, scripts/model.sh and `scripts/venv.sh reference` (compiles llama.cpp: five minutes on two cores).
Answers come first: both generate greedily from prompts of tests/data/gemma3_greedy.json and must give what Transformers gives in
float32 up to the first step where its two best logits are closer than a limit (0.05 for riffle; 0.5 for llama.cpp, which rounds
activations to int8). Each measurement is a process of its own; riffle and llama.cpp take turns, round by round; the median of the
rounds is printed. llama.cpp is timed around llama_decode alone, its sampler left out; riffle's times are those of its `stats`,
the choice of the tokens included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FIXTURE = os.path.join(ROOT, "tests", "data", "gemma3_greedy.json")
RIFFLE_CLOSE, LLAMA_CLOSE = 0.05, 0.5

# The cases: for each, both programs report tokens a second. Prompts differ from request to request, because riffle would
# share the pages of equal ones.
CASES = {
    "decode-1": "one request, 128 tokens after a prompt of 20",
    "decode-32": "32 requests together, 64 tokens each after prompts of 20",
    "prefill-512": "eight prompts of 512 tokens, one after the other",
    "sample-32": "as decode-32, temperature 1, top-k 64, top-p 0.95 (riffle only)",
}
NEW_TOKENS = {"decode-1": 128, "decode-32": 64, "prefill-512": 1, "sample-32": 64}


def prompts_of(case: str) -> list[str]:
    if case == "prefill-512":
        return [f"{chr(ord('A') + i)}" + " one two three" * 170 for i in range(8)]
    requests = 1 if case == "decode-1" else 32
    return [f"Chapter {i + 10}. Once upon a time, in a small village by the sea, there lived" for i in range(requests)]


def run_riffle(arguments, extra: list[str], prompts: list[str]) -> list[dict]:
    command = [arguments.riffle, "generate", "--model", arguments.model, "--json", "--threads", str(arguments.threads), *extra]
    for prompt in prompts:
        command += ["--prompt", prompt]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def measure_riffle(arguments, case: str) -> dict:
    extra = ["--max-new-tokens", str(NEW_TOKENS[case])]
    if case == "sample-32":
        extra += ["--temperature", "1", "--top-k", "64", "--top-p", "0.95"]
    *results, last = run_riffle(arguments, extra, prompts_of(case))
    if case == "prefill-512":
        assert all(result["prompt_tokens"] == 512 for result in results), results
        assert last["stats"]["shared_tokens"] == 0 and last["stats"]["steps"] == 8, last["stats"]
    return last["stats"]


class Llama:
    """llama.cpp's own interface: the high-level class decodes one sequence only."""

    def __init__(self, path: str, threads: int, sequences: int, context: int) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        self.log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.log, None)
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = context, sequences
        parameters.n_batch = parameters.n_ubatch = 512
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        tokens = (self.api.llama_token * (len(data) + 8))()
        count = self.api.llama_tokenize(self.vocab, data, len(data), tokens, len(tokens), True, True)
        return list(tokens[:count])

    def decode(self, entries: list[tuple[int, int, int, bool]]) -> float:
        """Decodes entries of (token, position, sequence, whether logits are wanted). Returns the seconds it took."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, logits) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, logits
        start = time.perf_counter()
        failed = self.api.llama_decode(self.context, batch)
        self.api.llama_synchronize(self.context)
        seconds = time.perf_counter() - start
        assert failed == 0, failed
        return seconds

    def best(self, i: int) -> int:
        import numpy as np

        return int(np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, i), (self.vocab_size,)).argmax())

    def generate(self, prompts: list[str], new_tokens: int) -> tuple[list[list[int]], float, float]:
        """Decodes all prompts together. Returns their greedy tokens, the seconds of prefill and those of decode."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        lengths, tokens, prefill = [], [], 0.0
        for sequence, prompt in enumerate(prompts):
            ids = self.tokenize(prompt)
            for first in range(0, len(ids), 512):
                part = ids[first : first + 512]
                entries = [(t, first + i, sequence, first + i + 1 == len(ids)) for i, t in enumerate(part)]
                prefill += self.decode(entries)
            lengths.append(len(ids))
            tokens.append([self.best(len(part) - 1)])
        decode = 0.0
        for step in range(new_tokens - 1):
            decode += self.decode([(t[-1], lengths[s] + step, s, True) for s, t in enumerate(tokens)])
            for s, t in enumerate(tokens):
                t.append(self.best(s))
        self.prompt_tokens = lengths
        return tokens, prefill, decode


def measure_llama(arguments, case: str) -> dict:
    prompts = prompts_of(case)
    together = 1 if case == "prefill-512" else len(prompts)
    llama = Llama(arguments.model, arguments.threads, together, 1024 if together == 1 else 128 * together)
    llama.generate(prompts[:1], 2)  # warm
    # A prefill case takes its prompts one by one, each with an empty cache.
    groups = [[prompt] for prompt in prompts] if case == "prefill-512" else [prompts]
    counted, steps, prefill, decode = 0, 0, 0.0, 0.0
    for group in groups:
        tokens, seconds, more = llama.generate(group, NEW_TOKENS[case])
        counted += sum(llama.prompt_tokens)
        steps += sum(len(t) - 1 for t in tokens)
        prefill, decode = prefill + seconds, decode + more
    return {
        "prefill_tokens_per_second": counted / prefill,
        "decode_tokens_per_second": steps / decode if decode else 0,
    }


def check_tokens(name: str, expected: dict, tokens: list[int], close: float) -> int:
    """How many steps agree before the first one whose two best logits are close; a difference before that is an error."""
    for step, (token, wanted, gap) in enumerate(zip(tokens, expected["tokens"], expected["gaps"])):
        if gap <= close:
            return step
        if token != wanted:
            sys.exit(f"{name} on '{expected['name']}', step {step}: token {token}, not {wanted} (gap {gap})")
    return len(expected["tokens"])


def check(arguments) -> None:
    with open(FIXTURE, encoding="ascii") as file:
        cases = json.load(file)
    new_tokens = max(len(case["tokens"]) for case in cases)
    if arguments.peer == "riffle":
        results = run_riffle(arguments, ["--max-new-tokens", str(new_tokens)], [case["prompt"] for case in cases])
        generated, close = [result["tokens"] for result in results[:-1]], RIFFLE_CLOSE
    else:
        llama, close = Llama(arguments.model, arguments.threads, 1, 2048), LLAMA_CLOSE
        generated = [llama.generate([case["prompt"]], new_tokens)[0][0] for case in cases]
    steps = [check_tokens(arguments.peer, case, tokens, close) for case, tokens in zip(cases, generated, strict=True)]
    print(json.dumps({"steps": sum(steps)}))


def child(arguments, peer: str, case: str) -> dict:
    command = [sys.executable, __file__, "--peer", peer, "--case", case, "--model", arguments.model]
    command += ["--riffle", arguments.riffle, "--threads", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{peer} {case}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def table(arguments) -> None:
    if not arguments.no_check:
        for peer in ("riffle", "llama.cpp"):
            print(f"{peer}: {child(arguments, peer, 'check')['steps']} greedy tokens checked", flush=True)
    names = arguments.only.split(",") if arguments.only else list(CASES)
    rates: dict[tuple[str, str], list[float]] = {}
    shares = []
    for _ in range(arguments.rounds):
        for case in names:
            what = "prefill_tokens_per_second" if case.startswith("prefill") else "decode_tokens_per_second"
            for peer in ("riffle",) if case == "sample-32" else ("riffle", "llama.cpp"):
                stats = child(arguments, peer, case)
                rates.setdefault((case, peer), []).append(stats[what])
                if case == "sample-32":
                    shares.append(stats["top_k_share"])
    print("\n| case | riffle, tokens/s | llama.cpp, tokens/s | ratio |\n|---|---|---|---|")
    for case in names:
        riffle = statistics.median(rates[case, "riffle"])
        if case == "sample-32":
            print(f"| {CASES[case]} | {riffle:.0f}; choosing tokens {100 * statistics.median(shares):.1f} % of the time | | |")
            continue
        llama = statistics.median(rates[case, "llama.cpp"])
        print(f"| {CASES[case]} | {riffle:.0f} | {llama:.0f} | {riffle / llama:.2f} |")


def main() -> None:
    cache = os.environ.get("RIFFLE_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "riffle")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.path.join(cache, "models", "gemma-3-270m-q4_k_m.gguf"))
    parser.add_argument("--riffle", default=os.path.join(ROOT, "build", "release", "riffle"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="cases, comma-separated: " + ", ".join(CASES))
    parser.add_argument("--no-check", action="store_true", help="skip the answers (they were checked before)")
    parser.add_argument("--peer", choices=["riffle", "llama.cpp"], help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer is None:
        table(arguments)
    elif arguments.case == "check":
        check(arguments)
    else:
        print(json.dumps((measure_riffle if arguments.peer == "riffle" else measure_llama)(arguments, arguments.case)))


if __name__ == "__main__":
    main()

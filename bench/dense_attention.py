#!/usr/bin/env python3
"""riffle.torch.scaled_dot_product_attention beside torch's, over sampled shapes, and decoding.

    .venv/bin/python bench/dense_attention.py                      200 sampled calls and the decoding ones; a table, the worst ratios
    .venv/bin/python bench/dense_attention.py --part 2/8           an eighth of them: a machine is alone for a few seconds only
    .venv/bin/python bench/dense_attention.py --decode             the decoding ones only

Set up with `make python`. Each library runs in a process of its own and they take turns, call by call; the best of several rounds
counts, of more rounds where riffle seems to be slower: the clock changes by half from second to second. torch has two processes, of
one thread and of two, as two threads cost small calls more than they save; the faster one counts. riffle's answers are checked
against torch's before they are timed. A ratio is torch's time over riffle's.
"""

import argparse
import json
import math
import random
import subprocess
import sys
import time

THREADS = 2
MAX_FLOPS = 2e9
MASKS = ("none", "none", "causal", "bool", "padding", "float")


def sampled(count):
    """1 to 4096 queries and keys, head_dims of 32 to 256, float32 and bfloat16, with and without masks."""
    rng = random.Random(12)
    cases = []
    while len(cases) < count:
        queries, keys = (int(2 ** rng.uniform(0, 12.01)) for _ in range(2))
        if rng.random() < 0.2:
            queries = 1
        elif rng.random() < 0.3:
            queries = keys
        case = {"batch": rng.choice((1, 1, 2, 8, 32)), "heads": rng.choice((1, 4, 8, 16, 32)), "queries": queries, "keys": keys,
                "dim": rng.choice((32, 64, 80, 96, 128, 192, 256)), "dtype": rng.choice(("float32", "bfloat16")),
                "mask": rng.choice(MASKS), "tokens_first": rng.random() < 0.5, "groups": rng.choice((1, 1, 4))}  # fmt: skip
        if case["heads"] % case["groups"] or 4 * case["batch"] * case["heads"] * queries * keys * case["dim"] > MAX_FLOPS:
            continue
        if case["batch"] * case["heads"] * keys * case["dim"] > 1 << 26:
            continue
        cases.append(case)
    return cases


def decoding():
    for dtype in ("float32", "bfloat16"):
        for batch, heads, groups, keys, dim in ((1, 32, 4, 4096, 128), (1, 32, 1, 4096, 128), (8, 32, 4, 2048, 128), (32, 32, 4, 512, 128),
                                                (1, 8, 1, 1024, 64), (16, 16, 1, 1024, 64), (4, 16, 2, 4096, 256), (1, 8, 8, 32768, 128)):  # fmt: skip
            for mask in ("none", "padding"):
                yield {"batch": batch, "heads": heads, "queries": 1, "keys": keys, "dim": dim, "dtype": dtype, "mask": mask,
                       "tokens_first": False, "groups": groups}  # fmt: skip


def call_of(function, case):
    import torch

    torch.manual_seed(7)
    dtype = getattr(torch, case["dtype"])
    kv_heads = case["heads"] // case["groups"]

    def tensor(heads, tokens):
        if case["tokens_first"]:
            return torch.randn(case["batch"], tokens, heads, case["dim"]).to(dtype).transpose(1, 2)
        return torch.randn(case["batch"], heads, tokens, case["dim"]).to(dtype)

    q, k, v = tensor(case["heads"], case["queries"]), tensor(kv_heads, case["keys"]), tensor(kv_heads, case["keys"])
    options = {"enable_gqa": case["groups"] > 1, "is_causal": case["mask"] == "causal"}
    if case["mask"] == "bool":
        options["attn_mask"] = torch.ones(case["queries"], case["keys"], dtype=torch.bool).tril(max(case["keys"] - case["queries"], 0))
    elif case["mask"] == "padding":
        seen = torch.randint(case["keys"] // 2, case["keys"] + 1, (case["batch"], 1, 1, 1))
        options["attn_mask"] = torch.arange(case["keys"]) < seen.clamp(min=1)
    elif case["mask"] == "float":
        options["attn_mask"] = torch.randn(1, case["heads"], case["queries"], case["keys"]).to(dtype)
    return lambda: function(q, k, v, **options)


def best_time(call, seconds):
    """Of one call, in microseconds, over `seconds`, at least five: after a rest, threads of OpenMP need some calls to be on CPUs of
    their own."""
    call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1e6


def serve(library, threads):
    """Answers cases on standard input with times, until it ends."""
    import torch

    torch.set_num_threads(threads)
    torchs = torch.nn.functional.scaled_dot_product_attention
    if library == "riffle":
        import riffle.torch

        riffle_function = riffle.torch.scaled_dot_product_attention
    kept = None, None
    with torch.inference_mode():
        for line in sys.stdin:
            case, seconds = json.loads(line)
            if kept[0] != case:
                kept = case, call_of(riffle_function if library == "riffle" else torchs, case)
                if library == "riffle":
                    check(kept[1](), call_of(torchs, case)(), case)
            print(best_time(kept[1], seconds), flush=True)


def check(ours, theirs, case):
    import torch

    tolerance = 2e-5 if case["dtype"] == "float32" else 3e-2
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance)


class Server:
    def __init__(self, library, threads=THREADS):
        command = [sys.executable, __file__, "--serve", library, "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def time(self, case, seconds):
        asks, answers = self.process.stdin, self.process.stdout
        assert asks is not None and answers is not None
        print(json.dumps([case, seconds]), file=asks, flush=True)
        answer = answers.readline()
        if not answer:
            raise SystemExit(f"a process ended at {case}")
        return float(answer)


def measure(servers, case, aim, seconds):
    best = [math.inf] * len(servers)
    for turn in range(10):
        for i, server in enumerate(servers):
            time.sleep(0.01)  # the threads of the other ones come to rest
            best[i] = min(best[i], server.time(case, seconds))
        if turn >= 2 and min(best[1:]) >= aim * best[0]:
            break
    return best[0], min(best[1:])


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=THREADS, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.05)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve, options.threads)
    part, parts = map(int, options.part.split("/"))
    cases = [(case, 2.0) for case in decoding()]
    if not options.decode:
        cases = [(case, 1.0) for case in sampled(options.count)] + (cases if parts == 1 else [])
    servers = [Server("riffle"), Server("torch"), Server("torch", threads=1)]
    print("| batch x heads (KV heads) | queries x keys | d | dtype | mask | tokens first | riffle.torch, us | torch, us | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case, aim in cases[part - 1 :: parts]:
        ours, theirs = measure(servers, case, aim, options.seconds)
        print(f"| {case['batch']} x {case['heads']} ({case['heads'] // case['groups']}) | {case['queries']} x {case['keys']} | {case['dim']} "
              f"| {case['dtype']} | {case['mask']} | {'yes' if case['tokens_first'] else 'no'} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.2f} |",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

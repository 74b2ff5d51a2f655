#!/usr/bin/env python3
"""riffle.torch.topk beside torch.topk: every length and k, every axis, and what a call costs beyond the work.

    .venv/bin/python bench/torch_topk.py                    tables in Markdown
    .venv/bin/python bench/torch_topk.py --only calls
    .venv/bin/python bench/torch_topk.py --only lengths --rounds 3

Set up with `make python`. Each library runs in a process of its own, so that no thread pool spins into the other's time;
they take turns for each case, and the best of several rounds counts. riffle's answer is checked before it is timed: the
values must be those of a stable sort, bit for bit, and the indices must lead to them.
"""

import argparse
import json
import os
import subprocess
import sys
import time

THREADS = 2
ROWS = (1, 32, 1000)
LENGTHS = (16, 32, 64, 256, 512, 1024, 4096, 16384, 65536, 201088)
AXES = [((1024, 64), 0), ((2048, 512), 0), ((100000, 4), 0), ((8, 4096, 32), 1), ((2000, 2000), 0)]


def cases_of_lengths():
    for dtype in ("float32", "bfloat16"):
        for n in LENGTHS:
            for rows in ROWS:
                if rows * n > 6_500_000:
                    continue
                for k in sorted({1, 8, 64, n // 4, n}):
                    if k <= n and rows * k <= 1_100_000:
                        yield {"shape": (rows, n), "k": k, "dim": -1, "dtype": dtype}


def cases_of_axes():
    for shape, dim in AXES:
        for k in (1, 8, 64, 512):
            if k <= shape[dim]:
                yield {"shape": shape, "k": k, "dim": dim, "dtype": "float32"}


def cases_of_calls():
    """Small calls, where nothing but the call is measured, and the published kernel's shape."""
    for shape, k, dtype in (((1, 16), 2, "float32"), ((1, 64), 4, "float32"), ((32, 201088), 64, "bfloat16")):
        for way in ("into", "eager", "operator", "empty", "eager, then empty", "compiled"):
            yield {"shape": shape, "k": k, "dim": -1, "dtype": dtype, "way": way}


CASES = {"lengths": cases_of_lengths, "axes": cases_of_axes, "calls": cases_of_calls}


def call_of(library, case, x):
    """The call to be timed, or None if the library has no such way."""
    import torch

    k, dim, way = case["k"], case["dim"], case.get("way", "eager")
    if library == "torch":
        ways = {"eager": torch.topk, "operator": torch.ops.aten.topk.default}
    else:
        import riffle.torch

        ways = {"eager": riffle.torch.topk, "operator": torch.ops.riffle.topk.default}
    if way == "into":  # the library's own call with nothing to allocate: the least that a call can take
        if library == "torch":
            return None
        out = riffle.TopK(*riffle.top_k(x, k))
        return lambda: riffle.top_k(x, k, out=out)
    if way == "empty":  # what torch.compile takes to call a function that does almost nothing
        empty, few = torch.compile(lambda x: x + 1, fullgraph=True), x[:1, :1].clone()
        return lambda: empty(few)
    if way == "eager, then empty":  # the least that a compiled call can take, with caches as it finds them
        topk = ways["eager"]
        empty, few = torch.compile(lambda x: x + 1, fullgraph=True), x[:1, :1].clone()
        return lambda: (empty(few), topk(x, k, dim))[1]
    if way == "compiled":
        topk = ways["eager"]
        compiled = torch.compile(lambda x: tuple(topk(x, k, dim)), fullgraph=True)
        return lambda: compiled(x)
    topk = ways[way]
    return lambda: topk(x, k, dim)


def check(case, x, result):
    import torch

    if case.get("way") == "empty":
        return
    values, indices = result
    expected = torch.sort(x, dim=case["dim"], descending=True, stable=True).values.narrow(case["dim"], 0, case["k"])
    assert torch.equal(values, expected), case
    assert torch.equal(x.gather(case["dim"], indices.long()), values), case


def best_time(call, budget):
    """The shortest time in microseconds of as many calls as fit into `budget` seconds, at least three."""
    call()
    best, calls, end = float("inf"), 0, time.perf_counter() + budget
    while calls < 3 or time.perf_counter() < end:
        start = time.perf_counter_ns()
        call()
        best = min(best, time.perf_counter_ns() - start)
        calls += 1
    return best / 1000


def work(library, only, budget):
    """Reads numbers of cases from the standard input, and prints a time for each after checking its answer once."""
    import torch

    torch.set_num_threads(THREADS)
    cases, current, call = list(CASES[only]()), None, None
    for line in sys.stdin:
        if int(line) != current:
            current = int(line)
            case = cases[current]
            generator = torch.Generator().manual_seed(7)
            x = torch.randn(case["shape"], generator=generator).to(getattr(torch, case["dtype"]))
            call = call_of(library, case, x)
            if call is not None and library == "riffle":
                check(case, x, call())
        print(json.dumps(None if call is None else best_time(call, budget)), flush=True)


def measure(only, rounds, budget):
    """The shortest time of each case and library. The libraries take turns, so that both run at the same clock rate."""
    workers = {}
    for library in ("riffle", "torch"):
        command = [sys.executable, "-P", "-W", "ignore", __file__, "--worker", library, "--only", only]
        environment = os.environ | {"RIFFLE_NUM_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)}
        workers[library] = subprocess.Popen(
            [*command, "--budget", str(budget)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    best = {library: [] for library in workers}
    for number, _ in enumerate(CASES[only]()):
        times = {library: [] for library in workers}
        for _ in range(rounds):
            for library, worker in workers.items():
                worker.stdin.write(f"{number}\n")
                worker.stdin.flush()
                answer = worker.stdout.readline()
                if not answer:
                    sys.exit(f"{library}: no answer to case {number}")
                times[library].append(json.loads(answer))
                time.sleep(0.005)  # until the threads of the library have stopped spinning
        for library, list_of in times.items():
            best[library].append(None if list_of[0] is None else min(list_of))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return best


def shape_name(case):
    shape = " x ".join(map(str, case["shape"]))
    return shape if case["dim"] == -1 else f"{shape}, axis {case['dim']}"


def print_ratios(only, best):
    """A table with a line for each shape and a column for each k: riffle's microseconds, and how many times as fast it is."""
    lines = {}
    for case, ours, theirs in zip(CASES[only](), best["riffle"], best["torch"]):
        key = (case["dtype"], shape_name(case))
        lines.setdefault(key, []).append(f"{case['k']}: {ours:.4g} us, {theirs / ours:.2f} x")
    print("| dtype | shape | k: riffle.torch.topk, times faster than torch.topk |\n|---|---|---|")
    for (dtype, shape), cells in lines.items():
        print(f"| {dtype} | {shape} | {'; '.join(cells)} |")
    ratios = [
        (theirs / ours, shape_name(case), case["k"], case["dtype"])
        for case, ours, theirs in zip(CASES[only](), best["riffle"], best["torch"])
    ]
    for name, chosen in (
        ("n >= 1024", [r for r, c in zip(ratios, CASES[only]()) if c["shape"][c["dim"]] >= 1024]),
        ("n < 1024", [r for r, c in zip(ratios, CASES[only]()) if c["shape"][c["dim"]] < 1024]),
    ):
        if chosen:
            least = ", ".join(f"{ratio:.2f} ({shape}, k = {k}, {dtype})" for ratio, shape, k, dtype in sorted(chosen)[:3])
            print(f"\n{name}: the three least gains of {len(chosen)}: {least}")


def print_calls(best):
    print("| shape, k, dtype | way | riffle | torch |\n|---|---|---|---|")
    for case, ours, theirs in zip(CASES["calls"](), best["riffle"], best["torch"]):
        other = "-" if theirs is None else f"{theirs:.4g} us"
        print(f"| {shape_name(case)}, {case['k']}, {case['dtype']} | {case['way']} | {ours:.4g} us | {other} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--budget", type=float, default=0.004, help="seconds for a case in a round")
    parser.add_argument("--worker", choices=("riffle", "torch"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.only, arguments.budget)
        return
    for only in [arguments.only] if arguments.only else CASES:
        best = measure(only, arguments.rounds, arguments.budget)
        print(f"\n{only}, {THREADS} threads, the best of {arguments.rounds} rounds\n")
        print_calls(best) if only == "calls" else print_ratios(only, best)


if __name__ == "__main__":
    main()

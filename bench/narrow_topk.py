#!/usr/bin/env python3
"""Rows of few columns: riffle.torch.topk beside torch.topk, riffle.jax.top_k beside jax.lax.top_k.

    .venv/bin/python bench/narrow_topk.py                        every case of both, the worst ratios
    .venv/bin/python bench/narrow_topk.py --only jax --rows 1 32 --dtypes float32

Set up with `make python`. Each library runs in a process of its own and they take turns, case by case; the best of several rounds
counts, of more rounds where the aim seems to be missed: the clock changes by half from second to second. riffle's answers are
checked before they are timed: values against a stable sort, bit for bit, indices by what they lead to.
A ratio is riffle's time over the other's: the aim is below 1 from 1024 columns on, and at most 1.2 for fewer.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time

from torch_topk import best_time

THREADS = 2
LENGTHS = (8, 16, 32, 64, 128, 256, 512, 1024, 4096)
LIBRARIES = {"torch": ("riffle.torch", "torch"), "jax": ("riffle.jax", "jax")}


def cases_of(only, options):
    for dtype, rows, n in itertools.product(options.dtypes, options.rows, options.lengths):
        for k in sorted({1, 2, 4, 8, 16, n // 4, n // 2, n}):
            if k <= n and rows * n <= 1 << 22 and rows * k <= 1 << 21:
                for largest in (True, False) if only == "torch" and not options.largest else (True,):
                    yield {"rows": rows, "n": n, "k": k, "dtype": dtype, "largest": largest}


def numbers(case):
    import torch

    generator = torch.Generator().manual_seed(7)
    return torch.randn((case["rows"], case["n"]), generator=generator).to(getattr(torch, case["dtype"]))


def torch_call(library, case):
    import torch

    torch.set_num_threads(THREADS)
    topk = torch.topk
    if library != "torch":
        import riffle.torch

        topk = riffle.torch.topk
    x, k, largest = numbers(case), case["k"], case["largest"]
    return lambda: topk(x, k, -1, largest)


def jax_call(library, case):
    import jax
    import jax.numpy as jnp

    top_k = jax.lax.top_k
    if library != "jax":
        import riffle.jax

        top_k = riffle.jax.top_k
    x = jnp.asarray(numbers(case).float().numpy(), dtype=case["dtype"]).block_until_ready()
    compiled = jax.jit(lambda x: top_k(x, case["k"]))
    return lambda: jax.block_until_ready(compiled(x))


def check(only, case, result):
    import numpy as np
    import torch

    if only == "jax":
        result = [torch.from_numpy(np.array(part, dtype=kind)) for part, kind in zip(result, (np.float32, np.int64))]
    values, indices = result
    x = numbers(case)
    expected = torch.sort(x, descending=case["largest"], stable=True).values[:, : case["k"]]
    assert torch.equal(values, expected.to(values.dtype)), case
    assert torch.equal(x.gather(1, indices), expected), case


def work(only, library, options):
    """Reads numbers of cases from the standard input, and prints a time in microseconds for each."""
    cases, current, call = list(cases_of(only, options)), None, None
    for line in sys.stdin:
        if int(line) != current:
            current = int(line)
            call = (torch_call if only == "torch" else jax_call)(library, cases[current])
            if library.startswith("riffle"):
                check(only, cases[current], call())
        print(json.dumps(best_time(call, options.budget)), flush=True)


def measure(only, options):
    """The shortest time of each case, for riffle and for the other library."""
    workers = []
    for library in LIBRARIES[only]:
        command = [sys.executable, "-P", "-W", "ignore", __file__, *sys.argv[1:], "--worker", only, library]
        environment = os.environ | {"RIFFLE_NUM_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)}
        environment["PYTHONPATH"] = os.path.dirname(os.path.abspath(__file__))
        workers.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for number, case in enumerate(cases_of(only, options)):
        times = ([], [])
        for turn in range(options.rounds * 6):
            if turn >= options.rounds and min(times[0]) <= min(times[1]) * (1.0 if case["n"] >= 1024 else 1.2):
                break
            for worker, list_of in zip(workers, times):
                worker.stdin.write(f"{number}\n")
                worker.stdin.flush()
                list_of.append(json.loads(worker.stdout.readline()))
                time.sleep(0.002)  # until its threads have stopped spinning
        yield case, *map(min, times)
    for worker in workers:
        worker.stdin.close()
        worker.wait()


def report(only, results, worst):
    ours, theirs = LIBRARIES[only]
    for title, limit, chosen in (
        ("n >= 1024", 1.0, [r for r in results if r[0]["n"] >= 1024]),
        ("n < 1024", 1.2, [r for r in results if r[0]["n"] < 1024]),
    ):
        if not chosen:
            continue
        above = sum(mine / other > limit for _, mine, other in chosen)
        print(f"\n{ours} and {theirs}, {title}: {above} of {len(chosen)} cases take more than {limit} times as long\n")
        print(f"| rows x columns | k | dtype | {ours} | {theirs} | ratio |\n|---|---|---|---|---|---|")
        for case, mine, other in sorted(chosen, key=lambda r: -r[1] / r[2])[:worst]:
            order = "" if case["largest"] else ", smallest"
            shape = f"{case['rows']} x {case['n']} | {case['k']}{order} | {case['dtype']}"
            print(f"| {shape} | {mine:.4g} us | {other:.4g} us | {mine / other:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=LIBRARIES)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 1024, 65536])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--largest", action="store_true", help="leave the smallest away")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.002, help="seconds for a case in a round")
    parser.add_argument("--worst", type=int, default=12, help="lines of a table")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], options.worker[1], options)
        return
    for only in [options.only] if options.only else LIBRARIES:
        report(only, list(measure(only, options)), options.worst)


if __name__ == "__main__":
    main()

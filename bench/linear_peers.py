#!/usr/bin/env python3
"""riffle.linear_top_k beside PyTorch's linear followed by topk, on the same data with the same threads.

    .venv/bin/python bench/linear_peers.py             a table in Markdown
    .venv/bin/python bench/linear_peers.py --rows 1,8

Set up with `scripts/venv.sh` and `make python`. bfloat16 x [rows, 2880] times the weights [201088, 2880] of an LM head,
k = 64. Each peer runs in a process of its own, so that no thread pool spins into another's time; the median of its calls
is printed. The answer is held against float64 before a peer is timed: riffle's values must be the 64 largest sums, up to
the rounding of float32 sums; PyTorch's logits are rounded to bfloat16, so its tokens must be within that of the largest.
Needs 3 GB of memory and nothing else running.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

VOCAB, D, K = 201088, 2880, 64
PEERS = ("riffle", "torch")


def make_data(rows):
    """x and weight as uint16, the bits of bfloat16: draws from a table of normal numbers."""
    import ml_dtypes
    import numpy as np

    rng = np.random.default_rng(7)
    table = rng.standard_normal(1 << 16, dtype=np.float32)
    weights = (table * 0.02).astype(ml_dtypes.bfloat16).view(np.uint16)
    weight = np.empty((VOCAB, D), np.uint16)
    for begin in range(0, VOCAB, 4096):
        part = weight[begin : begin + 4096]
        part[:] = weights[rng.integers(0, 1 << 16, part.shape, dtype=np.uint16)]
    x = table.astype(ml_dtypes.bfloat16).view(np.uint16)[rng.integers(0, 1 << 16, (rows, D), dtype=np.uint16)]
    return x, weight


def exact_logits(x, weight):
    """The logits of one row in float64, in which products of bfloat16 are exact."""
    import ml_dtypes
    import numpy as np

    row = x.view(ml_dtypes.bfloat16).astype(np.float64)
    return np.concatenate([weight[i : i + 4096].view(ml_dtypes.bfloat16).astype(np.float64) @ row
                           for i in range(0, VOCAB, 4096)])


def check(peer, x, weight, values, indices):
    """Checks the first and the last row against float64."""
    import numpy as np

    for row in {0, len(x) - 1}:
        logits = exact_logits(x[row], weight)
        best = -np.partition(-logits, K - 1)[:K]
        best[::-1].sort()
        tolerance = 1e-4 if peer == "riffle" else 2.0**-7 * abs(best[0])
        assert len(set(indices[row].tolist())) == K, f"{peer}: row {row} has a token twice"
        assert np.abs(values[row] - logits[indices[row]]).max() <= tolerance, f"{peer}: row {row}: wrong values"
        assert np.abs(values[row] - best).max() <= tolerance, f"{peer}: row {row}: not the largest"


def worker(peer, rows, threads, seconds):
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    x, weight = make_data(rows)
    tx, tw = (torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) for a in (x, weight))
    if peer == "riffle":
        import riffle

        riffle.set_num_threads(threads)
        call = lambda: riffle.linear_top_k(tx, tw, K)
    else:
        call = lambda: torch.topk(torch.nn.functional.linear(tx, tw), K)

    values, indices = (a.float().numpy() if a.is_floating_point() else a.numpy() for a in call())
    check(peer, x, weight, values, indices)
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    print(json.dumps(times))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: [int(r) for r in text.split(",")], default=[1, 8, 32, 256])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=2.0, help="time measured in each process")
    parser.add_argument("--worker", nargs=2, metavar=("PEER", "ROWS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        peer, rows = arguments.worker
        return worker(peer, int(rows), arguments.threads, arguments.seconds)
    print("| rows | " + " | ".join(PEERS) + " | ratio |\n|---:|" + "---:|" * (len(PEERS) + 1))
    for rows in arguments.rows:
        medians = []
        for peer in PEERS:
            command = [sys.executable, __file__, "--worker", peer, str(rows), "--threads", str(arguments.threads),
                       "--seconds", str(arguments.seconds)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            medians.append(statistics.median(json.loads(done.stdout)))
        print(f"| {rows} | " + " | ".join(f"{1e3 * m:.1f} ms" for m in medians) + f" | {medians[1] / medians[0]:.2f} |",
              flush=True)


if __name__ == "__main__":
    main()

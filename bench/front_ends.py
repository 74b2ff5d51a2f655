#!/usr/bin/env python3
"""The same calls through each front end: C++, NumPy, PyTorch (eager, operator, compiled) and JAX.

    scripts/build.sh release --target bench_front_ends
    .venv/bin/python bench/front_ends.py                       a table in Markdown
    .venv/bin/python bench/front_ends.py --only sample --rounds 5

What a front end adds to the library's own time is seen in a line. Each runs in a process of its own, so that no thread pool
spins into the other's time; they take turns, round by round, and the least of the rounds' medians counts. All get the same
arrays. NumPy's answer is checked against NumPy's own sort, product and softmax first, and every other front end's must have
its bits, before anything is timed.

Results are new arrays in every column but C++'s, which writes into the same ones again. The calls under JAX are XLA custom
calls under jax.jit where riffle.jax has one; sample, linear_top_k and the page pool take JAX's arrays as riffle.* does.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build" / "release" / "bench" / "bench_front_ends"
THREADS = 2
FRONT_ENDS = {
    "cpp": "C++", "numpy": "NumPy", "eager": "torch eager", "operator": "torch operator", "compiled": "torch.compile",
    "jax": "JAX",
}  # fmt: skip

# name: (call, dtype, numbers). arrays_of and the functions below unpack the numbers and name them.
CASES = {
    "top_k, 32 x 201088, k 64": ("top_k", "bfloat16", (32, 201088, 64)),
    "top_k, 1 x 4096, k 64": ("top_k", "float32", (1, 4096, 64)),
    "top_k_per_row, 16 x 32768, k 1024": ("top_k_per_row", "float32", (16, 32768, 1024)),
    "sample, 16 x 262144, top-k 64, top-p 0.95": ("sample", "float32", (16, 262144, 64, 0)),
    "sample, 16 x 262144, top-k 64, top-p 0.95 ": ("sample", "bfloat16", (16, 262144, 64, 0)),
    "sample, 16 x 262144, greedy": ("sample", "float32", (16, 262144, 0, 1)),
    "linear_top_k, 4 x 640 on 65536, k 64": ("linear_top_k", "bfloat16", (4, 640, 65536, 64)),
    "paged_attention, 4 x 1 query, 1024 keys, 32 heads on 8, 128": (
        "paged_attention", "bfloat16", (4, 32, 128, 256, 8, 16),
    ),
    "KvCache.write, 16 tokens, 8 heads, 128": ("kv_write", "bfloat16", (16, 8, 128, 4, 16)),
}  # fmt: skip


def dtype_of(name):
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def arrays_of(call, dtype, numbers):
    """The arrays of a case, the same in every process. They have the case's dtype, or int32."""
    rng = np.random.default_rng(7)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32).astype(dtype_of(dtype))

    if call in ("top_k", "sample"):
        return {"x": normal(*numbers[:2])}
    if call == "top_k_per_row":
        rows, n, _ = numbers
        return {"x": normal(rows, n), "starts": np.zeros(rows, np.int32), "ends": np.full(rows, n, np.int32)}
    if call == "linear_top_k":
        rows, d, vocab, _ = numbers
        return {"x": normal(rows, d), "weight": normal(vocab, d)}
    if call == "kv_write":
        tokens, heads, d, *_ = numbers
        return {"keys": normal(tokens, heads, d), "values": normal(tokens, heads, d)}
    tokens, heads, d, pages, kv_heads, size = numbers
    table = rng.permutation(pages).astype(np.int32).reshape(tokens, pages // tokens)
    return {
        "q": normal(tokens, heads, d), "keys": normal(pages, kv_heads, size, d), "values": normal(pages, kv_heads, size, d),
        "kv_lens": np.full(tokens, table.shape[1] * size, np.int32), "page_table": table,
    }  # fmt: skip


def sampling(numbers) -> dict[str, Any]:
    _, _, top_k, greedy = numbers
    return dict(temperature=0.0, seed=1) if greedy else dict(top_k=top_k, top_p=0.95, seed=1)


def make_cache(dtype, numbers):
    import riffle

    tokens, heads, d, pages, size = numbers
    cache = riffle.KvCache(layers=1, kv_heads=heads, head_dim=d, pages=pages, page_size=size, dtype=dtype)
    sequence = cache.create()
    cache.extend(sequence, tokens)
    return cache, sequence


def riffle_call(call, dtype, numbers, a):
    """riffle's own functions on the arrays of any framework: (the call without arguments, the function that returns its answer)."""
    import riffle

    if call == "kv_write":
        cache, sequence = make_cache(dtype, numbers)
        written = numbers[0] // numbers[4]
        shape = numbers[1], numbers[0], numbers[2]  # its first pages, in order
        pages = [np.asarray(p)[:written].reshape(shape) for p in (cache.keys(0), cache.values(0))]
        return lambda: (cache.write(0, sequence, 0, a["keys"], a["values"]), pages)[1]
    return {
        "top_k": lambda: riffle.top_k(a["x"], numbers[2]),
        "top_k_per_row": lambda: (riffle.top_k_per_row(a["x"], a["starts"], a["ends"], numbers[2]),),
        "sample": lambda: (riffle.sample(a["x"], **sampling(numbers)),),
        "linear_top_k": lambda: riffle.linear_top_k(a["x"], a["weight"], numbers[3]),
        "paged_attention": lambda: (riffle.paged_attention(*a.values()),),
    }[call]


def torch_call(front_end, call, dtype, numbers, a):
    """riffle.torch's functions; None where there is none."""
    import riffle.torch
    import torch

    if call == "kv_write":
        return riffle_call(call, dtype, numbers, a) if front_end == "eager" else None
    if front_end == "operator":
        return operator_call(call, numbers, a)
    if call == "top_k_per_row":
        rows, n, k = numbers

        def per_row(x, starts, ends):
            indices = torch.empty((rows, k), dtype=torch.int32)
            riffle.torch.top_k_per_row_prefill(x, starts, ends, indices, rows, n, 1, k)
            return (indices,)

    functions = {
        "top_k": lambda x: tuple(riffle.torch.topk(x, numbers[2])),
        "top_k_per_row": lambda *arrays: per_row(*arrays),
        "sample": lambda x: (riffle.torch.sample(x, **sampling(numbers)),),
        "linear_top_k": lambda x, weight: tuple(riffle.torch.linear_top_k(x, weight, numbers[3])),
        "paged_attention": lambda *arrays: (riffle.torch.paged_attention(*arrays),),
    }
    function, tensors = functions[call], tuple(a.values())
    if front_end == "compiled":
        function = torch.compile(function, fullgraph=True)
    return lambda: function(*tensors)


def operator_call(call, numbers, a):
    """torch.ops.riffle's operators, on parameters that are tensors already."""
    import torch

    ops = torch.ops.riffle
    if call == "sample":
        options = sampling(numbers)
        parameters = (
            torch.tensor([options.get("temperature", 1.0)]), torch.tensor([options.get("top_k", 0)]),
            torch.tensor([options.get("top_p", 1.0)]), torch.tensor([0.0]),
        )  # fmt: skip
        return lambda: ops.sample(a["x"], *parameters, 1, None, None, False)[:1]
    if call == "top_k_per_row":
        rows, n, k = numbers

        def per_row():
            indices = torch.empty((rows, k), dtype=torch.int32)
            ops.top_k_per_row_prefill(a["x"], a["starts"], a["ends"], indices, rows, n, 1, k)
            return (indices,)

        return per_row
    return {
        "top_k": lambda: ops.topk(a["x"], numbers[2]),
        "linear_top_k": lambda: ops.linear_top_k(a["x"], a["weight"], numbers[3]),
        "paged_attention": lambda: ops.paged_attention(*a.values())[:1],
    }[call]


def jax_call(call, dtype, numbers, a):
    import jax
    import riffle.jax

    if call in ("sample", "linear_top_k", "kv_write"):
        return riffle_call(call, dtype, numbers, a)
    functions = {
        "top_k": lambda x: riffle.jax.top_k(x, numbers[2]),
        "top_k_per_row": lambda x, starts, ends: (riffle.jax.top_k_per_row(x, starts, ends, numbers[2]),),
        "paged_attention": lambda q, keys, values, lens, table: (
            riffle.jax.paged_attention(q, keys, values, lens, table, sm_scale=q.shape[-1] ** -0.5),
        ),
    }
    if call == "paged_attention":  # in riffle.torch's layout, with the heads first
        a = dict(a, keys=jax.numpy.moveaxis(a["keys"], 1, 0), values=jax.numpy.moveaxis(a["values"], 1, 0))
    function, arrays = jax.jit(functions[call]), tuple(a.values())
    return lambda: jax.block_until_ready(function(*arrays))


def call_of(front_end, call, dtype, numbers):
    """The call to be timed, or None if the front end has none."""
    arrays = arrays_of(call, dtype, numbers)
    if front_end == "numpy":
        return riffle_call(call, dtype, numbers, arrays)
    if front_end == "jax":
        import jax

        return jax_call(call, dtype, numbers, {name: jax.numpy.asarray(x) for name, x in arrays.items()})
    import torch

    def tensor(x):
        half = x.dtype.itemsize == 2
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if half else torch.from_numpy(x)

    return torch_call(front_end, call, dtype, numbers, {name: tensor(x) for name, x in arrays.items()})


def bits(x):
    """A result as NumPy's unsigned integers of the same bits; int64 indices become int32."""
    if type(x).__module__ == "torch":
        x = x.view(torch_int16()).numpy() if x.element_size() == 2 else x.numpy()
    x = np.ascontiguousarray(np.asarray(x))
    x = x.astype(np.int32) if x.dtype == np.int64 else x
    return x.view(f"u{x.dtype.itemsize}")


def torch_int16():
    import torch

    return torch.int16


def check_reference(call, dtype, numbers, results):
    """Checks riffle's answer on NumPy's arrays against NumPy's own in float32 and float64."""
    a: dict[str, Any] = {name: x.astype(np.float32) if x.dtype != np.int32 else x for name, x in arrays_of(call, dtype, numbers).items()}
    results = [np.asarray(x) for x in results]
    if call in ("top_k", "top_k_per_row"):
        order = np.argsort(-a["x"], axis=1, kind="stable")[:, : numbers[2]]
        assert np.array_equal(results[-1], order), call
    elif call == "sample":
        rank = (a["x"] > np.take_along_axis(a["x"], results[0][:, None], 1)).sum(1)
        assert (rank < (1 if numbers[3] else numbers[2])).all(), call
    elif call == "linear_top_k":
        product = a["x"].astype(np.float64) @ a["weight"].T.astype(np.float64)
        best = -np.sort(-product, axis=1)[:, : numbers[3]]
        assert np.allclose(results[0], best, rtol=1e-3, atol=1e-3), call
        assert np.allclose(np.take_along_axis(product, results[1], 1), best, rtol=1e-3, atol=1e-3), call
    elif call == "kv_write":
        for made, given in zip(results, a.values(), strict=True):
            assert np.array_equal(made.astype(np.float32), np.moveaxis(given, 1, 0)), call
    else:
        for token, pages in enumerate(a["page_table"]):
            keys, values = (a[name][pages].swapaxes(0, 1).reshape(8, -1, 128).repeat(4, 0) for name in ("keys", "values"))
            logits = np.einsum("hd,hnd->hn", a["q"][token], keys) / np.sqrt(128)
            weights = np.exp(logits - logits.max(1, keepdims=True))
            expected = np.einsum("hn,hnd->hd", weights / weights.sum(1, keepdims=True), values)
            assert np.allclose(results[0][token].astype(np.float32), expected, rtol=2e-2, atol=2e-2), call


def median_time(call, seconds):
    """The median time of the call in microseconds."""
    for _ in range(3):
        call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def work(front_end, directory, seconds):
    """Reads names of cases from the standard input, and prints a time for each after checking its answer once."""
    calls = {}
    for line in sys.stdin:
        name = json.loads(line)
        if name not in calls:
            calls[name] = checked_call(front_end, name, directory)
        print(json.dumps(None if calls[name] is None else median_time(calls[name], seconds)), flush=True)


def checked_call(front_end, name, directory):
    call = call_of(front_end, *CASES[name])
    if call is None:
        return None
    results = [bits(x) for x in call()]
    if front_end == "numpy":
        of_call, dtype, numbers = CASES[name]
        check_reference(of_call, dtype, numbers, call())
        np.savez(file_of(directory, name), *results)
    check_bits(directory, name, results)
    return call


def file_of(directory, name):
    return pathlib.Path(directory) / f"{list(CASES).index(name)}.npz"


def check_bits(directory, name, results):
    with np.load(file_of(directory, name)) as expected:
        for i, made in enumerate(results):
            if not np.array_equal(made.reshape(-1), expected[f"arr_{i}"].reshape(-1)):
                sys.exit(f"{name}: result {i} is not NumPy's")


class Cpp:
    """Runs the program of bench/front_ends.cc, once for each case that is asked for."""

    def __init__(self, directory, seconds):
        self.directory, self.seconds = pathlib.Path(directory), seconds

    def ask(self, name):
        call, dtype, numbers = CASES[name]
        place = self.directory / f"cpp{list(CASES).index(name)}"
        if not place.exists():
            place.mkdir()
            for array, x in arrays_of(call, dtype, numbers).items():
                (place / array).write_bytes(x.tobytes())
        command = [PROGRAM, call, dtype, place, str(self.seconds), *map(str, numbers)]
        environment = os.environ | {"RIFFLE_NUM_THREADS": str(THREADS)}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        with np.load(file_of(self.directory, name)) as expected:
            made = [np.frombuffer((place / f"out{i}").read_bytes(), expected[f"arr_{i}"].dtype) for i in range(len(expected))]
        check_bits(self.directory, name, made)
        return float(done.stdout)


class Worker:
    """A process of one of Python's front ends."""

    def __init__(self, front_end, directory, seconds):
        command = [sys.executable, "-P", "-W", "ignore", __file__, "--worker", front_end, directory, "--seconds", str(seconds)]
        environment = os.environ | {"RIFFLE_NUM_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)}
        self.process: Any = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, name):
        self.process.stdin.write(json.dumps(name) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"no answer to {name}")
        return json.loads(answer)


def measure(names, front_ends, rounds, seconds):
    """{case: {front end: microseconds or None}}."""
    best = {name: {} for name in names}
    with tempfile.TemporaryDirectory() as directory:
        workers = {}
        for front_end in front_ends:
            make = Cpp if front_end == "cpp" else lambda *options, front_end=front_end: Worker(front_end, *options)
            workers[front_end] = make(directory, seconds)
        order = sorted(front_ends, key=lambda f: f != "numpy")  # its answer is what the others are compared with
        for name in names:
            times = {front_end: [] for front_end in front_ends}
            for _ in range(rounds):
                for front_end in order:
                    times[front_end].append(workers[front_end].ask(name))
                    time.sleep(0.005)  # until its threads have stopped spinning
            for front_end, several in times.items():
                best[name][front_end] = None if several[0] is None else min(several)
        for worker in workers.values():
            if isinstance(worker, Worker):
                worker.process.stdin.close()
                worker.process.wait()
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains TEXT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.1, help="for a case in a round")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        front_end, directory = arguments.worker
        work(front_end, directory, arguments.seconds)
        return
    if not PROGRAM.exists():
        sys.exit(f"{PROGRAM} is not there: scripts/build.sh release --target bench_front_ends")
    names = [name for name in CASES if arguments.only in name]
    best = measure(names, FRONT_ENDS, arguments.rounds, arguments.seconds)
    print(f"| case | dtype | {' | '.join(FRONT_ENDS.values())} |\n|---|---|{'---|' * len(FRONT_ENDS)}")
    for name, times in best.items():
        cells = ["-" if times[f] is None else f"{times[f]:.4g} us" for f in FRONT_ENDS]
        print(f"| {name.strip()} | {CASES[name][1]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Riffle beside the other ways to find the k best on a CPU, on the same data with the same threads.

    .venv/bin/python bench/peers.py                     a table in Markdown
    .venv/bin/python bench/peers.py --plot docs/peers.svg --json peers.json
    .venv/bin/python bench/peers.py --only per-row-32 --peers riffle,faiss

Set up with `make python` and `scripts/venv.sh bench`. Each peer runs in a process of its own, so that
no thread pool spins into another's time, and in several rounds, so that a slow minute of the machine
meets all of them; the median of all its calls is printed. An answer is held against NumPy's stable sort
before a peer is timed: the values must be the k largest in order. Equal values may come in any order,
as only riffle and JAX promise more; riffle's indices must be exact.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time

CASES = {
    # name: rows, columns, k, dtype, distribution
    "rows32-f32": (32, 201088, 64, "float32", "normal"),
    "rows32-bf16": (32, 201088, 64, "bfloat16", "normal"),
    "ascending-f32": (32, 201088, 64, "float32", "ascending"),
    "ascending-bf16": (32, 201088, 64, "bfloat16", "ascending"),
    "per-row-32": (32, 129280, 1024, "float32", "normal"),
    "per-row-1": (1, 129280, 1024, "float32", "normal"),
}


def make_data(case):
    import ml_dtypes
    import numpy as np

    rows, columns, _, dtype, distribution = CASES[case]
    x = np.random.default_rng(7).standard_normal((rows, columns), dtype=np.float32)
    if distribution == "ascending":
        x.sort(axis=1)
    return x.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else x


# One function a peer: given the matrix and k, it returns the call to be timed, without the copies and
# conversions that come before, and a function that turns the call's result into NumPy indices.
# None means that the peer does not take this dtype.


def peer_riffle(x, k, case):
    import numpy as np
    import riffle

    if case.startswith("per-row"):
        starts = np.zeros(x.shape[0], np.int32)
        ends = np.full(x.shape[0], x.shape[1], np.int32)
        out = np.empty((x.shape[0], k), np.int32)
        return lambda: riffle.top_k_per_row(x, starts, ends, k, out=out), np.asarray
    return lambda: riffle.top_k(x, k), lambda result: np.asarray(result.indices)


def peer_torch(x, k, case):
    import numpy as np
    import torch

    torch.set_num_threads(THREADS)
    t = torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16) if x.dtype != np.float32 else torch.from_numpy(x)
    return lambda: torch.topk(t, k, dim=-1), lambda result: result.indices.numpy()


def peer_jax(x, k, case):
    import jax
    import numpy as np

    operand = jax.numpy.asarray(x)
    top_k = jax.jit(lambda operand: jax.lax.top_k(operand, k))
    return lambda: jax.block_until_ready(top_k(operand)), lambda result: np.asarray(result[1])


def peer_onnxruntime(x, k, case):
    import numpy as np
    import onnxruntime

    if x.dtype != np.float32:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(topk_model(k), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("values")
    binding.bind_output("indices")
    return lambda: session.run_with_iobinding(binding), lambda _: binding.copy_outputs_to_cpu()[1]


def peer_faiss(x, k, case):
    import faiss
    import numpy as np

    if x.dtype != np.float32:
        return None
    faiss.omp_set_num_threads(THREADS)
    rows, columns = x.shape
    values = np.empty((rows, k), np.float32)
    indices = np.empty((rows, k), np.int64)
    heaps = faiss.float_minheap_array_t()
    heaps.k, heaps.nh = k, rows
    heaps.val, heaps.ids = faiss.swig_ptr(values), faiss.swig_ptr(indices)

    def call():
        heaps.heapify()
        heaps.addn(columns, faiss.swig_ptr(x))
        heaps.reorder()
        return values, indices  # named here, they live as long as the heaps that point to them

    return call, lambda result: result[1]


def peer_numpy(x, k, case):
    import numpy as np

    if x.dtype != np.float32:
        return None

    def call():
        best = np.argpartition(x, x.shape[1] - k, axis=1)[:, -k:]
        values = np.take_along_axis(x, best, axis=1)
        return np.take_along_axis(best, np.argsort(-values, axis=1, kind="stable"), axis=1)

    return call, np.asarray


PEERS = {
    "riffle": peer_riffle,
    "torch": peer_torch,
    "jax": peer_jax,
    "onnxruntime": peer_onnxruntime,
    "faiss": peer_faiss,
    "numpy": peer_numpy,
}
THREADS = 2


def topk_model(k):
    """An ONNX model of one TopK node, in the wire format of protocol buffers, so that the `onnx` package
    is not needed. Field numbers: onnx.proto3 (ModelProto, GraphProto, NodeProto, TensorProto)."""

    def varint(value):
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes(out) + bytes([value])

    def number(field, value):
        return varint(field << 3) + varint(value)

    def block(field, content):
        content = content.encode() if isinstance(content, str) else content
        return varint(field << 3 | 2) + varint(len(content)) + content

    def tensor(name, element_type, dimensions):
        shape = b"".join(block(1, block(2, d) if isinstance(d, str) else number(1, d)) for d in dimensions)
        return block(1, name) + block(2, block(1, number(1, element_type) + block(2, shape)))

    float32, int64 = 1, 7
    node = block(1, "x") + block(1, "k") + block(2, "values") + block(2, "indices") + block(4, "TopK")
    initial_k = number(1, 1) + number(2, int64) + block(8, "k") + block(9, k.to_bytes(8, "little"))
    graph = block(1, node) + block(2, "topk") + block(5, initial_k)
    graph += block(11, tensor("x", float32, ["rows", "columns"]))
    graph += block(12, tensor("values", float32, ["rows", k])) + block(12, tensor("indices", int64, ["rows", k]))
    return number(1, 8) + block(7, graph) + block(8, block(1, "") + number(2, 17))


def check(x, k, indices, exact):
    import numpy as np

    wide = x.astype(np.float32)
    expected = np.argsort(-wide, axis=1, kind="stable")[:, :k]
    got = np.take_along_axis(wide, indices.astype(np.int64), axis=1)
    if not np.array_equal(got, np.take_along_axis(wide, expected, axis=1)):
        raise AssertionError("the values are not the k largest in order")
    if any(len(set(row)) != k for row in indices.tolist()):
        raise AssertionError("an index comes twice")
    if exact and not np.array_equal(indices, expected):
        raise AssertionError("equal values are not in the order of their indices")


def worker(peer, case, seconds):
    """Checks and times one peer on one case; prints {"times": [...]} or {"error": ...}."""
    x = make_data(case)
    k = CASES[case][2]
    try:
        made = PEERS[peer](x, k, case)
    except ImportError as error:
        return {"error": f"not installed: {error}"}
    if made is None:
        return {"error": "no " + CASES[case][3]}
    call, to_indices = made
    check(x, k, to_indices(call()), exact=peer == "riffle")
    times = []
    for _ in range(3):
        call()
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return {"times": times, "version": importlib.import_module(peer).__version__}


def run_worker(peer, case, arguments):
    environment = dict(os.environ, OMP_NUM_THREADS=str(arguments.threads), RIFFLE_NUM_THREADS=str(arguments.threads))
    done = subprocess.run(
        [sys.executable, "-P", __file__, "--worker", peer, case, "--seconds", str(arguments.seconds), "--threads", str(arguments.threads)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def measure(arguments):
    results = {}
    for case in arguments.cases:
        for round_number in range(arguments.rounds):
            for peer in arguments.peers:
                if sys.stderr.isatty():
                    print(f"\r\x1b[K{case}: round {round_number + 1} of {arguments.rounds}, {peer}", end="", file=sys.stderr)
                place = results.setdefault(case, {}).setdefault(peer, {"times": []})
                if "error" in place:
                    continue
                result = run_worker(peer, case, arguments)
                if "error" in result:
                    place["error"] = result["error"]
                else:
                    place["times"] += result["times"]
                    place["version"] = result["version"]
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    for by_peer in results.values():
        for place in by_peer.values():
            times = place.pop("times")
            if times and "error" not in place:
                place.update(median=statistics.median(times), min=min(times), calls=len(times))
    return results


def milliseconds(place):
    return f"{place['median'] * 1e3:.3g} ms" if "median" in place else f"- ({place.get('error', '?')})"


def markdown(results, arguments):
    lines = [f"{platform.machine()}, {cpu_name()}, {arguments.threads} threads; medians.", ""]
    lines.append("| case | rows x columns, k, dtype | " + " | ".join(arguments.peers) + " | riffle over the best other |")
    lines.append("|---|---|" + "---|" * (len(arguments.peers) + 1))
    for case, by_peer in results.items():
        rows, columns, k, dtype, _ = CASES[case]
        others = {peer: place["median"] for peer, place in by_peer.items() if peer != "riffle" and "median" in place}
        best = min(others, key=others.get, default=None)
        gain = "-"
        if best is not None and "median" in by_peer.get("riffle", {}):
            gain = f"{others[best] / by_peer['riffle']['median']:.1f} x ({best})"
        cells = [milliseconds(by_peer[peer]) for peer in arguments.peers]
        lines.append(f"| {case} | {rows} x {columns}, {k}, {dtype} | " + " | ".join(cells) + f" | {gain} |")
    versions = {peer: place["version"] for by_peer in results.values() for peer, place in by_peer.items() if "version" in place}
    lines += ["", "Versions: " + ", ".join(f"{peer} {version}" for peer, version in versions.items()) + "."]
    return "\n".join(lines)


def cpu_name():
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown CPU"


def plot(results, arguments):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(3.2 * len(results), 3.4), squeeze=False)
    for axis, (case, by_peer) in zip(axes[0], results.items()):
        shown = [(peer, place["median"] * 1e3) for peer, place in by_peer.items() if "median" in place]
        names, times = zip(*shown) if shown else ((), ())
        bars = axis.barh(names, times, color=["#b8860b" if name == "riffle" else "#9aa5b1" for name in names])
        axis.bar_label(bars, [f" {t:.3g}" for t in times], fontsize=8)
        axis.set_xscale("log")
        axis.margins(x=0.25)
        axis.invert_yaxis()
        axis.set_title(case, fontsize=10)
        axis.set_xlabel("ms, log scale", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"k best of each row, {arguments.threads} threads, {cpu_name()}", fontsize=10)
    figure.tight_layout()
    figure.savefig(arguments.plot, metadata={"Date": None} if arguments.plot.endswith(".svg") else None)


def some_of(allowed):
    def parse(text):
        for name in text.split(","):
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"'{name}' is not one of {', '.join(allowed)}")
        return text.split(",")

    return parse


def main():
    global THREADS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", dest="cases", type=some_of(CASES), default=list(CASES), help="cases: " + ",".join(CASES))
    parser.add_argument("--peers", type=some_of(PEERS), default=list(PEERS), help="peers: " + ",".join(PEERS))
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each peer and case")
    parser.add_argument("--seconds", type=float, default=1.0, help="time measured in each process")
    parser.add_argument("--json", metavar="FILE", help="also the medians, in seconds")
    parser.add_argument("--plot", metavar="FILE", help="also bars, .svg or .png")
    parser.add_argument("--worker", nargs=2, metavar=("PEER", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    THREADS = arguments.threads
    if arguments.worker:
        # Before any framework counts the CPUs: those that take no number of threads take this one.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
        print(json.dumps(worker(*arguments.worker, arguments.seconds)))
        return
    results = measure(arguments)
    print(markdown(results, arguments))
    if arguments.json:
        with open(arguments.json, "w") as f:
            json.dump(results, f, indent=2)
    if arguments.plot:
        plot(results, arguments)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Riffle beside the other ways to find the k best on a CPU, on the same data with the same threads.

    .venv/bin/python bench/peers.py                     a table in Markdown
    .venv/bin/python bench/peers.py --plot docs/peers.svg --json peers.json
    .venv/bin/python bench/peers.py --only per-row-32 --peers riffle,faiss

Set up with `make python` and `scripts/venv.sh bench`. Each peer runs in processes of its own, in several
rounds (peer_bench.py). An answer is held against NumPy's stable sort before a peer is timed: the values
must be the k largest in order. Equal values may come in any order, as only riffle and JAX promise more;
riffle's indices must be exact.
"""

import importlib

import onnx_model
import peer_bench

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
        return values, indices  # returned, so that they live as long as the heaps that point to them

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
    float32, int64 = onnx_model.FLOAT32, onnx_model.INT64
    return onnx_model.one_node(
        "TopK",
        {"x": (float32, ["rows", "columns"]), "k": (int64, [1])},
        {"values": (float32, ["rows", k]), "indices": (int64, ["rows", k])},
        constants={"k": [k]},
    )


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
    """Checks and times one peer on one case."""
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
    return {"times": peer_bench.time_call(call, seconds), "version": importlib.import_module(peer).__version__}


def describe(case):
    rows, columns, k, dtype, _ = CASES[case]
    return f"{rows} x {columns}, {k}, {dtype}"


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
    figure.suptitle(f"k best of each row, {arguments.threads} threads, {peer_bench.cpu_name()}", fontsize=10)
    figure.tight_layout()
    figure.savefig(arguments.plot, metadata={"Date": None} if arguments.plot.endswith(".svg") else None)


def main():
    global THREADS
    parser = peer_bench.make_parser(__doc__, CASES, PEERS)
    parser.add_argument("--plot", metavar="FILE", help="also bars, .svg or .png")
    arguments = parser.parse_args()
    THREADS = arguments.threads
    if arguments.worker:
        peer_bench.work(worker, arguments)
        return
    results = peer_bench.measure(__file__, arguments)
    print(peer_bench.markdown(results, arguments, "rows x columns, k, dtype", describe))
    peer_bench.write_json(results, arguments)
    if arguments.plot:
        plot(results, arguments)


if __name__ == "__main__":
    main()

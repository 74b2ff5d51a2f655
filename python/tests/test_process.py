"""Threads, targets, the GIL, and the environment."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import reference
import riffle
from frameworks import BFLOAT16, bits


def test_info():
    info = riffle.info()
    assert set(info) == {"version", "target", "targets", "threads"}
    assert info["version"] == riffle.__version__
    assert info["target"] == info["targets"][0]
    assert info["threads"] >= 1


def test_set_target(target):
    assert riffle.info()["target"] == target
    riffle.set_target(None)
    assert riffle.info()["target"] == riffle.info()["targets"][0]


@pytest.mark.parametrize("shape,k", [((1, 300000), 64), ((5, 40000), 1000), ((33, 500), 10)])
def test_threads_never_change_a_bit(shape, k):
    x = reference.fill("few values", BFLOAT16, shape)
    results = []
    for threads in (1, 2, 3, 7):
        riffle.set_num_threads(threads)
        assert riffle.info()["threads"] == threads
        results.append(riffle.top_k(x, k))
    for values, indices in results:
        np.testing.assert_array_equal(bits(values), bits(results[0].values))
        np.testing.assert_array_equal(indices, reference.top_k(x, k))


def test_other_python_threads_run_while_a_kernel_does():
    riffle.set_num_threads(1)
    row = np.random.default_rng(0).standard_normal(100000).astype(np.float32)
    x = np.broadcast_to(row, (4000, row.size))  # 1.6 GB to go through, in 400 KB of memory
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        while not ticks:
            time.sleep(0.001)
        start = time.perf_counter()
        riffle.top_k(x, 1)
        end = time.perf_counter()
    finally:
        stop.set()
        thread.join()
    # If the GIL were held, there would be no tick inside, except one at either end.
    inside = sum(start < t < end for t in ticks)
    assert end - start > 0.01 and inside >= 4, (end - start, inside)


def test_concurrent_callers():
    inputs = [reference.fill("few values", np.dtype(np.float32), (7, 3000 + 100 * i), seed=i) for i in range(4)]
    expected = [reference.top_k(x, 20) for x in inputs]
    failures, stop = [], threading.Event()

    def call(x, indices):
        while not stop.is_set():
            if not np.array_equal(riffle.top_k(x, 20).indices, indices):
                failures.append(x.shape)

    threads = [threading.Thread(target=call, args=pair) for pair in zip(inputs, expected)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 1
    targets = riffle.info()["targets"]
    i = 0
    while time.monotonic() < deadline:  # settings may change at any time
        riffle.set_target(targets[i % len(targets)])
        riffle.set_num_threads(1 + i % 3)
        i += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures and i > 3


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_environment():
    code = "import riffle; info = riffle.info(); print(info['threads'], info['target'])"
    target = riffle.info()["targets"][-1]
    assert run(code, RIFFLE_NUM_THREADS="3", RIFFLE_TARGET=target).stdout.split() == ["3", target]
    assert "ValueError: RIFFLE_NUM_THREADS = 'many'" in run(code, RIFFLE_NUM_THREADS="many").stderr
    assert "ValueError: RIFFLE_TARGET = 'AVX99'" in run(code, RIFFLE_TARGET="AVX99").stderr


def test_forked_children_can_call():
    code = """
import os, numpy as np, riffle
riffle.set_num_threads(2)
x = np.arange(200000, dtype=np.float32).reshape(4, 50000)
riffle.top_k(x, 3)
child = os.fork()
if child == 0:
    ok = riffle.top_k(x, 1).indices.tolist() == [[49999]] * 4
    os._exit(0 if ok else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_forked_children_can_change_everything_during_calls():
    code = """
import os, signal, threading, time, numpy as np, riffle
riffle.set_num_threads(2)
x = np.random.default_rng(0).random((64, 50000), dtype=np.float32)
cache = riffle.KvCache(layers=1, kv_heads=1, head_dim=32, pages=200, dtype="float32")
seq = cache.create()
cache.extend(seq, 2000)
tokens = np.ones((2000, 1, 32), np.float32)
stop = False

def call():
    while not stop:
        riffle.top_k(x, 5)

def write():
    while not stop:
        cache.write(0, seq, 0, tokens, tokens)

threads = [threading.Thread(target=call) for call in (call, call, write, write)]
for thread in threads:
    thread.start()
time.sleep(0.05)
statuses = []
for _ in range(10):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        riffle.set_target(riffle.info()["targets"][-1])
        ok = riffle.info()["target"] == riffle.info()["targets"][-1]
        cache.extend(seq, 8)
        cache.write(0, seq, 2000, tokens[:8], tokens[:8])
        riffle.set_num_threads(3)
        riffle.release_scratch()
        os._exit(0 if ok and cache.length(seq) == 2008 and (cache.keys(0)[0] == 1).all() else 1)
    statuses.append(os.waitpid(child, 0)[1])
stop = True
for thread in threads:
    thread.join()
assert statuses == [0] * 10, statuses
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_rows_may_change_during_a_call():
    code = """
import threading, numpy as np, riffle
x = np.ones((64, 50000), np.float32)
stop = False

def change():
    while not stop:
        x[:] = np.nan
        x[:] = 1

thread = threading.Thread(target=change)
thread.start()
for _ in range(30):
    assert (0 <= (indices := riffle.top_k(x, 8).indices)).all() and (indices < 50000).all()
    try:
        assert (0 <= (tokens := riffle.sample(x, top_p=0.9))).all() and (tokens < 50000).all()
    except ValueError:
        pass
stop = True
thread.join()
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_release_scratch():
    x = np.random.default_rng(0).standard_normal((2, 30000)).astype(np.float32)
    expected = riffle.sample(x, top_p=0.999)
    assert riffle.release_scratch() is None
    np.testing.assert_array_equal(riffle.sample(x, top_p=0.999), expected)


# Each runs until the process ends. None uses arrays of PyTorch or JAX, whose own methods would end the process by a signal.
ARRAY = """class Array:
        def __init__(self, x): self.x = x
        def __dlpack__(self, **options): return self.x.__dlpack__(**options)
        def __dlpack_device__(self): return self.x.__dlpack_device__()
    """
NUMBER = """class Number:
        def __index__(self): return sum(range(30)) * 0 + 3
        def __float__(self): return sum(range(30)) * 0.0 + 1.0
        def __repr__(self): return "".join("x" for _ in range(30))
    """
CALLS = {
    "a producer of DLPack": f"{ARRAY}x = Array(np.zeros((2, 100), 'f4'))\n    call = lambda: riffle.top_k(x, 3)",
    "numbers": f"{NUMBER}x, n = np.zeros((2, 100), 'f4'), Number()\n    call = lambda: riffle.sample(x, temperature=n, top_k=n)",
    "texts of errors": f"{NUMBER}x, n = np.zeros((2, 100), 'f4'), Number()\n    call = lambda: swallow(lambda: riffle.top_k(x, 3, algorithm=n))",
    "top_k": "x = np.zeros((2, 100), 'f4')\n    call = lambda: riffle.top_k(x, 3)",
    "top_k of a bad argument": "x = np.zeros((2, 100), 'f4')\n    call = lambda: swallow(lambda: riffle.top_k(x, 101))",
    "an error of the kernel": "x = np.full((2, 100), np.nan, 'f4')\n    call = lambda: swallow(lambda: riffle.sample(x))",
    "sample": "x = np.zeros((64, 5000), 'f4')\n    call = lambda: riffle.sample(x, top_p=0.5)",
    "linear_top_k": "x = np.zeros((9, 64), 'f4')\n    call = lambda: riffle.linear_top_k(x, x, 2)",
    "merge_states": "x = np.zeros((9, 2, 32), 'f4')\n    call = lambda: riffle.merge_states([x, x], [x[:, :, 0].copy()] * 2)",
    "KvCache": "c = riffle.KvCache(layers=1, kv_heads=2, head_dim=32, pages=9); s = c.create()\n"
               "    call = lambda: (c.extend(s, 8), c.keys(0), c.batch([s]), c.truncate(s, 0))",
    "set_num_threads": "call = lambda: (riffle.set_num_threads(2), riffle.set_num_threads(1))",
    "set_target": "call = lambda: riffle.set_target(None)",
}


@pytest.mark.parametrize("name", CALLS)
def test_daemon_threads_inside_calls_do_not_end_the_process_at_exit(name):
    code = f"""
import sys, threading, time, numpy as np, riffle
sys.setswitchinterval(1e-5)
go = threading.Event()
def swallow(call):
    try: call()
    except ValueError: pass
def work():
    {CALLS[name]}
    call()
    go.set()
    while True: call()
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
assert go.wait(60)
time.sleep(0.02)
print("end")
"""
    for _ in range(3):
        result = run(code)
        assert (result.returncode, result.stdout, result.stderr) == (0, "end\n", ""), result

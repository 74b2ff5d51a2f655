#!/usr/bin/env python3
"""riffle.jax under jit: beside the library's own call, jax.lax.top_k, and attention written in JAX.

Answers are checked before anything is timed. What is compared is timed in turns, round after round.

  .venv/bin/python bench/jax_calls.py [call|top-k|attention]...
"""

import sys
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import riffle
import riffle.jax

DTYPES = {"bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype(np.float32)}
ROUNDS = 7


def times(functions, seconds=0.03):
    """The median and the minimum time of each call in microseconds. They take turns; a slow call is made once only."""
    taken = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, samples in zip(functions, taken):
            if samples and samples[0] > 10 * seconds:
                continue
            function()
            end = time.perf_counter() + seconds
            while True:
                begin = time.perf_counter()
                function()
                now = time.perf_counter()
                samples.append(now - begin)
                if now > end:
                    break
    return [(1e6 * np.median(samples), 1e6 * min(samples)) for samples in taken]


def matrix(rows, n, dtype):
    return jnp.asarray(np.random.default_rng(n).standard_normal((rows, n), np.float32).astype(dtype))


def bench_call():
    print("riffle.jax.top_k under jit, and the library's call on the same memory (us)")
    print(f"{'rows x n, k, dtype':32}{'library':>10}{'min':>8}{'riffle.jax':>12}{'min':>8}{'ratio':>8}")
    for rows, n, k, name in [(32, 201088, 64, "bf16"), (32, 201088, 64, "f32"), (32, 4096, 64, "bf16"),
                             (1, 201088, 64, "bf16"), (1, 1024, 8, "bf16")]:
        x = matrix(rows, n, DTYPES[name])
        view = np.asarray(x)
        out = riffle.TopK(np.empty((rows, k), view.dtype), np.empty((rows, k), np.int32))
        call = jax.jit(lambda x, k=k: riffle.jax.top_k(x, k))
        riffle.top_k(view, k, out=out)
        assert all((np.asarray(a) == b).all() for a, b in zip(call(x), out))
        library, mine = times([lambda: riffle.top_k(view, k, out=out), lambda: call(x)[0].block_until_ready()])
        print(f"{f'{rows} x {n}, {k}, {name}':32}{library[0]:10.1f}{library[1]:8.1f}{mine[0]:12.1f}{mine[1]:8.1f}"
              f"{mine[0] / library[0]:8.2f}")


def bench_top_k():
    print("riffle.jax.top_k and jax.lax.top_k, both under jit (us)")
    print(f"{'rows x n, k, dtype':32}{'riffle.jax':>12}{'jax.lax':>14}{'times as quick':>16}")
    for name, dtype in DTYPES.items():
        for rows, n in [(1, 128), (32, 128), (1, 1024), (32, 1024), (1, 16384), (32, 16384), (32, 201088)]:
            x = matrix(rows, n, dtype)
            for k in sorted({1, 8, 64, min(n, 1024), n if rows * n < 1 << 20 else 4096}):
                mine, theirs = (jax.jit(lambda x, f=f, k=k: f(x, k)) for f in (riffle.jax.top_k, jax.lax.top_k))
                assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(mine(x), theirs(x)))
                (us, _), (lax_us, _) = times([lambda: mine(x)[0].block_until_ready(),
                                              lambda: theirs(x)[0].block_until_ready()], 0.005)
                print(f"{f'{rows} x {n}, {k}, {name}':32}{us:12.1f}{lax_us:14.1f}{lax_us / us:16.1f}", flush=True)


def decode_in_jax(q, k_pages, v_pages, lengths, page_indices):
    """What stands in for the TPU kernel on other machines: gather, scores, softmax, sum."""
    kv_heads, _, page_size, d = k_pages.shape
    sequences, max_pages = page_indices.shape
    keys, values = (p[:, page_indices].reshape(kv_heads, sequences, max_pages * page_size, d) for p in (k_pages, v_pages))
    q = q.reshape(sequences, kv_heads, -1, d)
    logits = jnp.einsum("bhgd,hbnd->bhgn", q, keys, preferred_element_type=jnp.float32)
    seen = jnp.arange(max_pages * page_size) < lengths[:, None, None, None]
    weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1)
    out = jnp.einsum("bhgn,hbnd->bhgd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return out.reshape(sequences, -1, d).astype(q.dtype)


def bench_attention():
    print("Decode, q_heads 32, kv_heads 8, head_dim 128, pages of 16 (us); GB/s counts each key and value once")
    print(f"{'sequences x tokens, pages':32}{'in JAX':>12}{'riffle.jax':>12}{'min':>10}{'GB/s':>8}{'times as quick':>16}")
    rng = np.random.default_rng(0)
    for sequences, length in [(1, 4096), (8, 1024), (8, 4096)]:
        max_pages = length // 16
        pages = sequences * max_pages
        indices = jnp.asarray(rng.permutation(pages).reshape(sequences, max_pages).astype(np.int32))
        lengths = jnp.full(sequences, length, jnp.int32)
        q32 = rng.standard_normal((sequences, 32, 128), np.float32) / 12
        pools32 = [rng.standard_normal((8, pages, 16, 128), np.float32) for _ in range(2)]
        for name, dtype in DTYPES.items():
            q, pools = jnp.asarray(q32.astype(dtype)), [jnp.asarray(p.astype(dtype)) for p in pools32]
            theirs, mine = jax.jit(decode_in_jax), jax.jit(riffle.jax.paged_attention)
            rest = lengths, indices
            expected = np.asarray(theirs(q, *pools, *rest), np.float32)
            int8 = [riffle.jax.QuantizedTensor(jnp.rint(p * (127.5 / s)).astype(jnp.int8), s.astype(dtype))
                    for p in pools32 for s in [jnp.abs(p).max(-1, keepdims=True).astype(dtype).astype(np.float32)]]
            for kind, kv in ((name, pools), (f"int8 by {name}", int8)):
                error = np.abs(np.asarray(mine(q, *kv, *rest), np.float32) - expected).max()
                assert error < 0.03, error
                (jax_us, _), (us, least) = times([lambda: theirs(q, *pools, *rest).block_until_ready(),
                                                  lambda: mine(q, *kv, *rest).block_until_ready()])
                gigabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(kv)) / 1e9
                print(f"{f'{sequences} x {length}, {kind}':32}{jax_us:12.1f}{us:12.1f}{least:10.1f}"
                      f"{gigabytes / us * 1e6:8.1f}{jax_us / us:16.1f}", flush=True)


if __name__ == "__main__":
    parts = {"call": bench_call, "top-k": bench_top_k, "attention": bench_attention}
    print(f"riffle {riffle.__version__}, jax {jax.__version__}, target {riffle.info()['target']}, "
          f"{riffle.info()['threads']} threads")
    for part in sys.argv[1:] or parts:
        print()
        parts[part]()

"""Is an installed riffle usable, with NumPy alone? Selection, sampling, the page pool and attention, each once.

    python smoke.py      prints the version, the target and the number of threads; fails if an answer is wrong
"""

import importlib.metadata
import math

import numpy as np
import riffle


def main() -> None:
    info = riffle.info()
    assert importlib.metadata.version("riffle-llm") == riffle.__version__

    x = np.array([[0.5, 3.0, -1.0, 3.0, 2.0], [-4.0, -2.0, np.nan, -1.0, -5.0]], np.float32)
    values, indices = riffle.top_k(x, 3)
    assert indices.tolist() == [[1, 3, 4], [2, 3, 1]], indices
    assert values[0].tolist() == [3, 3, 2], values
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((3, 50_000), np.float32)
    values, indices = riffle.top_k(logits, 64)
    assert (indices == np.argsort(-logits, axis=1, kind="stable")[:, :64]).all()
    assert riffle.sample(logits, temperature=0.0).tolist() == logits.argmax(axis=1).tolist()

    weight = rng.standard_normal((1000, 64), np.float32)
    best = riffle.linear_top_k(weight[7:8], weight, 1)
    product = weight[7].astype(np.float64) @ weight.T.astype(np.float64)
    assert best.indices[0, 0] == product.argmax()

    # One sequence over two pages; keys are zeros, so that every value has the same weight.
    cache = riffle.KvCache(layers=1, kv_heads=1, head_dim=32, pages=4, page_size=4, dtype="float32")
    sequence = cache.create()
    cache.extend(sequence, 6)
    rows = rng.standard_normal((6, 1, 32), np.float32)
    cache.write(0, sequence, 0, np.zeros_like(rows), rows)
    kv_lens, page_table = cache.batch([sequence])
    q = np.ones((1, 2, 32), np.float32)
    out, lse = riffle.paged_attention(q, cache.keys(0), cache.values(0), kv_lens, page_table, return_lse=True)
    assert np.allclose(out[0], rows.mean(axis=0), atol=1e-6)
    assert np.allclose(lse, math.log(6))
    print(f"riffle {riffle.__version__} on {info['target']}, {info['threads']} threads: right")


if __name__ == "__main__":
    main()

"""Sequences in a page pool, one a fork of the other, decode together; checked against a softmax in float64."""

import numpy as np
import riffle

Q_HEADS, KV_HEADS, HEAD_DIM = 8, 2, 64


def attend(q, keys, values):
    """One query [q_heads, d] over keys and values [tokens, kv_heads, d]."""
    keys, values = (np.repeat(x.astype(np.float64), Q_HEADS // KV_HEADS, axis=1) for x in (keys, values))
    logits = np.einsum("hd,thd->ht", q, keys) / np.sqrt(HEAD_DIM)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.einsum("ht,thd->hd", weights / weights.sum(axis=1, keepdims=True), values)


def main():
    rng = np.random.default_rng(1)
    cache = riffle.KvCache(layers=1, kv_heads=KV_HEADS, head_dim=HEAD_DIM, pages=32, dtype="float32")

    def append(sequence, tokens):
        """Writes the keys and values of new tokens, and returns them."""
        both = rng.standard_normal((2, tokens, KV_HEADS, HEAD_DIM), np.float32)
        position = cache.length(sequence)
        cache.extend(sequence, tokens)
        cache.write(0, sequence, position, *both)
        return both

    first = cache.create()
    beginning = append(first, 100)
    second = cache.fork(first)  # shares its pages
    ends = [append(first, 1), append(second, 5)]

    kv_lens, page_table = cache.batch([first, second])
    q = rng.standard_normal((2, Q_HEADS, HEAD_DIM), np.float32)  # a new token of each
    out = riffle.paged_attention(q, cache.keys(0), cache.values(0), kv_lens, page_table)

    for query, end, got in zip(q, ends, out):
        expected = attend(query, *np.concatenate([beginning, end], axis=1))
        print(f"{len(expected)} heads, at most {np.abs(got - expected).max():.1e} off")
        assert np.allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert cache.pages_shared == 6  # full pages of 16 tokens


if __name__ == "__main__":
    main()

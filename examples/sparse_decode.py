"""A decode step of sparse attention on random weights: index keys in int8, exact selection, attention over what was selected;
checked against scores, a sort and a softmax in float64."""

import numpy as np
import riffle

TOKENS, PAGE_SIZE, K = 3000, 64, 256
INDEX_HEADS, INDEX_DIM, HEADS, ROW_DIM, VALUE_DIM = 32, 128, 16, 576, 512


def main():
    rng = np.random.default_rng(2)
    pages = -(-TOKENS // PAGE_SIZE)
    page_table = rng.permutation(pages).astype(np.int32)[None]
    positions = np.arange(TOKENS, dtype=np.int32)[None]
    slots = riffle.positions_to_slots(positions, page_table, PAGE_SIZE)[0]

    # The cache of one layer: an index key and a row, key and value at once, for each token.
    index_keys = rng.standard_normal((TOKENS, INDEX_DIM), np.float32)
    codes = np.zeros((pages, PAGE_SIZE, INDEX_DIM), np.int8)
    scales = np.zeros((pages, PAGE_SIZE), np.float32)
    riffle.write_index_keys(index_keys, slots, codes, scales, format="int8")
    rows = np.full((pages * PAGE_SIZE, ROW_DIM), np.nan, np.float32)
    rows[slots] = rng.standard_normal((TOKENS, ROW_DIM), np.float32)

    # The new token's index queries, turned as the keys were, select the rows that its heads attend to.
    q_index = riffle.hadamard(rng.standard_normal((1, INDEX_HEADS, INDEX_DIM), np.float32))
    weights = rng.standard_normal((1, INDEX_HEADS), np.float32)
    q = rng.standard_normal((1, HEADS, ROW_DIM), np.float32)
    kv_lens = np.array([TOKENS], np.int32)
    index = (q_index, weights, codes, kv_lens, page_table)
    selected = riffle.indexer_top_k(*index, K, key_scales=scales)
    named = riffle.positions_to_slots(selected, page_table, PAGE_SIZE)
    out = riffle.sparse_attention(q, rows, named, value_dim=VALUE_DIM)

    # The same selection from stored scores, and the softmax over it.
    scores = riffle.indexer_logits(*index, key_scales=scales)[0]
    best = np.lexsort((np.arange(TOKENS), -scores))[:K]
    assert (selected[0] == best).all()
    seen = rows[slots[best]].astype(np.float64)
    logits = q[0] @ seen.T / np.sqrt(ROW_DIM)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = (p / p.sum(axis=1, keepdims=True)) @ seen[:, :VALUE_DIM]
    print(f"{K} of {TOKENS} positions, {HEADS} heads, at most {np.abs(out[0] - expected).max():.1e} off")
    assert np.allclose(out[0], expected, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    main()

"""riffle.KvCache: prefixes by their keys, swapping out and in, and counts."""

import numpy as np
import pytest
import riffle
from kv_cache_case import small, tokens


def test_statistics():
    cache = riffle.KvCache(layers=2, kv_heads=3, head_dim=32, pages=5, page_size=4, dtype="float32")
    assert cache.bytes == 2 * 5 * 2 * 3 * 4 * 32 * 4
    assert (cache.sequences, cache.pages_free, cache.pages_used, cache.pages_shared) == (0, 5, 0, 0)
    a = cache.create()
    cache.extend(a, 9)
    b = cache.fork(a)
    assert (cache.sequences, cache.pages_free, cache.pages_used, cache.pages_shared) == (2, 2, 3, 3)
    cache.free(a)
    assert (cache.sequences, cache.pages_used, cache.pages_shared) == (1, 3, 0)
    cache.free(b)
    assert (cache.sequences, cache.pages_free, cache.pages_used) == (0, 5, 0)


def test_prefixes_are_found_by_their_keys():
    cache = small(pages=3)
    a = cache.create()
    cache.extend(a, 11)
    for layer in range(2):
        cache.write(layer, a, 0, tokens(cache, 11), tokens(cache, 11))
    keys = [1, (7).to_bytes(16, "big"), 2**128 - 1]
    cache.set_block_keys(a, keys[:2])
    assert cache.lookup(keys) == 8
    b = cache.create(keys)
    assert cache.length(b) == 8 and cache.pages_shared == 2
    cache.free(a)
    cache.free(b)
    assert cache.pages_free == 3 and cache.stats["pages_reusable"] == 2
    c = cache.create([keys[0], 5])
    np.testing.assert_array_equal(cache.keys(0)[cache.batch([c])[1][0, 0], :, 1], tokens(cache, 11)[1])
    cache.extend(c, 8)
    assert cache.lookup(keys) == 4
    stats = cache.stats
    assert (stats["blocks_wanted"], stats["blocks_found"], stats["pages_evicted"]) == (5, 3, 1)
    for bad, text in [([-1], "2\\^128"), ([2**128], "2\\^128"), ([b"short"], "5 bytes")]:
        with pytest.raises(ValueError, match=text):
            cache.lookup(bad)
    with pytest.raises(ValueError, match="keys has 4 keys but seq = "):
        cache.set_block_keys(c, [1, 2, 3, 4])
    with pytest.raises(ValueError, match="another one than page 0"):
        cache.set_block_keys(c, [9])


@pytest.mark.parametrize("own", [False, True])
def test_swapping_out_and_in(own):
    cache = small(pages=3)
    a = cache.create()
    cache.extend(a, 9)
    cache.write(1, a, 0, tokens(cache, 9), tokens(cache, 9, 3))
    memory = np.zeros(cache.swap_bytes(a) + 5, np.uint8) if own else None
    kept = cache.swap_out(a, memory)
    assert (kept is memory) == own and kept.dtype == np.uint8
    assert cache.pages_free == 3 and cache.length(a) == 9
    with pytest.raises(ValueError, match="swapped out"):
        cache.batch([a])
    other = cache.create()
    cache.extend(other, 4)
    with pytest.raises(riffle.OutOfPages, match="takes 3 pages but 2"):
        cache.swap_in(a, kept)
    cache.free(other)
    with pytest.raises(ValueError, match="memory has"):
        cache.swap_in(a, kept[:100])
    cache.swap_in(a, kept)
    table = cache.batch([a])[1][0]
    for t in range(9):
        np.testing.assert_array_equal(cache.values(1)[table[t // 4], :, t % 4], tokens(cache, 9, 3)[t])
    assert cache.stats["pages_swapped_out"] == cache.stats["pages_swapped_in"] == 3

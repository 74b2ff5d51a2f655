"""A small cache, numbers to write into it, and what a sequence holds, gathered by its page table."""

import ml_dtypes
import numpy as np
import riffle

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def small(**changes):
    shape = {"layers": 2, "kv_heads": 2, "head_dim": 8, "pages": 6, "page_size": 4, "dtype": "float32"}
    return riffle.KvCache(**(shape | changes))


def tokens(cache, count, first=0.0):
    """[count, kv_heads, head_dim], every element another number that bfloat16 and float16 can hold."""
    _, heads, _, dim = cache.keys(0).shape
    return (np.arange(count * heads * dim, dtype=np.float32).reshape(count, heads, dim) + first) % 251


def contents(cache, layer, seq):
    """The keys and values of a sequence, gathered by its page table."""
    (length,), (pages,) = cache.batch([seq])
    both = []
    for pool in (cache.keys(layer), cache.values(layer)):
        page_size = pool.shape[2]
        rows = [pool[pages[p // page_size], :, p % page_size] for p in range(length)]
        both.append(np.array(rows).reshape(length, pool.shape[1], pool.shape[3]))
    return both

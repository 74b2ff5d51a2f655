"""What riffle.KvCache refuses changes nothing."""

import numpy as np
import pytest
import riffle
from kv_cache_case import small, tokens


def test_bad_arguments():
    shape = {"layers": 1, "kv_heads": 1, "head_dim": 8, "pages": 1}
    for name in (*shape, "page_size"):
        for value in (0, -1, -(10**30)):
            with pytest.raises(ValueError, match=f"{name} = -?[0-9]+ is not 1 or more"):
                riffle.KvCache(**(shape | {name: value}))
        with pytest.raises(TypeError, match=name):
            riffle.KvCache(**(shape | {name: 1.5}))
    with pytest.raises(ValueError, match="pages = 2147483648 is above 2147483647"):
        riffle.KvCache(**(shape | {"pages": 2**31}))
    with pytest.raises(TypeError, match="dtype = 'int4' is none of"):
        riffle.KvCache(**shape, dtype="int4")
    with pytest.raises(TypeError, match="value_dtype = 'int4' is none of"):
        riffle.KvCache(**shape, value_dtype="int4")
    with pytest.raises(TypeError, match="scale_dtype = 'int8' is none of"):
        riffle.KvCache(**shape, dtype="int8", scale_dtype="int8")
    with pytest.raises(ValueError, match="scale_group|scales.group = 48"):
        riffle.KvCache(**shape, dtype="int8", scale_group=48)
    with pytest.raises(ValueError, match="not a multiple of 32"):
        riffle.KvCache(**{**shape, "head_dim": 40}, dtype="q8_0")
    with pytest.raises(TypeError, match="dtype"):
        riffle.KvCache(**shape, dtype=None)
    with pytest.raises(MemoryError, match="bytes"):
        riffle.KvCache(**(shape | {"layers": 2**45}))
    with pytest.raises(MemoryError, match="bytes"):
        riffle.KvCache(**(shape | {"head_dim": 10**30}))


def test_ids_that_are_no_sequence():
    cache = small()
    gone = cache.create()
    cache.free(gone)
    assert cache.create() != gone
    one = tokens(cache, 1)
    for seq, text in ((gone, "has been freed"), (0, "no sequence"), (-1, "no sequence"), (10**30, "no sequence")):
        for call in (
            lambda: cache.fork(seq),
            lambda: cache.extend(seq, 1),
            lambda: cache.truncate(seq, 0),
            lambda: cache.free(seq),
            lambda: cache.length(seq),
            lambda: cache.batch([seq]),
            lambda: cache.write(0, seq, 0, one, one),
        ):
            with pytest.raises(ValueError, match=text):
                call()
    with pytest.raises(TypeError):
        cache.batch(gone)
    with pytest.raises(TypeError):
        cache.length("1")


def test_bad_writes():
    cache = small(dtype="bfloat16")
    seq = cache.create()
    cache.extend(seq, 3)
    good = tokens(cache, 2)
    cases = [
        (ValueError, "layer = 2 is not in 0..1", lambda: cache.write(2, seq, 0, good, good)),
        (ValueError, "layer = -1", lambda: cache.write(-1, seq, 0, good, good)),
        (ValueError, "position = 2 with 2 tokens", lambda: cache.write(0, seq, 2, good, good)),
        (ValueError, "position = -1", lambda: cache.write(0, seq, -1, good, good)),
        (ValueError, "values is .1, 2, 8. instead of", lambda: cache.write(0, seq, 0, good, good[:1])),
        (ValueError, "keys is .2, 1, 8.", lambda: cache.write(0, seq, 0, good[:, :1], good)),
        (ValueError, "keys is .2, 2, 4.", lambda: cache.write(0, seq, 0, good[:, :, :4], good)),
        (ValueError, "keys has shape", lambda: cache.write(0, seq, 0, good[0], good)),
        (ValueError, "contiguous", lambda: cache.write(0, seq, 0, np.repeat(good, 2, 2)[:, :, ::2], good)),
        (ValueError, "own storage", lambda: cache.write(0, seq, 0, good, cache.keys(0)[:2, :, 0])),
        (TypeError, "int8", lambda: cache.write(0, seq, 0, good.astype(np.int8), good)),
        (TypeError, "float64", lambda: cache.write(0, seq, 0, good, good.astype(np.float64))),
        (TypeError, "keys must be an array", lambda: cache.write(0, seq, 0, [[1.0]], good)),
    ]
    for error, text, call in cases:
        with pytest.raises(error, match=text):
            call()
    assert (cache.keys(0) == 0).all()
    assert (cache.values(0) == 0).all()
    for pages in (cache.keys, cache.values):
        with pytest.raises(ValueError, match="layer = 2 is not in 0..1"):
            pages(2)
    with pytest.raises(ValueError, match="length = 4 is not in 0..3"):
        cache.truncate(seq, 4)
    with pytest.raises(ValueError, match="tokens = -1 is negative"):
        cache.extend(seq, -1)

"""riffle.KvCache from Python: what goes in comes out, what is refused changes nothing."""

import gc
import random
import threading

import ml_dtypes
import numpy as np
import pytest
import riffle
from kv_cache_case import contents, small, tokens

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_writes_are_read_back(dtype, page_size):
    cache = small(dtype=dtype, page_size=page_size, pages=20)
    seq = cache.create()
    cache.extend(seq, 11)
    for layer in range(2):
        keys = tokens(cache, 11, 10 * layer).astype(DTYPES[dtype])
        values = tokens(cache, 11, 10 * layer + 5).astype(DTYPES[dtype])
        cache.write(layer, seq, 0, keys, values)
    for layer in range(2):
        keys, values = contents(cache, layer, seq)
        assert keys.dtype == values.dtype == DTYPES[dtype]
        np.testing.assert_array_equal(keys.astype(np.float32), tokens(cache, 11, 10 * layer))
        np.testing.assert_array_equal(values.astype(np.float32), tokens(cache, 11, 10 * layer + 5))
    assert cache.length(seq) == 11
    assert cache.pages_free == 20 - -(-11 // page_size)


def test_defaults_are_bfloat16_and_pages_of_16():
    cache = riffle.KvCache(layers=1, kv_heads=3, head_dim=64, pages=5)
    assert cache.keys(0).shape == (5, 3, 16, 64)
    assert cache.keys(0).dtype == ml_dtypes.bfloat16
    assert cache.pages_free == 5
    with pytest.raises(TypeError):
        riffle.KvCache(1, 3, 64, 5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float32_is_rounded_to_nearest_even(dtype):
    cache = small(dtype=dtype, head_dim=1000, kv_heads=1, pages=100)
    seq = cache.create()
    cache.extend(seq, 400)
    bits = np.random.default_rng(0).integers(0, 2**32, (400, 1, 1000), np.uint32)
    with np.errstate(all="ignore"):
        x = bits.view(np.float32)
        cache.write(0, seq, 0, x, -x)
        keys, values = contents(cache, 0, seq)
        expected = x.astype(DTYPES[dtype]).astype(np.float32)
        np.testing.assert_array_equal(keys.astype(np.float32), expected)
        np.testing.assert_array_equal(values.astype(np.float32), -expected)


def test_any_strides_are_read():
    cache = small()
    seq = cache.create()
    cache.extend(seq, 5)
    big = np.random.default_rng(0).standard_normal((2, 10, 16), np.float32)
    keys = big[:, 8:3:-1, ::1].transpose(1, 0, 2)[:, :, 4:12]
    values = np.broadcast_to(big[0, 0, :8], (5, 2, 8))
    cache.write(1, seq, 0, keys, values)
    got_keys, got_values = contents(cache, 1, seq)
    np.testing.assert_array_equal(got_keys, keys)
    np.testing.assert_array_equal(got_values, values)


def test_tensors_of_torch_are_read():
    torch = pytest.importorskip("torch")
    cache = small(dtype="bfloat16")
    seq = cache.create()
    cache.extend(seq, 4)
    x = torch.randn(4, 2, 8)
    cache.write(0, seq, 0, x, x.to(torch.bfloat16))
    keys, values = contents(cache, 0, seq)
    expected = x.to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(keys.view(np.uint16), expected)
    np.testing.assert_array_equal(values.view(np.uint16), expected)


def test_arrays_of_jax_are_read():
    jnp = pytest.importorskip("jax.numpy")
    cache = small(dtype="bfloat16")
    seq = cache.create()
    cache.extend(seq, 4)
    x = jnp.arange(64, dtype=jnp.bfloat16).reshape(4, 2, 8)
    cache.write(0, seq, 0, x, x.astype(jnp.float32))
    for got in contents(cache, 0, seq):
        np.testing.assert_array_equal(got.astype(np.float32), np.asarray(x, np.float32))


def test_views_are_of_the_pages_themselves_and_read_only():
    cache = small()
    before = cache.keys(1)
    seq = cache.create()
    cache.extend(seq, 1)
    cache.write(1, seq, 0, np.full((1, 2, 8), 7, np.float32), np.full((1, 2, 8), 8, np.float32))
    assert (before[0, :, 0] == 7).all()
    assert (cache.values(1)[0, :, 0] == 8).all()
    assert (cache.keys(0) == 0).all()
    assert np.shares_memory(before, cache.keys(1))
    assert not np.shares_memory(before, cache.values(1))
    assert not np.shares_memory(before, cache.keys(0))
    for view in (before, cache.values(0), small(dtype="bfloat16").keys(0)):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_outlive_the_cache(dtype):
    cache = small(dtype=dtype)
    seq = cache.create()
    cache.extend(seq, 3)
    cache.write(0, seq, 0, tokens(cache, 3), tokens(cache, 3))
    view = cache.keys(0)
    expected = view.copy()
    del cache
    gc.collect()
    np.testing.assert_array_equal(view, expected)


def test_forks_share_until_they_are_written():
    cache = small(pages=4)
    seq = cache.create()
    cache.extend(seq, 6)
    cache.write(0, seq, 0, tokens(cache, 6), tokens(cache, 6))
    fork = cache.fork(seq)
    assert (cache.pages_free, cache.pages_shared) == (2, 2)
    cache.extend(fork, 1)
    assert (cache.pages_free, cache.pages_shared) == (1, 1)
    cache.write(0, fork, 5, -tokens(cache, 2), -tokens(cache, 2))
    cache.write(0, fork, 0, -tokens(cache, 1), -tokens(cache, 1))
    assert (cache.pages_free, cache.pages_shared) == (0, 0)
    keys, _ = contents(cache, 0, seq)
    np.testing.assert_array_equal(keys, tokens(cache, 6))
    _, values = contents(cache, 0, fork)
    np.testing.assert_array_equal(values[:1], -tokens(cache, 1))
    np.testing.assert_array_equal(values[1:5], tokens(cache, 6)[1:5])
    np.testing.assert_array_equal(values[5:], -tokens(cache, 2))
    cache.free(seq)
    cache.truncate(fork, 0)
    assert cache.pages_free == 4
    assert cache.length(fork) == 0


def test_a_full_pool_changes_nothing():
    assert issubclass(riffle.OutOfPages, RuntimeError)
    cache = small(pages=3)
    seq = cache.create()
    cache.extend(seq, 6)
    cache.write(0, seq, 0, tokens(cache, 6), tokens(cache, 6))
    fork = cache.fork(seq)
    before = [array.copy() for array in cache.batch([seq, fork])]
    for refused in (
        lambda: cache.extend(seq, 8),  # two pages and the copy
        lambda: cache.extend(seq, 10**30),
        lambda: cache.write(0, fork, 0, tokens(cache, 6, 1), tokens(cache, 6, 1)),  # two copies
    ):
        with pytest.raises(riffle.OutOfPages, match="1 of 3 are free"):
            refused()
        for array, kept in zip(cache.batch([seq, fork]), before, strict=True):
            np.testing.assert_array_equal(array, kept)
        assert (cache.pages_free, cache.pages_shared) == (1, 2)
        np.testing.assert_array_equal(contents(cache, 0, seq)[0], tokens(cache, 6))
    cache.extend(seq, 2)  # the copy alone


def test_batch():
    cache = small()
    empty, long, short = (cache.create() for _ in range(3))
    cache.extend(long, 9)
    cache.extend(short, 4)
    kv_lens, page_table = cache.batch([long, empty, short, long])
    assert kv_lens.dtype == page_table.dtype == np.int32
    assert kv_lens.tolist() == [9, 0, 4, 9]
    assert page_table.tolist() == [[0, 1, 2], [-1, -1, -1], [3, -1, -1], [0, 1, 2]]
    assert cache.batch([])[0].shape == (0,)
    assert cache.batch([])[1].shape == (0, 0)
    assert cache.batch((empty,))[1].shape == (1, 0)
    assert cache.batch(np.array([short]))[1].tolist() == [[3]]
    # Results are copies.
    kv_lens[0] = 77
    assert cache.batch([long])[0].tolist() == [9]


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


@pytest.mark.parametrize("seed", range(10))
def test_random_histories(seed):
    """A list of tokens for each sequence says what the cache must hold."""
    rng = random.Random(seed)
    cache = small(layers=1, kv_heads=1, head_dim=1, pages=rng.randint(1, 12), page_size=rng.randint(1, 5))
    pages = cache.pages_free
    model = {}
    stamp = 0
    full = 0
    for _ in range(400):
        op = rng.choice(["create", "fork", "extend", "extend", "write", "write", "write", "truncate", "free"])
        seq = rng.choice(list(model) or [None])
        if op == "create" and len(model) < 8:
            model[cache.create()] = []
        elif seq is None:
            continue
        elif op == "fork" and len(model) < 8:
            model[cache.fork(seq)] = list(model[seq])
        elif op == "truncate":
            length = rng.randint(0, len(model[seq]))
            cache.truncate(seq, length)
            del model[seq][length:]
        elif op == "free":
            cache.free(seq)
            del model[seq]
        elif op == "extend":
            count = rng.randint(0, 7)
            try:
                cache.extend(seq, count)
                model[seq] += [None] * count
            except riffle.OutOfPages:
                full += 1
        elif op == "write":
            first = rng.randint(0, len(model[seq]))
            new = [float(stamp := stamp + 1) for _ in range(rng.randint(0, len(model[seq]) - first))]
            x = np.array(new, np.float32).reshape(-1, 1, 1)
            try:
                cache.write(0, seq, first, x, -x)
                model[seq][first : first + len(new)] = new
            except riffle.OutOfPages:
                full += 1
        kv_lens, page_table = cache.batch(list(model))
        assert kv_lens.tolist() == [len(held) for held in model.values()]
        used = {}
        for row, held in zip(page_table.tolist(), model.values(), strict=True):
            taken = row[: -(-len(held) // cache.keys(0).shape[2])]
            assert row[len(taken) :] == [-1] * (len(row) - len(taken))
            for page in taken:
                used[page] = used.get(page, 0) + 1
        assert cache.pages_free == pages - len(used)
        assert cache.pages_shared == sum(count > 1 for count in used.values())
        for seq, held in model.items():
            keys, values = contents(cache, 0, seq)
            for key, value, wanted in zip(keys.ravel(), values.ravel(), held, strict=True):
                assert wanted is None or (key, value) == (wanted, -wanted)
    assert full > 0


def test_threads_share_a_cache():
    cache = small(layers=1, kv_heads=4, head_dim=64, pages=64, page_size=4)
    wrong = []

    def work(number):
        mine = np.full((13, 4, 64), number, np.float32)
        for _ in range(50):
            seq = cache.create()
            cache.extend(seq, 13)
            cache.write(0, seq, 0, mine, -mine)
            fork = cache.fork(seq)
            cache.extend(fork, 2)
            keys, values = contents(cache, 0, seq)
            if not ((keys == number).all() and (values == -number).all()):
                wrong.append(number)
            cache.free(seq)
            cache.free(fork)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.pages_free == 64

"""Sequences of riffle.KvCache: forks, full pools, page tables, random histories, threads."""

import random
import threading

import numpy as np
import pytest
import riffle
from kv_cache_case import contents, small, tokens


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

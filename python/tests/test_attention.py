"""riffle.paged_attention against attention in float64."""

import itertools
import math
import threading
import tracemalloc

import numpy as np
import pytest
import riffle
from attention_case import AXES, Case
from frameworks import BFLOAT16, DTYPES, FRAMEWORKS, bits

PAIRS = [pytest.param(q, kv, id=f"{q}-{kv}") for q, kv in itertools.product(DTYPES, DTYPES)]
WRITABLE = [p for p in FRAMEWORKS if p.id in ("numpy", "torch")]

MIXED = {"kv_lens": [5, 0, 17, 1, 700, 33], "q_lens": [5, 1, 3, 1, 2, 0]}
OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.5},
    "not causal": {"causal": False},
    "window": {"window": 7},
    "window on both sides": {"causal": False, "window": 7, "window_right": 2},
    "window to the right": {"causal": False, "window_right": 1},
    "soft cap": {"soft_cap": 2.5},
    "sinks": {"sinks": np.array([0.5, -2, 3, 0], np.float32)},
    "all": {"scale": 0.3, "window": 100, "soft_cap": 4, "sinks": np.array([0.5, -np.inf, 3, 0], np.float32)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("layout", AXES)
def test_mixed_batches(layout, options):
    case = Case(**MIXED)
    case.check(*case.run(layout, return_lse=True, **options), **options)


@pytest.mark.parametrize("q,kv", PAIRS)
def test_dtypes(q, kv):
    case = Case(**MIXED, dtypes=(q, kv), page_size=16, dim=64)
    case.check(*case.run(return_lse=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_targets(target, dtype):
    case = Case(**MIXED, dtypes=(dtype, dtype), page_size=16)
    case.check(*case.run(return_lse=True))


@pytest.mark.parametrize("heads", [(1, 1), (3, 1), (4, 4), (14, 2), (8, 1), (16, 1)], ids=str)
@pytest.mark.parametrize("dim", [40, 128, 256])
def test_shapes(heads, dim):
    case = Case([70, 3], [4, 1], heads=heads, dim=dim, page_size=7)
    case.check(*case.run(return_lse=True))


@pytest.mark.parametrize("page_size", [1, 3, 16, 256])
def test_page_sizes(page_size):
    case = Case([300, 16, 17], [2, 1, 1], page_size=page_size)
    case.check(*case.run(return_lse=True))


def test_decode_has_no_cu_q_lens():
    case = Case([9, 0, 40])
    out, lse = case.run(cu_q_lens=None, return_lse=True)
    case.check(out, lse)
    assert (out[1] == 0).all() and (lse[1] == -np.inf).all()
    np.testing.assert_array_equal(case.run(cu_q_lens=None), out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_do_not_depend_on_decode_or_prefill(dtype):
    whole = Case([530], [530], dtypes=(dtype, dtype))
    expected, expected_lse = whole.run(return_lse=True)
    riffle.set_num_threads(1)
    alone = whole.run(return_lse=True)
    np.testing.assert_array_equal(bits(alone[0]), bits(expected))
    np.testing.assert_array_equal(bits(alone[1]), bits(expected_lse))
    riffle.set_num_threads(2)
    whole.page(16, np.random.default_rng(1))
    np.testing.assert_array_equal(bits(whole.run()), bits(expected))
    np.testing.assert_array_equal(bits(whole.run("JAX")), bits(expected))
    lengths = np.array([1, 64, 512, 513, 530], np.int32)  # each of them one query of a batch
    decoded = riffle.paged_attention(
        whole.q[lengths - 1], whole.keys, whole.values, lengths, np.repeat(whole.page_table, 5, axis=0)
    )
    np.testing.assert_array_equal(bits(decoded), bits(expected[lengths - 1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frameworks(framework, dtype):
    case = Case(**MIXED, dtypes=(dtype, dtype))
    expected, expected_lse = case.run(return_lse=True)
    out, lse = case.run(make=framework.make, return_lse=True)
    np.testing.assert_array_equal(bits(framework.to_numpy(out)), bits(expected))
    np.testing.assert_array_equal(framework.to_numpy(lse), expected_lse)


@pytest.mark.parametrize("framework", FRAMEWORKS, indirect=True)
def test_every_argument_may_be_of_a_framework(framework):
    case = Case([5, 17], [5, 3])
    make = framework.make
    sinks = np.array([1, 2, 3, 4], np.float32)
    out = riffle.paged_attention(case.q, make(case.keys), make(case.values), make(case.kv_lens), make(case.page_table),
                                 cu_q_lens=make(case.cu_q_lens), sinks=make(sinks))
    assert type(out) is np.ndarray
    np.testing.assert_array_equal(out, case.run(sinks=sinks))


def test_views_are_read_in_place():
    case = Case([37, 5], [2, 1])
    expected = case.run()
    # One array with everything in it, apart by odd strides.
    pages, kv_heads, page_size, dim = case.keys.shape
    pool = np.full((kv_heads, pages + 2, 2, page_size, dim + 3), np.nan, np.float32)
    pool[:, 1:-1, 0, :, :dim] = case.keys.transpose(1, 0, 2, 3)
    pool[:, 1:-1, 1, :, :dim] = case.values.transpose(1, 0, 2, 3)
    keys, values = pool[:, 1:-1, 0, :, :dim], pool[:, 1:-1, 1, :, :dim]
    q = np.ascontiguousarray(case.q[::-1].transpose(1, 0, 2)).transpose(1, 0, 2)[::-1]
    table = np.asfortranarray(case.page_table)
    arguments = {"cu_q_lens": np.repeat(case.cu_q_lens, 2)[::2]}
    for layout, axes in AXES.items():
        views = [x.transpose(AXES["JAX"]).transpose(axes) for x in (keys, values)]
        out = riffle.paged_attention(q, *views, case.kv_lens, table, layout=layout, **arguments)
        np.testing.assert_array_equal(out, expected)


def test_nothing_is_copied():
    one_row = np.ones(128, np.float32)
    huge = np.lib.stride_tricks.as_strided(one_row, (1 << 20, 8, 16, 128), (0, 0, 0, 4))  # 64 GB, were it copied
    q = np.ones((1, 8, 128), np.float32)
    page_table = np.array([[0, 1 << 19, 7, (1 << 20) - 1]], np.int32)
    tracemalloc.start()
    out = riffle.paged_attention(q, huge, huge, np.array([64], np.int32), page_table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(out, 1, rtol=1e-6)
    assert peak < 1 << 16


@pytest.mark.parametrize("framework", WRITABLE, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out(framework, dtype):
    case = Case([9, 30], [2, 1], dtypes=(dtype, dtype))
    expected = case.run()
    wide = np.full((3, 5, 40), 7, np.float32).astype(dtype)
    out = framework.make(wide)[:, 1:, :32]
    result = case.run(make=framework.make, out=out)
    assert result is out
    np.testing.assert_array_equal(bits(wide[:, 1:, :32]), bits(expected))
    assert (wide[:, 0] == 7).all() and (wide[:, :, 32:] == 7).all()
    result, lse = case.run(make=framework.make, out=out, return_lse=True)
    assert result is out and tuple(lse.shape) == (3, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sinks_of_any_dtype(dtype):
    case = Case([5, 0], heads=(8, 2))
    sinks = np.array([0.5, -2, 3, 0, 2.0**-24, -np.inf, -0.0, 100]).astype(dtype)
    out, lse = case.run(sinks=sinks, return_lse=True)
    case.check(out, lse, sinks=sinks.astype(np.float64))
    np.testing.assert_array_equal(lse[1], sinks.astype(np.float32))  # of no key at all
    assert (out[1] == 0).all()
    np.testing.assert_array_equal(case.run(sinks=np.repeat(sinks, 2)[::2]), out)


def test_mask_value_has_no_effect():
    case = Case([5, 9])
    np.testing.assert_array_equal(case.run(mask_value=-2.3819763e38), case.run())
    with pytest.raises(ValueError, match="mask_value = -1 is not"):
        case.run(mask_value=-1)


def test_torch_scaled_dot_product_attention():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    case = Case([160, 33, 96], [160, 33, 32], heads=(8, 2), dim=64, page_size=16)
    out = torch.from_numpy(case.run())
    for b, (begin, end) in enumerate(itertools.pairwise(case.cu_q_lens)):
        q, k, v = (torch.from_numpy(x).transpose(0, 1)[None] for x in (case.q[begin:end], case.k[b], case.v[b]))
        q_len, kv_len = end - begin, len(case.k[b])
        mask = torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        torch.testing.assert_close(out[begin:end], expected[0].transpose(0, 1), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("page_size", [1, 5, 16])
def test_a_cache_is_attended_to(dtype, page_size):
    kv_lens = [20, 0, 23, 7]
    case = Case(kv_lens, heads=(6, 3), dim=48, dtypes=(dtype, dtype))
    cache = riffle.KvCache(layers=2, kv_heads=3, head_dim=48, pages=60, page_size=page_size, dtype=str(dtype))
    seqs = [cache.create() for _ in kv_lens]
    for layer, (seq, k, v) in itertools.product([1, 0], zip(seqs, case.k, case.v)):
        cache.extend(seq, len(k) - cache.length(seq))
        # The other layer holds something else.
        k, v = (k, v) if layer == 1 else (v, k)
        for begin in range(0, len(k), 6):
            cache.write(layer, seq, begin, k[begin : begin + 6], v[begin : begin + 6])
    case.check(*riffle.paged_attention(case.q, cache.keys(1), cache.values(1), *cache.batch(seqs), return_lse=True))

    # A fork that goes on its own way leaves the first one's answer as it was.
    before = riffle.paged_attention(case.q[:1], cache.keys(1), cache.values(1), *cache.batch(seqs[:1]))
    fork = cache.fork(seqs[0])
    cache.extend(fork, 1)
    cache.write(1, fork, 20, case.k[3][:1], case.v[3][:1])
    after = riffle.paged_attention(case.q[[0, 0]], cache.keys(1), cache.values(1), *cache.batch([seqs[0], fork]))
    np.testing.assert_array_equal(bits(after[:1]), bits(before))
    assert not np.array_equal(after[0], after[1])


def test_a_cache_of_empty_sequences():
    cache = riffle.KvCache(layers=1, kv_heads=1, head_dim=32, pages=2)
    q = np.ones((2, 2, 32), BFLOAT16)
    out, lse = riffle.paged_attention(
        q, cache.keys(0), cache.values(0), *cache.batch([cache.create(), cache.create()]), return_lse=True
    )
    assert (out == 0).all() and (lse == -np.inf).all()
    nothing = riffle.paged_attention(q[:0], cache.keys(0), cache.values(0), *cache.batch([]))
    assert nothing.shape == (0, 2, 32) and nothing.dtype == BFLOAT16


def test_bad_arguments_write_nothing():
    case = Case([5, 17], [2, 3])
    table, lens, cu = case.page_table, case.kv_lens, case.cu_q_lens
    good = {"q": case.q, "keys": case.keys, "values": case.values}
    good |= {"kv_lens": lens, "page_table": table, "cu_q_lens": cu}

    def table_with(page):
        changed = table.copy()
        changed[1, 4] = page
        return changed

    i32 = np.int32
    overlapping = np.lib.stride_tricks.as_strided(case.q.copy(), (5, 4, 32), (0, 128, 4))
    cases = [
        (ValueError, "page_table.1, 4. = 9 but the pool has 9 pages", {"page_table": table_with(9)}),
        (ValueError, "page_table.1, 4. = -1 ", {"page_table": table_with(-1)}),
        (ValueError, "page_table has shape", {"page_table": table[:1]}),
        (ValueError, "page_table has shape", {"page_table": table[0]}),
        (ValueError, "kv_lens.1. = 17 is not in 0..16", {"page_table": np.ascontiguousarray(table[:, :4])}),
        (ValueError, "kv_lens.0. = -1", {"kv_lens": np.array([-1, 17], i32)}),
        (ValueError, "3 queries but kv_lens.1. = 2", {"kv_lens": np.array([5, 2], i32)}),
        (ValueError, "cu_q_lens.0..1. = 0, 6 ", {"cu_q_lens": np.array([0, 6, 5], i32)}),
        (ValueError, "cu_q_lens.0..1. = 0, -1 ", {"cu_q_lens": np.array([0, -1, 5], i32)}),
        (ValueError, "cu_q_lens.2. = 4", {"cu_q_lens": np.array([0, 2, 4], i32)}),
        (ValueError, "cu_q_lens.0. = 1", {"cu_q_lens": np.array([1, 2, 5], i32)}),
        (ValueError, "cu_q_lens = 2", {"cu_q_lens": np.array([0, 5], i32)}),
        (ValueError, "cu_q_lens is empty", {"cu_q_lens": np.array([], i32)}),
        (ValueError, "q.tokens = 5 but the number of kv_lens .* = 2", {"cu_q_lens": None}),
        (ValueError, "q.head_dim = 20 is not a multiple of 8 from 8", {"q": case.q[:, :, :20]}),
        (ValueError, "q.head_dim = 24 but keys.head_dim", {"q": case.q[:, :, :24]}),
        (ValueError, "q.heads = 3 is not a multiple of keys.kv_heads = 2", {"q": case.q[:, :3]}),
        (ValueError, "q has shape", {"q": case.q[0]}),
        (ValueError, "q's last axis .* contiguous", {"q": case.q[:, :, ::-1]}),
        (ValueError, "keys has shape .* page_size, head_dim", {"keys": case.keys[0]}),
        (ValueError, "values.num_pages", {"values": case.values[1:]}),
        (ValueError, "values.kv_heads = 1 but keys.kv_heads = 2", {"values": case.values[:, :1]}),
        (ValueError, "layout = 'HNd' is none of 'HND', 'NHD', 'JAX'", {"layout": "HNd"}),
        (ValueError, "layout = None", {"layout": None}),
        (ValueError, "window = 0", {"window": 0}),
        (ValueError, "window_right = -1", {"causal": False, "window_right": -1}),
        (ValueError, "window_right = 2 but causal", {"window_right": 2}),
        (TypeError, "window_right must be an int", {"causal": False, "window_right": 1.5}),
        (ValueError, "window = -", {"window": -(10**30)}),
        (ValueError, "soft_cap = 0", {"soft_cap": 0}),
        (ValueError, "scale = nan", {"scale": math.nan}),
        (ValueError, "scale = inf", {"scale": 1e300}),
        (ValueError, "sinks = 3 but q.heads = 4", {"sinks": np.zeros(3, np.float32)}),
        (ValueError, "sinks is empty", {"sinks": np.zeros(0, np.float32)}),
        (ValueError, "sinks.2. = inf", {"sinks": np.array([0, 0, np.inf, 0], np.float32)}),
        (TypeError, "q has dtype float64", {"q": case.q.astype(np.float64)}),
        (TypeError, "values has dtype float64; float32, float16", {"values": case.values.astype(np.float64)}),
        (TypeError, "kv_lens has dtype float64", {"kv_lens": lens.astype(np.float64)}),
        (TypeError, "page_table has dtype float32", {"page_table": table.astype(np.float32)}),
        (TypeError, "cu_q_lens has dtype float64", {"cu_q_lens": cu.astype(np.float64)}),
        (TypeError, "sinks has dtype int32", {"sinks": np.zeros(4, i32)}),
        (TypeError, "q must be an array", {"q": [[[1.0]]]}),
        (TypeError, "scale must be a number", {"scale": "1"}),
        (TypeError, "window must be an int", {"window": 1.5}),
        (ValueError, "out has shape", {"out": np.zeros((5, 4, 40), np.float32)}),
        (ValueError, "out's last axis", {"out": np.zeros((5, 4, 64), np.float32)[:, :, ::2]}),
        (TypeError, "out has dtype", {"out": np.zeros((5, 4, 32), np.float16)}),
        (ValueError, "out overlaps itself", {"out": overlapping}),
        (ValueError, "out shares memory with q", {"out": case.q}),
    ]
    unchanged = {name: array.copy() for name, array in good.items()}
    out = np.full((5, 4, 32), 7, np.float32)
    for error, text, change in cases:
        with pytest.raises(error, match=text):
            riffle.paged_attention(**({"out": None if "q" in change else out} | good | change))
        assert (out == 7).all(), text
        for name, array in good.items():
            np.testing.assert_array_equal(array, unchanged[name])
    read_only = np.zeros((5, 4, 32), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        riffle.paged_attention(**good, out=read_only)
    riffle.paged_attention(**good, out=out)
    assert (out != 7).all()


def test_arrays_of_jax_are_not_written():
    jnp = pytest.importorskip("jax.numpy", reason="JAX is not installed")
    case = Case([5])
    with pytest.raises(TypeError, match="out is a JAX array, which is immutable"):
        case.run(make=jnp.asarray, out=jnp.zeros((1, 4, 32)))


def test_threads():
    cases = [Case([400, 30, 7], [20, 1, 2], seed=seed) for seed in range(4)]
    expected = [case.run() for case in cases]
    wrong = []

    def work(case, wanted):
        for _ in range(20):
            if not np.array_equal(case.run(), wanted):
                wrong.append(case)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(cases, expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

"""riffle.jax.indexer_top_k and sparse_attention: the bits of the same calls outside of JAX, under jit and vmap."""

import functools

import numpy as np
import pytest
import riffle

jax = pytest.importorskip("jax", reason="JAX is not installed")
import jax.numpy as jnp  # noqa: E402
import riffle.jax  # noqa: E402

RuntimeFailure = jax.errors.JaxRuntimeError


@pytest.fixture
def rng():
    return np.random.default_rng(8)


def batch(rng, dim=64, pages=12, size=16):
    table = np.array([[3, 7, 0, 11], [5, 2, 9, 1]], np.int32)
    return dict(q=rng.standard_normal((5, 6, dim), np.float32), weights=rng.standard_normal((5, 6), np.float32),
                kv_lens=np.array([60, 37], np.int32), page_table=table, cu_q_lens=np.array([0, 2, 5], np.int32)), (pages, size, dim)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "e4m3", "deepgemm", "mxfp4"])
def test_indexer_top_k(rng, kind):
    call, (pages, size, dim) = batch(rng)
    keys = rng.standard_normal((pages * size, dim), np.float32)
    slots = np.arange(pages * size)
    if kind in ("float32", "bfloat16"):
        call["keys"] = jnp.asarray(keys.reshape(pages, size, dim)).astype(kind)
    elif kind in ("deepgemm", "mxfp4"):
        row = dim + 4 if kind == "deepgemm" else dim // 2 + 4
        call["keys"] = np.zeros((pages, size * row), np.uint8)
        riffle.write_index_keys(keys, slots, call["keys"], format=kind)
        call["key_format"] = kind
    else:
        call["keys"] = np.zeros((pages, size, dim), np.int8 if kind == "int8" else np.uint8)
        call["key_scales"] = np.zeros((pages, size), np.float32)
        riffle.write_index_keys(keys, slots, call["keys"], call["key_scales"], format=kind)
        if kind == "e4m3":
            call["keys"] = jax.lax.bitcast_convert_type(jnp.asarray(call["keys"]), jnp.float8_e4m3fn)
    for options in ({}, dict(slots=True), dict(block=4, reduce="mean", first_blocks=1, incomplete_tail=True), dict(ratio=4, activation="none")):
        want = np.asarray(riffle.indexer_top_k(**call, k=7, **options))
        inside = functools.partial(riffle.jax.indexer_top_k, k=7, **options, **({"key_format": kind} if "key_format" in call else {}))
        arrays = {name: jnp.asarray(x) for name, x in call.items() if name != "key_format"}
        np.testing.assert_array_equal(jax.jit(inside)(**arrays), want)
        np.testing.assert_array_equal(inside(**arrays), want)


def test_indexer_top_k_of_candidates_under_vmap(rng):
    call, (pages, size, dim) = batch(rng)
    keys = jnp.asarray(rng.standard_normal((pages, size, dim), np.float32))
    many = jnp.asarray(rng.standard_normal((3, 5, 6, dim), np.float32))
    candidates = jnp.asarray(rng.integers(-1, 60, (5, 20)).astype(np.int32))
    one = lambda q: riffle.jax.indexer_top_k(  # noqa: E731
        q, None, keys, call["kv_lens"], call["page_table"], 4, cu_q_lens=call["cu_q_lens"], candidates=candidates)
    got = jax.jit(jax.vmap(one))(many)
    for q, row in zip(many, got):
        want = riffle.indexer_top_k(np.asarray(q), None, np.asarray(keys), call["kv_lens"], call["page_table"], 4, cu_q_lens=call["cu_q_lens"],
                                    candidates=np.asarray(candidates))
        np.testing.assert_array_equal(row, want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sparse_attention(rng, dtype):
    q = jnp.asarray(rng.standard_normal((3, 5, 64), np.float32)).astype(dtype)
    rows = jnp.asarray(rng.standard_normal((8, 5, 64), np.float32)).astype(dtype)
    more = jnp.asarray(rng.standard_normal((30, 64), np.float32)).astype(dtype)
    slots, named = rng.integers(-1, 40, (3, 9)).astype(np.int32), rng.integers(0, 30, (3, 4)).astype(np.int32)
    lengths, sinks = np.array([2, 0, 4], np.int32), rng.standard_normal(5, np.float32)
    want, want_lse = riffle.sparse_attention(q, rows, slots, value_dim=32, sinks=sinks, return_lse=True, extra=[(more, named, lengths, "plain")])

    @jax.jit
    def call(q, rows, slots, more, named, lengths, sinks):
        return riffle.jax.sparse_attention(q, rows, slots, value_dim=32, sinks=sinks, return_lse=True, extra=[(more, named, lengths, "plain")])

    out, lse = call(q, rows, slots, more, named, lengths, sinks)
    assert out.dtype == q.dtype
    np.testing.assert_array_equal(np.asarray(out, np.float32), np.asarray(want, np.float32))
    np.testing.assert_array_equal(lse, want_lse)
    batched = jax.vmap(lambda s: riffle.jax.sparse_attention(q, rows, s))(jnp.stack([slots, slots[::-1]]))
    np.testing.assert_array_equal(np.asarray(batched[1], np.float32), np.asarray(riffle.sparse_attention(q, rows, slots[::-1].copy()), np.float32))


@pytest.mark.parametrize("row_format", ["mla656", "mla584"])
def test_coded_rows(rng, row_format):
    d, size = (576, 656) if row_format == "mla656" else (512, 584)
    pool = rng.integers(0, 64, (4, 8, size), dtype=np.uint8)
    if row_format == "mla656":
        pool[..., 512:528] = np.full((4, 8, 4), 0.25, np.float32).view(np.uint8)
    else:
        pool.reshape(4, -1)[:, 8 * 576 :] = 120
    q, slots = rng.standard_normal((2, 4, d), np.float32), rng.integers(0, 32, (2, 6)).astype(np.int32)
    want = riffle.sparse_attention(q, pool, slots, row_format=row_format, scale=0.01)
    got = jax.jit(functools.partial(riffle.jax.sparse_attention, row_format=row_format, scale=0.01))(q, pool, slots)
    np.testing.assert_array_equal(got, want)


FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
BLOCKS = {"q8_0": 34, "q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "iq4_nl": 18}


def rows_of(rng, kind, pages=3, size=8, d=128):
    """Rows as riffle.write_kv makes them."""
    pool = np.zeros((pages, size, d // 32 * BLOCKS[kind] if kind in BLOCKS else d), np.uint8 if kind in BLOCKS else jnp.dtype(kind))
    unread = np.zeros((pages, size, 1, 32), np.float32)
    scales = None if kind in BLOCKS else np.zeros((pages, size, 1), np.float32)
    x = rng.standard_normal((pages * size, 1, d), np.float32)
    riffle.write_kv(x, x[..., :32], np.arange(pages * size), pool[:, :, None], unread, layout="NHD", key_format=kind if kind in BLOCKS else None,
                    key_scales=scales, compute_scales=scales is not None)
    return pool, None if scales is None else scales[..., 0]


@pytest.mark.parametrize("kind", ["int8", *FLOAT8, *BLOCKS])
def test_rows_in_every_format(rng, kind):
    """Scales of the tensor, of pages, of rows and of groups, in every dtype of scales."""
    pool, scales = rows_of(rng, kind)
    row_format = kind if kind in BLOCKS else "plain"
    q, slots = rng.standard_normal((2, 4, 128), np.float32), rng.integers(-1, 24, (2, 6)).astype(np.int32)
    sides = [scales]
    if kind not in BLOCKS:
        sides += [None, 0.25, np.array(0.5, np.float16), scales[:, :1], scales[0], np.float32(scales[..., None] * [1, 2, 0.5, 4]),
                  np.ones((1, 1, 2), np.float32) / 4, jnp.full((3, 8, 1), 2, jnp.float8_e8m0fnu)]
    for side in sides:
        want = riffle.sparse_attention(q, pool, slots, row_format=row_format, row_scales=side)
        assert np.isfinite(want).all() and want.any()
        attend = functools.partial(riffle.jax.sparse_attention, row_format=row_format)
        np.testing.assert_array_equal(attend(q, pool, slots, row_scales=side), want)
        np.testing.assert_array_equal(jax.jit(attend)(q, pool, slots, row_scales=side), want)
        if kind in FLOAT8:  # codes in uint8
            codes = pool.view(np.uint8)
            np.testing.assert_array_equal(riffle.jax.sparse_attention(q, codes, slots, row_format=kind, row_scales=side), want)
        flat = riffle.jax.sparse_attention(q, pool.reshape(24, -1), slots, row_format=row_format)
        np.testing.assert_array_equal(flat, riffle.sparse_attention(q, pool, slots, row_format=row_format))


def test_scopes_of_different_formats(rng):
    """Each of up to eight scopes has a format and scales of its own; vmap over rows and their scales."""
    q = rng.standard_normal((2, 4, 128), np.float32)
    named = lambda: rng.integers(0, 24, (2, 5)).astype(np.int32)  # noqa: E731
    scopes = [(*rows_of(rng, kind), kind if kind in BLOCKS else "plain", named()) for kind in ("int8", *BLOCKS, "float8_e5m2")]
    (rows, scales, _, slots), *more = scopes
    extra = [(rows, slots, None, row_format, scales) for rows, scales, row_format, slots in more]
    want, want_lse = riffle.sparse_attention(q, rows, slots, row_scales=scales, extra=extra, return_lse=True)
    out, lse = riffle.jax.sparse_attention(q, rows, slots, row_scales=scales, extra=extra, return_lse=True)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(lse, want_lse)
    both = np.stack([rows, rows[::-1]]), np.stack([scales, 2 * scales])
    got = jax.jit(jax.vmap(lambda r, s: riffle.jax.sparse_attention(q, r, slots, row_scales=s)))(*both)
    for one, (r, s) in zip(got, zip(*both)):
        np.testing.assert_array_equal(one, riffle.sparse_attention(q, r.copy(), slots, row_scales=s))


def test_a_decode_step_is_one_program(rng):
    keys, rows = rng.standard_normal((6, 16, 32), np.float32), rng.standard_normal((96, 64), np.float32)
    table, lens = np.arange(6, dtype=np.int32)[None], np.array([90], np.int32)

    @jax.jit
    def step(q_index, weights, q):
        named = riffle.jax.indexer_top_k(q_index, weights, keys, lens, table, 20, slots=True)
        return riffle.jax.sparse_attention(q, rows, named, value_dim=48)

    q_index, weights, q = (rng.standard_normal(shape, np.float32) for shape in ((1, 4, 32), (1, 4), (1, 3, 64)))
    named = riffle.indexer_top_k(q_index, weights, keys, lens, table, 20, slots=True)
    np.testing.assert_array_equal(step(q_index, weights, q), riffle.sparse_attention(q, rows, named, value_dim=48))


def test_errors(rng):
    call, (pages, size, dim) = batch(rng)
    call["keys"] = np.zeros((pages, size, dim), np.float32)
    top = functools.partial(riffle.jax.indexer_top_k, **call)
    for options, kind, text in (
        (dict(k=0), ValueError, "k = 0 is not in 1"), (dict(k=3, ratio=0), ValueError, "ratio = 0"),
        (dict(k=3, reduce="sum"), ValueError, "reduce = 'sum' is none of 'max', 'mean'"), (dict(k=3, key_format="fp4"), ValueError, "key_format = 'fp4'"),
        (dict(k=3, weights=call["weights"][:2]), ValueError, "weights has shape"), (dict(k=3, slots=1), TypeError, "slots"),
        (dict(k=3, keys=call["keys"][:, :, :32]), ValueError, "keys has shape"), (dict(k=3, cu_q_lens=None), ValueError, "give cu_q_lens"),
        (dict(k=3, candidates=np.zeros((5, 2))), TypeError, "candidates must be int32"),
    ):
        with pytest.raises(kind, match=text):
            top(**options)
    with pytest.raises(RuntimeFailure, match=r"page_table\[0,0\] = 99 but the pool has 12 pages"):
        top(k=3, page_table=np.full((2, 4), 99, np.int32))
    rows, slots, q = np.zeros((9, 32), np.float32), np.zeros((2, 3), np.int32), np.zeros((2, 2, 32), np.float32)
    attend = riffle.jax.sparse_attention
    for bad, kind, text in (
        (lambda: attend(q, rows, slots, value_dim=24), ValueError, "value_dim = 24"), (lambda: attend(q, rows[:, :16], slots), ValueError, "rows has shape"),
        (lambda: attend(q, rows, slots[:1]), ValueError, "slots has shape"),
        (lambda: attend(q, rows, slots, sinks=np.zeros(3, np.float32)), ValueError, "sinks has shape"),
        (lambda: attend(q, rows, slots, row_format="mla"), ValueError, "row_format = 'mla'"),
        (lambda: attend(q, rows, slots, invalid=0), ValueError, "invalid = 0"),
        (lambda: attend(q, rows, slots.astype(np.float32)), TypeError, "slots must be int32"),
        (lambda: attend(q, None, slots), TypeError, "rows must be an array"),
        (lambda: attend(q, rows, slots, row_scales=2.0), TypeError, "rows has dtype float32; with row_scales it must be int8"),
        (lambda: attend(q, rows.astype(np.int8), slots, row_scales=np.ones(3, np.float32)), ValueError, r"row_scales has shape \(3,\)"),
        (lambda: attend(q, rows.astype(np.int8), slots, row_scales=np.ones((9, 3), np.float32)), ValueError, r"row_scales has shape \(9, 3\)"),
        (lambda: attend(q, rows.astype(np.int8), slots, row_scales=np.ones(9, np.int32)), TypeError, "row_scales must be float32"),
        (lambda: attend(q, rows.astype(np.int8), slots, row_scales="2"), TypeError, "row_scales must be a number, an array or None"),
        (lambda: attend(q, np.zeros((9, 33), np.uint8), slots, row_format="q8_0"), ValueError, "q8_0 has 34 bytes for each 32 elements"),
        (lambda: attend(q[..., :16], np.zeros((9, 18), np.uint8), slots, row_format="q4_0"), ValueError, "q4_0 has 18 bytes"),
        (lambda: attend(q, rows, slots, row_format="q8_0"), TypeError, "rows must be uint8, not float32"),
        (lambda: attend(q, rows, slots, row_format="float8_e5m2"), TypeError, "rows must be uint8, not float32"),
        (lambda: attend(q, np.zeros((9, 34), np.uint8), slots, row_format="q8_0", row_scales=1.0), TypeError, "rows has dtype uint8; with row_scales"),
    ):
        with pytest.raises(kind, match=text):
            bad()
    with pytest.raises(RuntimeFailure, match=r"slots\[1,2\] = 9 is not -1 or in 0..8"):
        attend(q, rows, np.array([[0, 1, 2], [3, 4, 9]], np.int32))
    skipped = attend(q, rows, np.array([[0, 1, 2], [3, 4, 9]], np.int32), invalid="ignore")
    assert skipped.shape == (2, 2, 32)

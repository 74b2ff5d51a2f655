"""riffle.jax.write_kv: the bytes of riffle.write_kv, in place where pages are donated; and attention over what it wrote."""

import ml_dtypes
import numpy as np
import pytest
import riffle

jax = pytest.importorskip("jax", reason="JAX is not installed")
import jax.numpy as jnp  # noqa: E402
import riffle.jax  # noqa: E402

F32, I32 = np.float32, np.int32
E4M3, E5M2, E8M0 = (np.dtype(getattr(ml_dtypes, name)) for name in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"))
BF16 = np.dtype(ml_dtypes.bfloat16)
LAYOUTS = {"HND": (5, 2, 8), "NHD": (5, 8, 2), "JAX": (2, 5, 8)}
BYTES = {"q8_0": 34, "q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "iq4_nl": 18}


def tokens(dim=64, count=6, dtype=F32, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((count, 2, dim), F32).astype(dtype) for _ in range(2)]


SLOTS = np.array([3, 17, -1, 39, 17, 0], I32)


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert str(a.dtype) == str(b.dtype)
        np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.dtype(F32), np.dtype(np.float16), BF16, E4M3, E5M2], ids=str)
def test_plain_pages(layout, dtype):
    pages = [np.full((*LAYOUTS[layout], 64), 0.5, F32).astype(dtype) for _ in range(2)]
    for slots in (SLOTS, SLOTS.astype(np.int64)):
        with jax.enable_x64(True):
            ours = riffle.jax.write_kv(*tokens(dtype=BF16), slots, *pages, layout=layout)
        expected = [x.copy() for x in pages]
        riffle.write_kv(*tokens(dtype=BF16), slots, *expected, layout=layout)
        same(ours, expected)
        assert (pages[0] == dtype.type(0.5)).all()  # an argument of NumPy is not donated


@pytest.mark.parametrize("form", BYTES)
def test_block_formats(form):
    pages = [np.zeros((2, 5, 8, 2 * BYTES[form]), np.uint8) for _ in range(2)]
    ours = riffle.jax.write_kv(*tokens(), SLOTS, *pages, key_format=form, value_format=form)
    riffle.write_kv(*tokens(), SLOTS, *pages, layout="JAX", key_format=form, value_format=form)
    same(ours, pages)


@pytest.mark.parametrize("scale_dtype", [np.dtype(F32), BF16, E8M0], ids=str)
@pytest.mark.parametrize("groups", [None, 1, 2])
@pytest.mark.parametrize("dtype", [np.dtype(np.int8), E4M3, E5M2], ids=str)
def test_scales(dtype, groups, scale_dtype):
    shape = (2, 5, 8) if groups is None else (2, 5, 8, groups)
    scales = [np.full(shape, 0.25, F32).astype(scale_dtype) for _ in range(2)]
    pages = [np.zeros((2, 5, 8, 64), dtype) for _ in range(2)]
    for compute in (False, True):
        given = [x.copy() for x in (*pages, *scales)]
        options = dict(compute_scales=compute)
        ours = riffle.jax.write_kv(*tokens(), SLOTS, *pages, key_scales=scales[0], value_scales=scales[1], **options)
        riffle.write_kv(*tokens(), SLOTS, *given[:2], layout="JAX", key_scales=given[2], value_scales=given[3], **options)
        same(ours, given if compute else given[:2])


def test_one_side_has_scales():
    pages, scales = [np.zeros((2, 5, 8, 64), F32), np.zeros((2, 5, 8, 64), np.int8)], np.zeros((2, 5, 8), F32)
    ours = riffle.jax.write_kv(*tokens(), SLOTS, *pages, value_scales=scales, compute_scales=True)
    riffle.write_kv(*tokens(), SLOTS, *pages, layout="JAX", value_scales=scales, compute_scales=True)
    same(ours, [*pages, scales])
    ours = riffle.jax.write_kv(*tokens(), SLOTS, *pages, value_scales=0.5)
    riffle.write_kv(*tokens(), SLOTS, *pages, layout="JAX", value_scales=0.5)
    same(ours, pages)


def test_donated_pages_are_written_in_place():
    write = jax.jit(riffle.jax.write_kv, donate_argnums=(3, 4))
    pages = [jnp.zeros((2, 5, 8, 64)) + 0 for _ in range(2)]
    addresses = [x.unsafe_buffer_pointer() for x in pages]
    written = write(*tokens(), SLOTS, *pages)
    assert [x.unsafe_buffer_pointer() for x in written] == addresses and all(x.is_deleted() for x in pages)
    text = write.lower(*tokens(), SLOTS, *(jnp.zeros((2, 5, 8, 64)) for _ in range(2))).compile().as_text()
    assert "copy(" not in text and "riffle_write_kv" in text


def test_pages_that_are_used_again_are_not_changed():
    def twice(keys, values, pages):
        first = riffle.jax.write_kv(keys, values, SLOTS, pages, pages)
        return first[0], pages + 0

    written, before = jax.jit(twice)(*tokens(), jnp.ones((2, 5, 8, 64)))
    assert (before == 1).all() and not (written == 1).all()


def test_decoding_in_a_loop():
    """Tokens are written one after another inside of lax.scan, and attended to."""
    (keys, values), count = tokens(count=20), 20
    q = np.random.default_rng(1).standard_normal((20, 4, 64), F32)
    table = np.array([[4, 0, 2]], I32)

    def step(pages, token):
        i, q, k, v = token
        slot = table[0][i // 8] * 8 + i % 8
        pages = riffle.jax.write_kv(k[None], v[None], slot[None], *pages)
        return pages, riffle.jax.paged_attention(q[None], *pages, i[None] + 1, table)[0]

    table = jnp.asarray(table)
    pages = tuple(jnp.zeros((2, 5, 8, 64)) for _ in range(2))
    _, out = jax.jit(lambda pages, xs: jax.lax.scan(step, pages, xs))(pages, (jnp.arange(count, dtype=I32), q, keys, values))
    held = [np.zeros((2, 5, 8, 64), F32) for _ in range(2)]
    slots = np.array([[4, 0, 2][i // 8] * 8 + i % 8 for i in range(count)])
    riffle.write_kv(keys, values, slots, *held, layout="JAX")
    lengths = np.arange(1, count + 1, dtype=I32)
    expected = riffle.paged_attention(q, *held, lengths, np.repeat(np.array([[4, 0, 2]], I32), count, 0), layout="JAX", scale=1.0)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", [E4M3, E5M2, np.dtype(np.int8)], ids=str)
@pytest.mark.parametrize("shape", [None, (), (2, 1, 1), (2, 5, 8), (2, 5, 8, 2), (1, 1, 1, 2)], ids=str)
def test_attention_over_formats(dtype, shape):
    rng = np.random.default_rng(3)
    pages = [(3 * rng.standard_normal((2, 5, 8, 64), F32)).astype(dtype) for _ in range(2)]
    scales = [None, None] if shape is None else [rng.random(shape, F32) + 0.1 for _ in range(2)]
    if shape is None and dtype == np.int8:
        scales = [0.5, 0.25]
    q = rng.standard_normal((2, 4, 64), F32)
    lengths, table = np.array([20, 9], I32), np.array([[4, 0, 2], [3, 1, -1]], I32)
    options = dict(zip(("key_scales", "value_scales"), scales))
    ours = jax.jit(lambda *tensors: riffle.jax.paged_attention(*tensors, sm_scale=0.1, **options))(q, *pages, lengths, table)
    given = {name: np.float32(x) if np.ndim(x) == 0 and x is not None else x for name, x in options.items()}
    expected = riffle.paged_attention(q, *pages, lengths, table, layout="JAX", scale=0.1, **given)
    np.testing.assert_array_equal(ours, expected)
    prefill = riffle.jax.prefill_attention(q, *pages, 10, table[0], 0.1, **options)
    chunk = riffle.paged_attention(q, *pages, np.array([10], I32), table[:1], cu_q_lens=np.array([0, 2], I32), layout="JAX", scale=0.1, **given)
    np.testing.assert_array_equal(prefill, chunk.reshape(2, -1))


def test_formats_under_vmap():
    rng = np.random.default_rng(4)
    pages = [rng.standard_normal((3, 2, 5, 8, 64), F32).astype(E4M3) for _ in range(2)]
    scales = rng.random((3, 2, 5, 8), F32)
    q, lengths, table = rng.standard_normal((3, 2, 4, 64), F32), np.array([20, 9], I32), np.array([[4, 0, 2], [3, 1, -1]], I32)
    attend = lambda q, k, v, scales: riffle.jax.paged_attention(q, k, v, lengths, table, key_scales=scales)  # noqa: E731
    ours = jax.vmap(attend)(q, *pages, scales)
    for i in range(3):
        np.testing.assert_array_equal(ours[i], attend(q[i], pages[0][i], pages[1][i], scales[i]))


RIGHT = dict(keys=np.ones((1, 2, 64), F32), values=np.ones((1, 2, 64), F32), slots=np.array([0]),
             key_pages=np.zeros((2, 5, 8, 64), F32), value_pages=np.zeros((2, 5, 8, 64), F32))  # fmt: skip
INT8 = np.zeros((2, 5, 8, 64), np.int8)


@pytest.mark.parametrize("spoil, error, text", [
    (dict(keys=np.ones((1, 2, 32), F32)), ValueError, r"keys has shape \(1, 2, 32\); it must be \(1, 2, 64\)"),
    (dict(values=np.ones((2, 2, 64), F32)), ValueError, "values has shape"),
    (dict(keys=np.ones((1, 2, 64), np.int8)), TypeError, "keys must be float32"),
    (dict(slots=np.array([0.0])), TypeError, "slots must be int32 or int64, not float64"),
    (dict(slots=np.array([[0]])), ValueError, "slots has shape"),
    (dict(key_pages=np.zeros((2, 5, 8), F32)), ValueError, "key_pages has shape"),
    (dict(key_pages=np.zeros((2, 5, 8, 64), np.int16)), TypeError, "key_pages must be float32"),
    (dict(value_pages=np.zeros((2, 4, 8, 64), F32)), ValueError, "value_pages has shape"),
    (dict(key_pages=INT8), ValueError, "key_scales is None but key_pages are int8"),
    (dict(key_scales=0.5), TypeError, "key_pages has dtype float32; with key_scales"),
    (dict(key_pages=INT8, key_scales=np.zeros((3, 5, 8), F32)), ValueError, "key_scales has shape"),
    (dict(key_pages=INT8, key_scales=np.zeros((2, 5, 8, 3), F32)), ValueError, "key_scales has shape"),
    (dict(key_pages=INT8, key_scales=np.zeros((2, 5, 8), I32)), TypeError, "key_scales must be float32"),
    (dict(key_pages=INT8, key_scales=0.5, compute_scales=True), TypeError, "key_scales must be an array"),
    (dict(key_pages=INT8, key_scales=np.zeros((2, 1, 8), F32), compute_scales=True), ValueError, "key_scales has shape"),
    (dict(compute_scales=True), ValueError, "compute_scales = True but neither"),
    (dict(key_format="q9"), ValueError, "key_format = 'q9' is none of"),
    (dict(key_format="q8_0"), TypeError, "key_pages must be uint8"),
    (dict(layout="DNH"), ValueError, "layout = 'DNH'"),
    (dict(compute_scales=1), TypeError, "compute_scales must be a bool"),
])  # fmt: skip
def test_errors(spoil, error, text):
    riffle.jax.write_kv(**RIGHT)
    with pytest.raises(error, match=text):
        riffle.jax.write_kv(**RIGHT | spoil)


def test_a_slot_outside_of_the_pool_fails_when_it_runs():
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=r"slots\[0\] = 40 is neither -1 nor in the pool"):
        jax.block_until_ready(riffle.jax.write_kv(**RIGHT | dict(slots=np.array([40]))))

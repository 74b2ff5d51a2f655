"""riffle.jax.paged_attention and prefill_attention: against NumPy in double; under jit and vmap."""

import functools

import ml_dtypes
import numpy as np
import pytest
import riffle
from frameworks import DTYPES

jax = pytest.importorskip("jax", reason="JAX is not installed")
import jax.numpy as jnp  # noqa: E402
import riffle.jax  # noqa: E402
from jax_programs import only_custom_calls, same_bits  # noqa: E402

RuntimeFailure = jax.errors.JaxRuntimeError


@pytest.fixture
def rng():
    return np.random.default_rng(6)



FLOAT32 = np.dtype(np.float32)


class Pool:
    """Keys and values [kv_heads, pages, page_size, d], lengths and page_indices; what no sequence has is NaN."""

    def __init__(self, rng, lengths, kv_heads=2, page_size=16, dim=64, dtype=FLOAT32, most_pages=None):
        self.lengths = np.array(lengths, np.int32)
        needed = -(-self.lengths // page_size)
        order = rng.permutation(int(needed.sum()) + 2)
        self.page_indices = np.full((len(lengths), most_pages or max(1, needed.max())), -1, np.int32)
        for b, end in enumerate(np.cumsum(needed)):
            self.page_indices[b, : needed[b]] = order[end - needed[b] : end]
        shape = (kv_heads, len(order), page_size, dim)
        used = np.zeros(shape[1:3], bool)
        for pages, length in zip(self.page_indices, self.lengths):
            used[pages[np.arange(length) // page_size], np.arange(length) % page_size] = True
        self.keys, self.values = (
            np.where(used[:, :, None], rng.standard_normal(shape, np.float32), np.nan).astype(dtype) for _ in range(2)
        )

    def rows(self, pages, b):
        """[length, kv_heads, d] of a sequence, in double."""
        positions = np.arange(self.lengths[b])
        page = self.page_indices[b][positions // pages.shape[2]]
        return pages[:, page, positions % pages.shape[2]].astype(np.float64).swapaxes(0, 1)

    @property
    def arguments(self):
        return self.keys, self.values, self.lengths, self.page_indices


def attention(q, keys, values, scale, soft_cap=None):
    """q [q_heads, d] against keys, values [length, kv_heads, d], in double."""
    group = q.shape[0] // keys.shape[1]
    keys, values = keys.repeat(group, 1), values.repeat(group, 1)
    logits = np.einsum("hd,nhd->hn", q.astype(np.float64), keys) * scale
    if soft_cap is not None:
        logits = soft_cap * np.tanh(logits / soft_cap)
    if logits.shape[1] == 0:
        return np.zeros(q.shape)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return np.einsum("hn,nhd->hd", weights / weights.sum(1, keepdims=True), values)


def decode_reference(q, pool, keys, values, scale=1.0, soft_cap=None):
    rows = [attention(q[b], pool.rows(keys, b), pool.rows(values, b), scale, soft_cap) for b in range(len(q))]
    return np.array(rows).reshape(q.shape)


def close(got, expected):
    tolerance = {"float32": 5e-5, "float16": 2e-3, "bfloat16": 2e-2}[str(got.dtype)]
    np.testing.assert_allclose(np.asarray(got).astype(np.float64), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("q_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kv_dtype", DTYPES, ids=str)
def test_paged_attention(rng, q_dtype, kv_dtype):
    for q_heads, kv_heads, page_size, dim in [(2, 2, 16, 64), (8, 1, 8, 128), (12, 4, 32, 40)]:
        pool = Pool(rng, [0, 1, 37, 300], kv_heads, page_size, dim, kv_dtype)
        q = (rng.standard_normal((4, q_heads, dim)) * 0.3).astype(q_dtype)
        got = jax.jit(riffle.jax.paged_attention)(q, *pool.arguments)
        assert got.dtype == q_dtype and not np.asarray(got)[0].any()
        close(got, decode_reference(q, pool, pool.keys, pool.values))
        for cap in (None, 5.0):
            got = riffle.jax.paged_attention(q, *pool.arguments, sm_scale=0.2, attn_logits_soft_cap=cap)
            close(got, decode_reference(q, pool, pool.keys, pool.values, 0.2, cap))
            expected = riffle.paged_attention(q, *pool.arguments, layout="JAX", scale=0.2, soft_cap=cap)
            assert same_bits(got, expected)


def quantized(pages, scale_dtype, kind):
    """Pages in int8, and what they stand for in double."""
    scales = np.abs(pages).max(-1, keepdims=True).astype(scale_dtype)
    weight = np.nan_to_num(np.rint(pages * (127.5 / scales.astype(np.float32)))).clip(-128, 127).astype(np.int8)
    return kind(jnp.asarray(weight), jnp.asarray(scales)), weight * scales.astype(np.float64) / 127.5


@pytest.mark.parametrize("q_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale_dtype", DTYPES, ids=str)
def test_int8_pages(rng, q_dtype, scale_dtype):
    from jax.experimental.pallas.ops.tpu.paged_attention import quantization_utils

    for kind in (riffle.jax.QuantizedTensor, quantization_utils.QuantizedTensor):
        pool = Pool(rng, [5, 0, 200, 33], 2, 16, 64)
        q = (rng.standard_normal((4, 6, 64)) * 0.3).astype(q_dtype)
        (keys, exact_keys), (values, exact_values) = (quantized(p, scale_dtype, kind) for p in (pool.keys, pool.values))
        call = jax.jit(riffle.jax.paged_attention)
        close(call(q, keys, values, pool.lengths, pool.page_indices), decode_reference(q, pool, exact_keys, exact_values))
        assert only_custom_calls(call, q, keys, values, pool.lengths, pool.page_indices)


def test_int8_is_what_jax_quantizes(rng):
    """quantize_to_int8 of JAX, and back: the same to float32's rounding."""
    from jax.experimental.pallas.ops.tpu.paged_attention import quantization_utils

    pool = Pool(rng, [100, 17], dtype=np.dtype(np.float32))
    pages = [jnp.nan_to_num(p) for p in (pool.keys, pool.values)]
    q = jnp.asarray(rng.standard_normal((2, 4, 64), np.float32))
    tensors = [quantization_utils.quantize_to_int8(p) for p in pages]
    back = [quantization_utils.unquantize_from_int8(t, jnp.float32) for t in tensors]
    np.testing.assert_allclose(riffle.jax.paged_attention(q, *tensors, pool.lengths, pool.page_indices),
                               riffle.jax.paged_attention(q, *back, pool.lengths, pool.page_indices),
                               rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 16, 30])
def test_prefill_attention(rng, dtype, length):
    chunk, page_size = 8, 4
    pool = Pool(rng, [length], 2, page_size, 32, dtype, most_pages=9)
    q = rng.standard_normal((chunk, 4, 32)).astype(dtype)
    first = (max(1, -(-length // chunk)) - 1) * chunk
    arguments = q, pool.keys, pool.values, length, pool.page_indices[0]
    for sm_scale in (None, 0.3):
        got = riffle.jax.prefill_attention(*arguments, sm_scale)
        assert got.shape == (chunk, 4 * 32) and got.dtype == dtype
        keys, values = pool.rows(pool.keys, 0), pool.rows(pool.values, 0)
        expected = [attention(q[r], keys[: first + r + 1], values[: first + r + 1], sm_scale or 32**-0.5)
                    if first + r < length else np.zeros((4, 32)) for r in range(chunk)]
        close(got, np.array(expected).reshape(chunk, -1))
    assert not np.asarray(got)[length - first :].any()
    for form in (jnp.int32(length), jnp.array([length], jnp.int32)):
        assert same_bits(jax.jit(riffle.jax.prefill_attention)(*arguments[:3], form, arguments[4]),
                         riffle.jax.prefill_attention(*arguments))


@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_window_of_paged_attention(rng, window):
    pool = Pool(rng, [0, 1, 37, 300])
    q = rng.standard_normal((4, 4, 64), np.float32) * np.float32(0.3)
    got = jax.jit(riffle.jax.paged_attention, static_argnames="window")(q, *pool.arguments, window=window)
    keys, values = ([pool.rows(pages, b)[-(window or 1000) :] for b in range(4)] for pages in (pool.keys, pool.values))
    close(got, np.array([attention(*row, 1.0) for row in zip(q, keys, values)]))


@pytest.mark.parametrize("options", [
    dict(causal=False), dict(window=3), dict(window=3, causal=False), dict(window_right=0, causal=False), dict(window_right=2, causal=False),
    dict(window=4, window_right=1, causal=False), dict(window=50, window_right=50, causal=False), dict(window=6, window_right=0),
], ids=str)
@pytest.mark.parametrize("length", [0, 5, 8, 13, 30])
def test_windows_of_prefill_attention(rng, options, length):
    chunk = 8
    pool = Pool(rng, [length], 2, 4, 32, most_pages=9)
    q = rng.standard_normal((chunk, 4, 32), np.float32)
    first = (max(1, -(-length // chunk)) - 1) * chunk
    got = jax.jit(functools.partial(riffle.jax.prefill_attention, **options))(q, pool.keys, pool.values, length, pool.page_indices[0])
    keys, values = pool.rows(pool.keys, 0), pool.rows(pool.values, 0)
    expected = np.zeros((chunk, 4, 32))
    for r in range(min(chunk, length - first)):
        position, window, right = first + r, options.get("window"), options.get("window_right")
        begin = max(0, position - window + 1) if window else 0
        one_sided = options.get("causal", True) or (window and right is None)
        end = length if right is None and not one_sided else position + 1 + (right or 0)
        expected[r] = attention(q[r], keys[begin:end], values[begin:end], 32**-0.5)
    close(got, expected.reshape(chunk, -1))


@pytest.mark.parametrize("options, error, text", [
    (dict(window=0), ValueError, "window = 0 is not in 1.."), (dict(window_right=-1), ValueError, "window_right = -1 is not in 0.."),
    (dict(window_right=2), ValueError, "window_right = 2 but causal is set"), (dict(causal=1), TypeError, "causal must be a bool, not 1"),
    (dict(window_right="2"), TypeError, "window_right must be an int, not '2'"),
])
def test_wrong_windows_of_prefill_attention(options, error, text):
    pages = np.zeros((1, 1, 16, 32), F32)
    with pytest.raises(error, match=text):
        riffle.jax.prefill_attention(np.zeros((4, 1, 32), F32), pages, pages, 1, np.zeros(1, I32), **options)


def test_int64_lists(rng):
    """Where JAX has them: the same bits, alone and under vmap, and numbers beyond int32 are named, not wrapped."""
    pool = Pool(rng, [20, 3, 41], most_pages=4)
    q = rng.standard_normal((3, 4, 64), np.float32)
    chunk = q[:1].repeat(16, 0)
    expected = riffle.jax.paged_attention(q, *pool.arguments)
    expected_chunk = riffle.jax.prefill_attention(chunk, pool.keys, pool.values, 20, pool.page_indices[0])
    with jax.enable_x64(True):
        wide = pool.lengths.astype(np.int64), pool.page_indices.astype(np.int64)
        for lengths, pages in (wide, (wide[0], pool.page_indices), (pool.lengths, wide[1])):
            assert same_bits(jax.jit(riffle.jax.paged_attention)(q, pool.keys, pool.values, lengths, pages), expected)
            got = riffle.jax.prefill_attention(chunk, pool.keys, pool.values, jnp.asarray(lengths)[0], pages[0])
            assert same_bits(got, expected_chunk)
            for axes in ((0, None, None, None, 0), (None, None, None, 0, 0), (0, None, None, 0, None)):
                operands = [x if axis is None else np.stack([x, x]) for x, axis in zip((q, pool.keys, pool.values, lengths, pages), axes)]
                for one in jax.vmap(riffle.jax.paged_attention, axes)(*operands):
                    assert same_bits(one, expected)
        assert only_custom_calls(riffle.jax.paged_attention, q, pool.keys, pool.values, *wide)
        call = jax.jit(riffle.jax.paged_attention)
        for at, beyond, text in ((0, 2**32 + 3, r"lengths\[1\] = 4294967299"), (1, 2**32, r"page_indices\[1, 0\] = 4294967296")):
            wrong = [x.copy() for x in wide]
            wrong[at][(1, 0)[: wrong[at].ndim]] = beyond
            with pytest.raises((RuntimeFailure, ValueError), match=text):  # JAX has either, as it dispatches
                jax.block_until_ready(call(q, pool.keys, pool.values, *wrong))


def test_prefill_over_int8_and_under_vmap(rng):
    pool = Pool(rng, [21, 30], 2, 4, 32)
    q = jnp.asarray(rng.standard_normal((2, 16, 4, 32), np.float32))
    (keys, _), (values, _) = (quantized(p, np.float32, riffle.jax.QuantizedTensor) for p in (pool.keys, pool.values))
    for pages in ((keys, values), (jnp.asarray(pool.keys), jnp.asarray(pool.values))):
        got = jax.vmap(riffle.jax.prefill_attention, (0, None, None, 0, 0))(q, *pages, pool.lengths, pool.page_indices)
        for b in range(2):
            one = riffle.jax.prefill_attention(q[b], *pages, pool.lengths[b : b + 1], pool.page_indices[b])
            assert same_bits(got[b], one)
            assert np.asarray(one)[: pool.lengths[b] - 16].any(1).all()


def test_vmap_of_paged_attention(rng):
    """Operands with and without the axis of a batch, wherever it stands; scales with their pages."""
    pool = Pool(rng, [20, 3, 41], 1, 8, 32, most_pages=7)
    arrays = [rng.standard_normal((3, 2, 32), np.float32), np.nan_to_num(pool.keys), np.nan_to_num(pool.values),
              pool.lengths, np.maximum(pool.page_indices, 0)]
    for axes in ((0,) * 5, (0, None, None, 0, 0), (None, 0, 0, None, None), (None, None, None, 0, None),
                 (None, 0, None, None, None), (0, None, None, None, 0), (0, None, None, None, None)):
        operands = [a if axis is None else np.stack([a, a[::-1]]) for a, axis in zip(arrays, axes)]
        got = jax.jit(jax.vmap(riffle.jax.paged_attention, axes))(*operands)
        assert got.shape == (2, 3, 2, 32)
        for i in range(2):
            one = [o if axis is None else o[i] for o, axis in zip(operands, axes)]
            assert same_bits(got[i], riffle.paged_attention(*one, layout="JAX", scale=1.0))
    twice = jax.vmap(jax.vmap(riffle.jax.paged_attention, (0, None, None, None, None)), (None, 0, None, None, None))
    got = twice(np.stack([arrays[0], -arrays[0]]), np.stack([arrays[1], 2 * arrays[1]]), *arrays[2:])
    expected = riffle.paged_attention(-arrays[0], 2 * arrays[1], *arrays[2:], layout="JAX", scale=1.0)
    assert same_bits(got[1, 1], expected)


def test_calls_copy_nothing(rng):
    pool = Pool(rng, [20, 30])
    q = np.zeros((2, 4, 64), np.float32)
    assert only_custom_calls(lambda x: riffle.jax.top_k(x, 4), np.zeros((3, 4, 50), np.float32))
    assert only_custom_calls(lambda *a: riffle.jax.paged_attention(*a), q, *pool.arguments)
    assert only_custom_calls(lambda *a: riffle.jax.prefill_attention(*a), q, pool.keys, pool.values,
                             pool.lengths[:1], pool.page_indices[0])
    assert only_custom_calls(jax.vmap(riffle.jax.paged_attention, (0, None, None, 0, 0)), q[None], pool.keys,
                             pool.values, pool.lengths[None], pool.page_indices[None])
    assert not only_custom_calls(lambda x: riffle.jax.top_k(x, 4, axis=0), np.zeros((30, 40), np.float32))


@pytest.mark.parametrize("spoil, text", [
    (dict(lengths=[-1, 5]), r"lengths\[0\] = -1 is not in 0..32"),
    (dict(lengths=[5, 33]), r"lengths\[1\] = 33 is not in 0..32; the table has 2 pages of 16"),
    (dict(page_indices=[[0, 1], [4, 0]]), r"page_indices\[1, 0\] = 4 but the pool has 4 pages"),
    (dict(page_indices=[[0, -1], [1, 1]]), r"page_indices\[0, 1\] = -1"),
])
def test_bad_numbers_fail_when_they_run(rng, spoil, text):
    pool = Pool(rng, [20, 3], most_pages=2)
    pool.keys, pool.values = (jnp.nan_to_num(p)[:, :4] for p in (pool.keys, pool.values))
    right = dict(lengths=np.array([20, 3], np.int32), page_indices=np.array([[0, 1], [2, 3]], np.int32))
    wrong = {**right, **{name: np.array(value, np.int32) for name, value in spoil.items()}}
    q = jnp.ones((2, 2, 64))
    call = jax.jit(lambda lengths, page_indices: riffle.jax.paged_attention(q, pool.keys, pool.values, lengths, page_indices))
    with pytest.raises(RuntimeFailure, match=text):
        jax.block_until_ready(call(**wrong))
    assert np.isfinite(call(**right)).all()


def test_bad_prefill_numbers_fail_when_they_run(rng):
    pool = Pool(rng, [20], most_pages=2)
    q = jnp.ones((8, 2, 64))
    call = jax.jit(riffle.jax.prefill_attention)
    for length in (-3, 33):
        with pytest.raises(RuntimeFailure, match=f"length = {length} is not in 0..32"):
            jax.block_until_ready(call(q, pool.keys, pool.values, length, pool.page_indices[0]))
    with pytest.raises(RuntimeFailure, match=r"page_indices\[0, 1\] = 9 but the pool has 4 pages"):
        jax.block_until_ready(call(q, pool.keys, pool.values, 20, np.array([0, 9], np.int32)))
    with pytest.raises(ValueError, match="length = -1"):
        riffle.jax.prefill_attention(q, pool.keys, pool.values, -1, pool.page_indices[0])


F32, I32 = np.float32, np.int32
FP8 = {name: np.zeros((2, 4, 16, 64), np.dtype(ml_dtypes.float8_e4m3fn)) for name in ("k_pages", "v_pages")}
INT8 = riffle.jax.QuantizedTensor(np.zeros((2, 4, 16, 64), np.int8), np.zeros((2, 4, 16, 1), F32))


@pytest.mark.parametrize("spoil, error, text", [
    (dict(q=np.zeros((2, 64), F32)), ValueError, "q has shape"),
    (dict(q=np.zeros((2, 4, 64), I32)), TypeError, "q must be float32"),
    (dict(q=np.zeros((2, 3, 64), F32)), ValueError, "q_heads = 3"),
    (dict(q=np.zeros((2, 4, 32), F32)), ValueError, "head_dim 32"),
    (dict(k_pages=np.zeros((2, 4, 16, 64), np.int8)), TypeError, "k_pages must be float32, .* or have scales, not int8 alone"),
    (dict(k_pages=np.zeros((2, 4, 16, 64), np.int16)), TypeError, "k_pages must be float32"),
    (dict(key_scales=0.5), TypeError, "k_pages has dtype float32; with key_scales it must be int8, float8_e4m3fn or float8_e5m2"),
    (dict(FP8, key_scales="x"), TypeError, "key_scales must be a number, an array or None, not 'x'"),
    (dict(FP8, value_scales=np.zeros((2, 4, 15), F32)), ValueError, "value_scales has shape"),
    (dict(FP8, value_scales=np.zeros((2, 4, 16, 3), F32)), ValueError, "value_scales has shape"),
    (dict(FP8, value_scales=np.zeros((2, 4, 16), I32)), TypeError, "value_scales must be float32"),
    (dict(k_pages=INT8, v_pages=INT8, key_scales=0.5), ValueError, "key_scales and value_scales must be None beside"),
    (dict(k_pages=np.zeros((4, 16, 64), F32)), ValueError, "k_pages has shape"),
    (dict(v_pages=np.zeros((2, 5, 16, 64), F32)), ValueError, "v_pages has shape"),
    (dict(k_pages=INT8), ValueError, "QuantizedTensor"),
    (dict(k_pages=INT8, v_pages=INT8._replace(weight=np.zeros((2, 4, 16, 64), F32))), TypeError, "v_pages must be int8"),
    (dict(k_pages=INT8, v_pages=INT8._replace(scales=np.zeros((2, 4, 16), F32))), ValueError, "v_pages.scales has shape"),
    (dict(k_pages=INT8, v_pages=INT8._replace(scales=np.zeros((2, 4, 16, 1), I32))), TypeError, "v_pages.scales must"),
    (dict(lengths=np.zeros(3, I32)), ValueError, "lengths has shape"),
    (dict(lengths=np.zeros(2, F32)), TypeError, "lengths must be int32 or int64, not float32"),
    (dict(page_indices=np.zeros((3, 4), I32)), ValueError, "page_indices has shape"),
    (dict(page_indices=np.zeros(4, I32)), ValueError, "page_indices has shape"),
    (dict(page_indices=np.zeros((2, 4), F32)), TypeError, "page_indices must be int32 or int64"),
    (dict(sm_scale=float("inf")), ValueError, "sm_scale = inf"),
    (dict(mask_value=-1.0), ValueError, "mask_value = -1.0 is not at most -1e30"),
    (dict(attn_logits_soft_cap=0.0), ValueError, "attn_logits_soft_cap = 0.0"),
    (dict(attn_logits_soft_cap=float("nan")), ValueError, "attn_logits_soft_cap = nan"),
    (dict(pages_per_compute_block=3), ValueError, "pages_per_compute_block = 3 does not divide the 4 pages"),
    (dict(pages_per_compute_block=0), ValueError, "pages_per_compute_block = 0"),
    (dict(pages_per_compute_block=1.5), TypeError, "pages_per_compute_block must be an int"),
    (dict(megacore_mode="both"), ValueError, "megacore_mode = 'both'"),
    (dict(inline_seq_dim=2), TypeError, "inline_seq_dim must be a bool"),
    (dict(window=0), ValueError, "window = 0 is not in 1.."),
    (dict(window=2**63), ValueError, "window = 9223372036854775808 is not in 1.."),
    (dict(window=1.5), TypeError, "window must be an int, not 1.5"),
])
def test_bad_attention(spoil, error, text):
    right = dict(q=np.zeros((2, 4, 64), F32), k_pages=np.zeros((2, 4, 16, 64), F32),
                 v_pages=np.zeros((2, 4, 16, 64), F32), lengths=np.zeros(2, I32), page_indices=np.zeros((2, 4), I32))
    riffle.jax.paged_attention(**right)
    with pytest.raises(error, match=text):
        riffle.jax.paged_attention(**{**right, **spoil})


@pytest.mark.parametrize("q_heads, kv_heads, page_size, dim, text", [
    (2, 2, 16, 4, "head_dim = 4"), (2, 2, 16, 36, "head_dim = 36"), (2, 2, 16, 1032, "head_dim = 1032"),
    (2, 2, 0, 32, "page_size = 0"), (0, 2, 16, 32, "q_heads = 0"),
])
def test_shapes_outside_of_the_kernels_limits(q_heads, kv_heads, page_size, dim, text):
    pages = np.zeros((kv_heads, 1, page_size, dim), F32)
    with pytest.raises(ValueError, match=text):
        riffle.jax.prefill_attention(np.zeros((4, q_heads, dim), F32), pages, pages, 1, np.zeros(1, I32))


def test_what_tunes_tpus_has_no_effect(rng):
    pool = Pool(rng, [20, 50], most_pages=4)
    q = rng.standard_normal((2, 4, 64), np.float32)
    expected = riffle.jax.paged_attention(q, *pool.arguments)
    for tuning in (dict(pages_per_compute_block=2), dict(megacore_mode="kv_head"), dict(megacore_mode="batch"),
                   dict(inline_seq_dim=False), dict(mask_value=-1e30)):
        assert same_bits(riffle.jax.paged_attention(q, *pool.arguments, **tuning), expected)


def test_attention_has_no_derivative(rng):
    pool = Pool(rng, [20, 50])
    q = rng.standard_normal((2, 4, 64), np.float32)
    with pytest.raises(ValueError, match="cannot be differentiated"):
        jax.grad(lambda q: riffle.jax.paged_attention(q, *pool.arguments).sum())(q)

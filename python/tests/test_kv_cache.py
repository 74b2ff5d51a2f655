"""riffle.KvCache from Python: what goes in comes out, in every format."""

import gc

import ml_dtypes
import numpy as np
import pytest
import riffle
from kv_cache_case import DTYPES, contents, small, tokens


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


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8"])
@pytest.mark.parametrize("group", [0, 32])
def test_scales_are_computed_as_write_kv_does(dtype, group):
    cache = small(dtype=dtype, head_dim=64, scale_group=group, value_dtype="float16", value_dim=24)
    seq = cache.create()
    cache.extend(seq, 7)
    x = np.random.default_rng(1).standard_normal((7, 2, 64)).astype(np.float32)
    cache.write(1, seq, 0, x, x[..., :24])
    pages, scales = cache.keys(1), cache.key_scales(1)
    assert scales.shape == ((6, 2, 4) if group == 0 else (6, 2, 4, 2)) and not scales.flags.writeable
    assert cache.value_scales(1) is None and cache.values(1).dtype == np.float16
    expected, expected_scales = np.zeros(pages.shape, pages.dtype), np.zeros(scales.shape, np.float32)
    table = cache.batch([seq])[1][0]
    slots = np.array([table[t // 4] * 4 + t % 4 for t in range(7)])
    riffle.write_kv(x, x, slots, expected, np.zeros_like(expected, np.float32), key_scales=expected_scales,
                    compute_scales=True)  # fmt: skip
    np.testing.assert_array_equal(pages.view(np.uint8), expected.view(np.uint8))
    np.testing.assert_array_equal(scales, expected_scales)
    np.testing.assert_array_equal(cache.values(1)[table[1], :, 2], x[6, :, :24].astype(np.float16))


def test_blocks():
    cache = small(dtype="q8_0", head_dim=64, value_dtype="q4_0")
    assert cache.keys(0).shape == (6, 2, 4, 68) and cache.values(0).shape == (6, 2, 4, 36)
    assert cache.keys(0).dtype == np.uint8 and cache.key_scales(0) is None

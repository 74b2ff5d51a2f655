"""The formats that riffle.KvCache keeps keys and values in: scales that it computes, blocks."""

import numpy as np
import pytest
import riffle
from kv_cache_case import small


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

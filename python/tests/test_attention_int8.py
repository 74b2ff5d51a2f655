"""riffle.paged_attention over int8 pages with scales, against float pages of the same values."""

import numpy as np
import pytest
import riffle
from frameworks import BFLOAT16

SHAPES = {"HND": (0, 1, 2), "NHD": (0, 2, 1), "JAX": (1, 0, 2)}  # from [pages, kv_heads, page_size]


def case(seed=0):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((3, 4, 32)).astype(np.float32)
    keys, values = rng.integers(-127, 128, (2, 5, 2, 8, 32)).astype(np.int8)
    lens, table = np.array([1, 17, 24], np.int32), np.array([[4, -1, -1], [0, 1, 2], [3, 2, 0]], np.int32)
    return rng, q, keys, values, lens, table


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("layout", SHAPES)
def test_arrays_of_scales(framework, layout, dtype):
    """Scales are powers of two, so that a product is exact and the float pages give the same bits."""
    rng, q, keys, values, lens, table = case()
    order = SHAPES[layout]
    for shape in [(5, 2, 8), (5, 1, 1), (1, 2, 1), (1, 1, 1)]:
        k_scales, v_scales = (2.0 ** rng.integers(-9, -4, (2, *shape))).astype(dtype)
        dense = [(p.astype(np.float32) * s.astype(np.float32)[..., None]).transpose(*order, 3)
                 for p, s in ((keys, k_scales), (values, v_scales))]
        expected = riffle.paged_attention(q, *dense, lens, table, layout=layout)
        pages = [framework.make(np.ascontiguousarray(p.transpose(*order, 3))) for p in (keys, values)]
        scales = [framework.make(np.ascontiguousarray(s.transpose(order))) for s in (k_scales, v_scales)]
        out = riffle.paged_attention(q, *pages, lens, table, layout=layout, key_scales=scales[0], value_scales=scales[1])
        np.testing.assert_array_equal(out, expected)


def test_numbers_and_fewer_axes():
    _, q, keys, values, lens, table = case(1)
    expected = riffle.paged_attention(q, keys * np.float32(0.03125), values * np.float32(0.0625), lens, table)
    for k_scale, v_scale in [(0.03125, 0.0625), (np.float32(0.03125), np.array(0.0625)),
                             (np.full(8, 0.03125, np.float32), np.full((2, 1), 0.0625, np.float32))]:
        out = riffle.paged_attention(q, keys, values, lens, table, key_scales=k_scale, value_scales=v_scale)
        np.testing.assert_array_equal(out, expected)


def test_a_scale_is_not_rounded():
    """Against float64, with scales that are no powers of two."""
    rng, q, keys, values, lens, table = case(2)
    scales = rng.uniform(0.001, 0.01, (2, 5, 2, 8)).astype(np.float32)
    out = riffle.paged_attention(q, keys, values, lens, table, key_scales=scales[0], value_scales=scales[1])
    for b, length in enumerate(lens):
        k, v = (np.concatenate([(p.astype(np.float64) * s[..., None])[page] for page in table[b]], axis=1)[:, :length]
                for p, s in ((keys, scales[0]), (values, scales[1])))
        for head in range(4):
            logits = k[head // 2] @ q[b, head].astype(np.float64) / np.sqrt(32)
            weights = np.exp(logits - logits.max())
            np.testing.assert_allclose(out[b, head], weights @ v[head // 2] / weights.sum(), atol=2e-6)


@pytest.mark.parametrize(
    "arguments,error,text",
    [
        (dict(keys=np.zeros((5, 2, 8, 32), np.float32)), TypeError, "keys has dtype float32; with key_scales it must be int8"),
        (dict(keys=np.zeros((5, 2, 8, 32), np.int16)), TypeError, "keys has dtype int16; float32, float16, bfloat16"),
        (dict(key_scales="1"), TypeError, "key_scales must be a number, an array or None, not '1'"),
        (dict(key_scales=np.ones(3, np.float32)), ValueError, r"key_scales has shape \(3,\); it must broadcast to that of keys"),
        (dict(key_scales=np.ones((1, 5, 2, 8), np.float32)), ValueError, "key_scales has shape"),
        (dict(key_scales=np.ones((5, 2, 8, 3), np.float32)), ValueError, "a scale for each 32, 64 or 128"),
        (dict(key_scales=np.ones((1, 5, 2, 8, 1), np.float32)), ValueError, "key_scales has shape"),
        (dict(value_scales=np.ones(8)), TypeError, "value_scales has dtype float64"),
    ],
)
def test_errors(arguments, error, text):
    _, q, keys, values, lens, table = case()
    call = {"keys": keys, "values": values, "key_scales": 0.5, "value_scales": 0.5, **arguments}
    with pytest.raises(error, match=text):
        riffle.paged_attention(q, call.pop("keys"), call.pop("values"), lens, table, **call)

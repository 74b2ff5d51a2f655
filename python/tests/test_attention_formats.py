"""riffle.paged_attention over pages of 8-bit floats, grouped scales and GGUF's blocks, against NumPy in float64."""

import ml_dtypes
import numpy as np
import pytest
import riffle

FLOAT8 = [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
LENS = np.array([1, 17, 24], np.int32)
TABLE = np.array([[4, -1, -1], [0, 1, 2], [3, 2, 0]], np.int32)


def attention(q, keys, values):
    """In float64, over decoded HND pages [5, 2, 8, d]; two query heads on each KV head."""
    out = np.zeros((*q.shape[:2], values.shape[-1]))
    for b, length in enumerate(LENS):
        k, v = (np.concatenate([p[page] for page in TABLE[b]], axis=1)[:, :length] for p in (keys, values))
        for head in range(q.shape[1]):
            logits = k[head // 2] @ q[b, head].astype(np.float64) / np.sqrt(q.shape[-1])
            weights = np.exp(logits - logits.max())
            out[b, head] = weights @ v[head // 2] / weights.sum()
    return out


def queries(rng, dim):
    return rng.standard_normal((3, 4, dim)).astype(np.float32)


def of(module, x):
    """x, whose dtype is one of ml_dtypes, as an array of a framework."""
    if module == "numpy":
        return x
    if module == "torch":
        torch = pytest.importorskip("torch")
        return torch.from_numpy(x.view(np.uint8)).view(getattr(torch, x.dtype.name))
    return pytest.importorskip("jax.numpy").asarray(x)


@pytest.mark.parametrize("module", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_float8(module, dtype):
    rng = np.random.default_rng(1)
    q = queries(rng, 64)
    keys, values = rng.standard_normal((2, 5, 2, 8, 64)).astype(dtype)
    expected = attention(q, keys.astype(np.float64), values.astype(np.float64) * 0.5)
    if module == "torch":
        q = pytest.importorskip("torch").from_numpy(q)
    elif module == "jax":
        q = pytest.importorskip("jax.numpy").asarray(q)
    out = riffle.paged_attention(q, of(module, keys), of(module, values), LENS, TABLE, value_scales=0.5)
    assert type(out) is type(q)
    np.testing.assert_allclose(np.asarray(out), expected, atol=1e-5)


@pytest.mark.parametrize("scale_dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e8m0fnu], ids=str)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_groups_of_scales(group, scale_dtype):
    rng = np.random.default_rng(2)
    q = queries(rng, 128)
    keys, values = rng.integers(-127, 128, (2, 5, 2, 8, 128)).astype(np.int8)
    scales = (2.0 ** rng.integers(-8, -4, (2, 5, 2, 8, 128 // group))).astype(scale_dtype)
    dense = [p * np.repeat(s.astype(np.float64), group, axis=-1) for p, s in zip((keys, values), scales)]
    out = riffle.paged_attention(q, keys, values, LENS, TABLE, key_scales=scales[0], value_scales=scales[1])
    np.testing.assert_allclose(out, attention(q, *dense), atol=2e-5)
    # The last axis of a layout stays the last; zero strides broadcast.
    out = riffle.paged_attention(q, keys, values, LENS, TABLE, key_scales=scales[0][:1, :1, :1], value_scales=1.0)
    dense = [keys * np.repeat(scales[0][:1, :1, :1].astype(np.float64), group, axis=-1), values.astype(np.float64)]
    np.testing.assert_allclose(out, attention(q, *dense), rtol=1e-4, atol=2e-3)


def blocks_of(rng, kind, dim):
    """Rows of random blocks, and what they stand for."""
    scale = rng.uniform(0.01, 0.1, (5, 2, 8, dim // 32, 1)).astype(np.float16)
    if kind == "q8_0":
        codes = rng.integers(-127, 128, (5, 2, 8, dim // 32, 32)).astype(np.int8)
        pages = np.concatenate([scale.view(np.uint8), codes.view(np.uint8)], axis=-1)
        values = codes * scale.astype(np.float64)
    else:
        nibbles = rng.integers(0, 16, (5, 2, 8, dim // 32, 32)).astype(np.uint8)
        packed = nibbles[..., :16] | nibbles[..., 16:] << 4
        pages = np.concatenate([scale.view(np.uint8), packed], axis=-1)
        values = (nibbles.astype(np.float64) - 8) * scale.astype(np.float64)
    return np.ascontiguousarray(pages.reshape(5, 2, 8, -1)), values.reshape(5, 2, 8, dim)


@pytest.mark.parametrize("key_format,value_format", [("q8_0", "q8_0"), ("q4_0", "q8_0"), ("q4_0", None), (None, "q4_0")])
def test_blocks(key_format, value_format):
    rng = np.random.default_rng(3)
    q = queries(rng, 64)
    pages, dense = [], []
    for kind in (key_format, value_format):
        page, values = blocks_of(rng, kind or "q8_0", 64)
        pages.append(page if kind else values.astype(np.float32))
        dense.append(values if kind else values.astype(np.float32).astype(np.float64))
    out = riffle.paged_attention(q, *pages, LENS, TABLE, key_format=key_format, value_format=value_format)
    np.testing.assert_allclose(out, attention(q, *dense), atol=2e-5)


def test_values_of_another_head_dim_and_a_view_of_keys():
    rng = np.random.default_rng(4)
    q = queries(rng, 96)
    keys = rng.standard_normal((5, 2, 8, 96)).astype(np.float32)
    out, lse = riffle.paged_attention(q, keys, keys[..., :64], LENS, TABLE, return_lse=True)
    assert out.shape == (3, 4, 64) and lse.shape == (3, 4)
    np.testing.assert_allclose(out, attention(q, keys.astype(np.float64), keys[..., :64].astype(np.float64)), atol=1e-5)
    given = np.zeros((3, 4, 64), np.float32)
    copy = np.ascontiguousarray(keys[..., :64])
    assert riffle.paged_attention(q, keys, copy, LENS, TABLE, out=given) is given
    np.testing.assert_array_equal(given, out)


def test_one_page_for_each_sequence():
    rng = np.random.default_rng(5)
    q = rng.standard_normal((2, 4, 32)).astype(np.float32)
    keys, values = rng.standard_normal((2, 2, 2, 700, 32)).astype(np.float32)
    lens = np.array([700, 300], np.int32)
    out = riffle.paged_attention(q, keys, values, lens, np.array([[0], [1]], np.int32))
    small = [p[:, :, :700].reshape(2, 2, 70, 10, 32).transpose(0, 2, 1, 3, 4).reshape(140, 2, 10, 32) for p in (keys, values)]
    table = np.arange(140, dtype=np.int32).reshape(2, 70)
    np.testing.assert_array_equal(out, riffle.paged_attention(q, *map(np.ascontiguousarray, small), lens, table))


@pytest.mark.parametrize(
    "arguments,error,text",
    [
        (dict(key_format="q2_k"), ValueError, "key_format = 'q2_k' is none of"),
        (dict(key_format=1), TypeError, "key_format must be a str or None, not 1"),
        (dict(value_format="q8_0"), TypeError, "values has dtype float32; it must be uint8"),
        (dict(keys=np.zeros((5, 2, 8, 33), np.uint8), key_format="q8_0"), ValueError, "33 bytes are no whole blocks of q8_0"),
        (dict(keys=np.zeros((5, 2, 8, 64), np.uint8)), TypeError, "keys has dtype uint8"),
        (dict(keys=np.zeros((5, 2, 8, 34), np.uint8), key_format="q8_0"), ValueError, "q.head_dim = 64"),
        (dict(keys=np.zeros((5, 2, 8, 68), np.uint8), key_format="q8_0", key_scales=2.0), TypeError, "scales in their blocks"),
    ],
)
def test_errors(arguments, error, text):
    rng = np.random.default_rng(6)
    pages = np.zeros((2, 5, 2, 8, 64), np.float32)
    call = {"keys": pages[0], "values": pages[1], **arguments}
    with pytest.raises(error, match=text):
        riffle.paged_attention(queries(rng, 64), call.pop("keys"), call.pop("values"), LENS, TABLE, **call)


def test_torch_operator():
    """The operator of torch takes formats and scales too."""
    torch = pytest.importorskip("torch")
    attend = pytest.importorskip("riffle.torch").paged_attention
    rng = np.random.default_rng(7)
    q = torch.from_numpy(queries(rng, 64))
    keys = torch.from_numpy(rng.integers(-127, 128, (5, 2, 8, 64)).astype(np.int8))
    values = torch.from_numpy(blocks_of(rng, "q4_0", 64)[0])
    lists = torch.from_numpy(LENS), torch.from_numpy(TABLE)
    options = dict(key_scales=0.01, value_format="q4_0")
    expected = riffle.paged_attention(q, keys, values, *lists, **options)
    assert torch.equal(attend(q, keys, values, *lists, **options), expected)

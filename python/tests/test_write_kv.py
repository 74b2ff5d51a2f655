"""riffle.write_kv: against PyTorch's and ml_dtypes' conversions and the gguf package's quantize."""


import gguf
import ml_dtypes
import numpy as np
import pytest
import riffle
import riffle.torch
import torch

FORMATS = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]
FLOAT8 = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
RNG = np.random.default_rng(7)


def tokens(n=6, heads=2, d=64, scale=1.0):
    return (RNG.standard_normal((n, heads, d)) * scale).astype(np.float32)


def write(x, pages, *, slots=None, **options):
    """Keys x into `pages`, the same as values into pages that nobody looks at."""
    other = np.zeros((*pages.shape[:3], x.shape[2]), np.float32)
    slots = np.arange(len(x), dtype=np.int32) if slots is None else slots
    riffle.write_kv(x, x, slots, pages, other, **options)
    return other


def rows(pages, n):
    """The first n slots of HND pages, [n, heads, last axis]."""
    pages = np.asarray(pages)
    return pages.transpose(0, 2, 1, 3).reshape(-1, pages.shape[1], pages.shape[3])[:n]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 300.0, 1e-6])
def test_blocks_are_those_of_the_gguf_package(form, scale):
    x = tokens(200, 2, 96, scale)
    x[3] = 0
    x[4, 0, :32] = np.float32(0.125)
    x[5, 1, 40:] = np.linspace(-4, 4, 56, dtype=np.float32)
    kind = gguf.GGMLQuantizationType[form.upper()]
    expected = gguf.quants.quantize(x, kind)
    pages = np.zeros((30, 2, 7, expected.shape[-1]), np.uint8)
    write(x, pages, key_format=form)
    np.testing.assert_array_equal(rows(pages, 200), expected)


def test_iq4_nl_is_as_near_as_its_codes_can_be():
    x = tokens(50, 2, 64)
    pages = np.zeros((10, 2, 5, 36), np.uint8)
    write(x, pages, key_format="iq4_nl")
    back = gguf.quants.dequantize(rows(pages, 50), gguf.GGMLQuantizationType.IQ4_NL)
    error = np.abs(back - x).reshape(50, 2, 2, 32).max(-1)
    assert (error <= 0.13 * np.abs(x).reshape(50, 2, 2, 32).max(-1)).all()


def every_magnitude():
    bits = np.arange(0, 2**32, 65537 * 3, dtype=np.uint64).astype(np.uint32)
    x = bits[: bits.size // 64 * 64].view(np.float32)
    return x.reshape(-1, 1, 64).copy()


@pytest.mark.parametrize("name", [*FLOAT8, "float16", "bfloat16"])
def test_conversions_are_those_of_torch_and_ml_dtypes(name):
    x = every_magnitude()
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    pages = np.zeros((1, 1, len(x), 64), dtype)
    write(x, pages)
    got = pages[0, 0].reshape(x.shape).astype(np.float32)
    limited = np.clip(x, -448, 448) if name == "float8_e4m3fn" else x
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(got, limited.astype(dtype).astype(np.float32))
    torch_pages = torch.zeros(pages.shape, dtype=getattr(torch, name))
    other = torch.zeros(pages.shape)
    source = torch.from_numpy(x)
    riffle.write_kv(source, source, torch.arange(len(x)), torch_pages, other)
    expected = torch.from_numpy(limited).to(torch_pages.dtype)
    assert torch.equal(torch_pages[0, 0].reshape(x.shape).float().nan_to_num(7), expected.float().nan_to_num(7))
    assert torch.equal(other[0, 0].reshape(x.shape).view(torch.int32), source.view(torch.int32))


@pytest.mark.parametrize("name", [*FLOAT8, "int8"])
@pytest.mark.parametrize("scale_dtype", ["float32", "float16", "bfloat16", "float8_e8m0fnu"])
@pytest.mark.parametrize("groups", [None, 2])
def test_computed_scales(name, scale_dtype, groups):
    x = tokens(9, 2, 64)
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    pages = np.zeros((3, 2, 4, 64), dtype)
    scales = np.zeros((3, 2, 4) if groups is None else (3, 2, 4, groups), getattr(ml_dtypes, scale_dtype, scale_dtype))
    write(x, pages, key_scales=scales, compute_scales=True)
    parts = x.reshape(9, 2, groups or 1, -1)
    wanted = np.abs(parts).max(-1) / np.float32(FLOAT8.get(name, 127))
    if scale_dtype == "float8_e8m0fnu":
        wanted = np.exp2(np.ceil(np.log2(wanted)))
    else:
        wanted = wanted.astype(scales.dtype).astype(np.float32)
    got = rows(scales.reshape(3, 2, 4, -1), 9).astype(np.float32)
    np.testing.assert_array_equal(got, wanted)
    quotient = parts / wanted[..., None]
    if name == "int8":
        expected = np.clip(np.rint(quotient), -128, 127)
    else:
        expected = np.clip(quotient, -FLOAT8[name], FLOAT8[name]).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(rows(pages, 9).astype(np.float32).reshape(parts.shape), expected)


@pytest.mark.parametrize("layout, order", [("HND", (0, 1, 2, 3)), ("NHD", (0, 2, 1, 3)), ("JAX", (1, 0, 2, 3))])
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_layouts_and_given_scales(layout, order, make):
    x = tokens(7, 3, 32)
    slots = np.array([4, -1, 0, 9, 4, 2, 11])
    hnd = np.full((4, 3, 3, 32), 99, np.int8)
    scales = (RNG.random((3, 1)) + 0.01).astype(np.float32)  # a scale per head
    expected = hnd.copy()
    for t, slot in enumerate(slots):
        if slot >= 0:
            expected[slot // 3, :, slot % 3] = np.clip(np.rint(x[t] / scales), -128, 127)
    pages = hnd.transpose(order).copy()
    shape = {"HND": (3, 1), "NHD": (3,), "JAX": (3, 1, 1)}[layout]
    other = make(np.zeros(pages.shape, np.float32))
    args = [make(a) for a in (x, x, slots, pages)]
    riffle.write_kv(*args, other, layout=layout, key_scales=make(scales.reshape(shape).copy()))
    np.testing.assert_array_equal(np.asarray(args[3]), expected.transpose(order))
    if make is np.asarray:
        riffle.write_kv(*args, other, layout=layout, key_scales=0.5)
        np.testing.assert_array_equal(np.asarray(args[3]).transpose(order)[3, :, 2], np.clip(np.rint(x[6] / 0.5), -128, 127))


def test_strided_slots_and_views_of_a_combined_pool():
    x = tokens(4, 2, 32)
    pool = np.zeros((5, 2, 2, 4, 32), np.float32)  # [pages, keys and values, heads, page_size, d]
    slots = np.array([[3, 0], [7, 0], [19, 0], [-1, 0]])[:, 0]
    riffle.write_kv(x, 2 * x, slots, pool[:, 0], pool[:, 1])
    for t, slot in enumerate([3, 7, 19]):
        np.testing.assert_array_equal(pool[slot // 4, 0, :, slot % 4], x[t])
        np.testing.assert_array_equal(pool[slot // 4, 1, :, slot % 4], 2 * x[t])
    assert np.count_nonzero(pool.any(-1)) == 2 * 3 * 2


BAD = [
    (dict(slots=np.array([8])), ValueError, r"slots\[0\] = 8 is neither -1 nor in the pool of 2 pages of 4"),
    (dict(slots=np.array([0, 1])), ValueError, "the number of slots = 2"),
    (dict(slots=np.array([0.0])), TypeError, "slots has dtype float64"),
    (dict(keys=np.zeros((1, 1, 32), np.int8)), TypeError, "keys has dtype int8"),
    (dict(keys=np.zeros((1, 2, 32), np.float32)), ValueError, "keys.heads = 2 but key_pages.kv_heads = 1"),
    (dict(key_pages=np.zeros((2, 1, 4, 32), np.float64)), TypeError, "key_pages has dtype float64"),
    (dict(key_pages=np.zeros((2, 1, 4, 32), np.int8)), ValueError, "int8 and have no scales"),
    (dict(key_pages=np.zeros((2, 1, 4), np.float32)), ValueError, "pages, kv_heads, page_size, head_dim"),
    (dict(key_scales=1.0), TypeError, "key_pages has dtype float32; with key_scales it must be int8"),
    (dict(key_format="q9"), ValueError, "key_format = 'q9' is none of 'q8_0'"),
    (dict(key_format="q8_0"), TypeError, "uint8"),
    (dict(key_format="q8_0", key_pages=np.zeros((2, 1, 4, 33), np.uint8)), ValueError, "33 bytes are no whole blocks of q8_0, 34 bytes each"),
    (dict(layout="DNH"), ValueError, "layout = 'DNH'"),
    (dict(compute_scales=True), ValueError, "compute_scales = True but neither"),
    (dict(compute_scales=1), TypeError, "compute_scales"),
    (dict(compute_scales=True, key_pages=np.zeros((2, 1, 4, 32), np.int8)), ValueError, "key_scales is None"),
    (dict(compute_scales=True, key_pages=np.zeros((2, 1, 4, 32), np.int8), key_scales=1.0), TypeError, "key_scales must be"),
    (dict(compute_scales=True, key_pages=np.zeros((2, 1, 4, 32), np.int8), key_scales=np.zeros((2, 1, 1), np.float32)),
     ValueError, "overlaps itself"),
    (dict(key_pages=np.zeros((2, 1, 4, 32), np.int8), key_scales=np.zeros((2, 1, 4), np.uint8)), TypeError, "uint8"),
    (dict(key_pages=np.zeros((2, 1, 4, 32), np.int8), key_scales=np.zeros((3, 1, 4), np.float32)), ValueError,
     "must broadcast"),
]  # fmt: skip


@pytest.mark.parametrize("change, error, text", BAD)
def test_errors(change, error, text):
    arguments = dict(
        keys=np.ones((1, 1, 32), np.float32), values=np.ones((1, 1, 32), np.float32), slots=np.array([0]),
        key_pages=np.zeros((2, 1, 4, 32), np.float32), value_pages=np.zeros((2, 1, 4, 32), np.float32),
    )  # fmt: skip
    arguments.update(change)
    with pytest.raises(error, match=text):
        riffle.write_kv(**arguments)
    assert not arguments["value_pages"].any() and not arguments["key_pages"].any()


def test_pages_that_cannot_be_written():
    import jax.numpy as jnp

    x, pages = np.ones((1, 1, 32), np.float32), np.zeros((2, 1, 4, 32), np.float32)
    frozen = pages.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="key_pages is read-only"):
        riffle.write_kv(x, x, np.array([0]), frozen, pages)
    with pytest.raises(TypeError, match="key_pages is a JAX array"):
        riffle.write_kv(x, x, np.array([0]), jnp.zeros((2, 1, 4, 32)), pages)
    with pytest.raises(ValueError, match="shares memory"):
        riffle.write_kv(x, x, np.array([0]), pages, pages)
    assert not pages.any()


def decode_step(keys, values, slots, key_pages, value_pages, scales):
    riffle.torch.write_kv(2 * keys, values, slots, key_pages, value_pages, key_scales=scales, compute_scales=True)
    return value_pages[1] + 1, scales.sum()


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_with_torch(backend):
    def arguments():
        torch.manual_seed(1)
        pages = torch.zeros(4, 2, 8, 32, dtype=torch.float8_e4m3fn)
        return torch.randn(3, 2, 32), torch.randn(3, 2, 32), torch.tensor([9, 3, 9]), pages, torch.zeros(4, 2, 8, 32), torch.zeros(4, 2, 8)

    plain, compiled = arguments(), arguments()
    expected = decode_step(*plain)
    got = torch.compile(decode_step, fullgraph=True, backend=backend)(*compiled)
    for a, b in zip((*expected, *plain), (*got, *compiled), strict=True):
        assert torch.equal(a.float(), b.float())
    assert torch.equal(plain[4][1, :, 1], plain[1][2]) and plain[5][1, 0, 1] > 0


def test_torch_errors_and_keys_with_strided_heads():
    keys, values, slots, key_pages, value_pages = (
        torch.randn(2, 1, 64), torch.randn(2, 1, 32), torch.tensor([1, 2]), torch.zeros(1, 1, 4, 32),
        torch.zeros(1, 1, 4, 32),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="keys.head_dim = 64 but key_pages.head_dim = 32"):
        riffle.torch.write_kv(keys, values, slots, key_pages, value_pages)
    with pytest.raises(TypeError, match="argument 'slots' must be Tensor, not list"):
        riffle.torch.write_kv(keys, values, [1, 2], key_pages, value_pages)
    assert not key_pages.any() and not value_pages.any()
    riffle.torch.write_kv(keys[..., ::2], values, slots, key_pages, value_pages)
    assert torch.equal(key_pages[0, 0, 1:3], keys[:, 0, ::2])
    riffle.torch.write_kv(keys[..., ::2], values, slots, key_pages.to(torch.int8), value_pages, key_scales=0.5)

"""Masks, ALiBi slopes and causality by sequence of riffle.paged_attention, against attention in float64."""

import math

import numpy as np
import pytest
from attention_case import BFLOAT16, F16, F32, Case
from frameworks import DTYPES, bits

MIXED = {"kv_lens": [5, 0, 17, 1, 700, 33], "q_lens": [5, 1, 3, 1, 2, 0]}
KV, TOKENS, HEADS = 705, 12, 4
MASK_DTYPES = [F32, F16, BFLOAT16, np.dtype(bool)]


def make_mask(shape, dtype, seed=0, hidden=0.5):
    rng = np.random.default_rng(seed)
    hides = rng.random(shape) < hidden
    if dtype.kind == "b":
        return ~hides
    return np.where(hides, -np.inf, 2 * rng.standard_normal(shape)).astype(np.float32).astype(dtype)


def added(mask, shape):
    """What a mask adds to logits, in float64, [tokens, heads, kv]."""
    mask = np.where(mask, 0.0, -np.inf) if mask.dtype == bool else mask.astype(np.float64)
    return np.broadcast_to(mask, shape)


def reference(case, mask=None, slopes=None, causal=True, window=None, soft_cap=None, sinks=None):
    """(out, lse, magnitude), one row of logits at a time; `causal` is a bool, or a bool for each sequence."""
    tokens, heads, dim = case.q.shape
    group = heads // case.k[0].shape[1]
    bias = None if mask is None else added(mask, (tokens, heads, mask.shape[-1]))
    out, magnitude = np.zeros((2, tokens, heads, case.v[0].shape[-1]))
    lse = np.full((tokens, heads), -np.inf)
    causal = np.broadcast_to(causal, len(case.kv_lens))
    sequence = 0
    for t in range(tokens):
        while t >= case.cu_q_lens[sequence + 1]:
            sequence += 1
        kv_len = int(case.kv_lens[sequence])
        position = kv_len - int(case.cu_q_lens[sequence + 1]) + t
        keys = np.arange(kv_len)
        for h in range(heads):
            logits = case.k[sequence][:, h // group].astype(np.float64) @ case.q[t, h].astype(np.float64) / math.sqrt(dim)
            if soft_cap:
                logits = soft_cap * np.tanh(logits / soft_cap)
            if slopes is not None:
                logits = logits + float(slopes[h]) * (keys - position)
            if bias is not None:
                logits = logits + bias[t, h, :kv_len]
            if causal[sequence] or window:
                logits[keys > position] = -np.inf
            if window:
                logits[keys <= position - window] = -np.inf
            seen = logits > -np.inf
            everything = logits[seen] if sinks is None else np.append(logits[seen], sinks[h])
            if everything.size:
                lse[t, h] = np.logaddexp.reduce(everything)
                weights = np.exp(logits[seen] - lse[t, h])
                v = case.v[sequence][seen, h // group].astype(np.float64)
                out[t, h], magnitude[t, h] = weights @ v, weights @ np.abs(v)
    return out, lse, magnitude


def check(case, out, lse, **options):
    expected, expected_lse, magnitude = reference(case, **options)
    bound = 2e-5 * (1 + magnitude)
    if case.q.dtype == case.keys.dtype == BFLOAT16:
        bound += 2.0**-8 * magnitude
    bound += {F32: 0, F16: 2.0**-11, BFLOAT16: 2.0**-8}[case.q.dtype] * np.abs(expected)
    assert (np.abs(out.astype(np.float64) - expected) <= bound).all()
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("tokens", [1, TOKENS], ids=["one row", "a row a token"])
@pytest.mark.parametrize("heads", [1, HEADS], ids=["one head", "a head each"])
@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
def test_masks(tokens, heads, dtype):
    for causal in (True, False):
        for kind in DTYPES:
            case = Case(**MIXED, dtypes=(kind, kind), page_size=16)
            mask = make_mask((tokens, heads, KV), dtype)
            check(case, *case.run(mask=mask, causal=causal, return_lse=True), mask=mask, causal=causal)


def test_a_mask_beside_every_option():
    case = Case(**MIXED)
    sinks = np.array([0.5, -2, 3, 0], np.float32)
    slopes = np.array([0.5, 0.25, 0.125, -0.3], np.float32)
    mask = make_mask((TOKENS, 1, KV), F32, hidden=0.2)
    options = dict(window=100, soft_cap=4.0, sinks=sinks)
    check(case, *case.run(mask=mask, alibi_slopes=slopes, return_lse=True, **options), mask=mask, slopes=slopes, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_slopes(dtype, causal):
    case = Case(**MIXED, dtypes=(dtype, dtype))
    slopes = np.array([0.5, 0.25, 0.125, 0]).astype(dtype)
    out, lse = case.run(alibi_slopes=slopes, causal=causal, return_lse=True)
    check(case, out, lse, slopes=slopes, causal=causal)
    np.testing.assert_array_equal(case.run(alibi_slopes=np.repeat(slopes, 2)[::2], causal=causal), out)


@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
def test_what_hides_everything_gives_zeros(dtype):
    case = Case([5, 17, 700], [2, 1, 3])
    for shape in ((1, 1, 700), (6, 1, 701), (6, 4, 700)):
        out, lse = case.run(mask=make_mask(shape, dtype, hidden=1.0), return_lse=True)
        assert (out == 0).all() and (lse == -np.inf).all()
        sinks = np.array([1, 2, 3, 4], np.float32)
        out, lse = case.run(mask=make_mask(shape, dtype, hidden=1.0), sinks=sinks, return_lse=True)
        assert (out == 0).all()
        np.testing.assert_array_equal(lse, np.broadcast_to(sinks, lse.shape))


def test_a_hidden_key_does_not_matter_whatever_it_is():
    case = Case([200], [3])
    mask = np.ones((3, 1, 200), bool)
    mask[:, :, 40:170] = False
    expected = case.run(mask=mask)
    for x in (case.k[0], case.v[0]):
        x[40:170] = np.nan
    case.page(4, np.random.default_rng(0))
    np.testing.assert_array_equal(case.run(mask=mask), expected)


def test_a_matrix_has_the_bits_of_the_option_that_means_the_same():
    for dtype in DTYPES:
        case = Case([300], [130], dtypes=(dtype, dtype))
        positions = np.arange(170, 300)[:, None]
        keys = np.arange(300)[None]
        for window in (None, 70):
            mask = (keys <= positions) & (keys > positions - (window or 1000))
            expected = bits(case.run(window=window))
            for kind in MASK_DTYPES:
                given = mask if kind.kind == "b" else np.where(mask, 0, -np.inf).astype(np.float32).astype(kind)
                np.testing.assert_array_equal(bits(case.run(causal=False, mask=given[:, None])), expected)


@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
def test_any_strides(dtype):
    case = Case([5, 17], [5, 3])
    mask = make_mask((8, 4, 20), dtype)
    expected = case.run(mask=mask)
    views = [
        np.ascontiguousarray(mask.transpose(2, 0, 1)).transpose(1, 2, 0),
        np.ascontiguousarray(mask[::-1, :, ::-1])[::-1, :, ::-1],
        np.repeat(np.repeat(mask, 3, axis=2), 2, axis=0)[::2, :, ::3],
    ]
    for view in views:
        np.testing.assert_array_equal(case.run(mask=view), expected)
    row = mask[:1, :1]
    np.testing.assert_array_equal(case.run(mask=np.broadcast_to(row, (8, 4, 20))), case.run(mask=row))


@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
def test_frameworks(framework, dtype):
    case = Case([5, 17], [2, 3])
    mask = make_mask((5, 1, 17), dtype)
    slopes = np.array([1, 0.5, 0.25, 0], np.float32)
    causal = np.array([True, False])
    options = {"mask": mask, "alibi_slopes": slopes, "causal": causal}
    out = case.run(**{name: framework.make(x) for name, x in options.items()})
    np.testing.assert_array_equal(out, case.run(**options))


@pytest.mark.parametrize("flags", [[True, False, True], [False, True, True], [False, False, False], [True, True, True]])
def test_causality_by_sequence(flags):
    flags = np.array(flags)
    case = Case([40, 17, 700], [3, 17, 300])
    out, lse = case.run(causal=flags, return_lse=True)
    check(case, out, lse, causal=flags)
    for b, flag in enumerate(flags):
        one = case.run(causal=bool(flag))
        tokens = slice(case.cu_q_lens[b], case.cu_q_lens[b + 1])
        np.testing.assert_array_equal(out[tokens], one[tokens])
    np.testing.assert_array_equal(case.run(causal=np.repeat(flags, 2)[::2]), out)


def test_more_queries_than_keys_where_not_causal():
    case = Case([40, 2], [3, 9])
    check(case, *case.run(causal=np.array([True, False]), return_lse=True), causal=[True, False])
    with pytest.raises(ValueError, match=r"sequence 1 has 9 queries but kv_lens\[1\] = 2"):
        case.run(causal=np.array([False, True]))


def test_bad_masks_write_nothing():
    case = Case([5, 17], [2, 3])
    mask = np.zeros((5, 4, 17), np.float32)
    cases = [
        (ValueError, r"mask has shape \(5, 17\); it must be \[tokens or 1, q_heads or 1, kv\]", {"mask": mask[:, 0]}),
        (ValueError, "mask.tokens = 2 is neither 1 nor q.tokens = 5", {"mask": mask[:2]}),
        (ValueError, "mask.heads = 3 is neither 1 nor q.heads = 4", {"mask": mask[:, :3]}),
        (ValueError, r"mask.keys = 16 is less than kv_lens\[1\] = 17", {"mask": mask[:, :, :16]}),
        (ValueError, r"mask.keys = 0 is less than kv_lens\[0\] = 5", {"mask": mask[:, :, :0]}),
        (TypeError, "mask has dtype float64; float32, float16, bfloat16 and bool", {"mask": mask.astype(np.float64)}),
        (TypeError, "mask has dtype int8", {"mask": mask.astype(np.int8)}),
        (TypeError, "mask has dtype uint8", {"mask": mask.astype(np.uint8)}),
        (TypeError, "mask must be an array", {"mask": [[[True]]]}),
        (TypeError, "mask is a masked array", {"mask": np.ma.masked_array(mask)}),
        (ValueError, "alibi_slopes = 3 but q.heads = 4", {"alibi_slopes": np.zeros(3, np.float32)}),
        (ValueError, "alibi_slopes is empty", {"alibi_slopes": np.zeros(0, np.float32)}),
        (ValueError, r"alibi_slopes\[1\] = nan is not finite", {"alibi_slopes": np.array([0, np.nan, 0, 0], np.float32)}),
        (TypeError, "alibi_slopes has dtype int32", {"alibi_slopes": np.zeros(4, np.int32)}),
        (ValueError, r"alibi_slopes has shape \(1, 4\)", {"alibi_slopes": np.zeros((1, 4), np.float32)}),
        (ValueError, r"causal has shape \(3,\) but kv_lens names 2", {"causal": np.zeros(3, bool)}),
        (ValueError, r"causal has shape \(1, 2\)", {"causal": np.zeros((1, 2), bool)}),
        (TypeError, "causal has dtype int64; it must be bool", {"causal": np.zeros(2, np.int64)}),
        (TypeError, "causal must be a bool or an array of bool, not 1", {"causal": 1}),
        (TypeError, r"causal must be a bool or an array of bool, not \[True, False\]", {"causal": [True, False]}),
    ]
    out = np.full((5, 4, 32), 7, np.float32)
    for error, text, change in cases:
        with pytest.raises(error, match=text):
            case.run(out=out, **change)
        assert (out == 7).all(), text
    writable = np.zeros((5, 4, 32), np.float32)
    with pytest.raises(ValueError, match="out shares memory with mask"):
        case.run(out=writable, mask=writable[:, :, :20])
    case.run(out=out, mask=mask)
    assert (out != 7).all()

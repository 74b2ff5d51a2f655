"""riffle.merge_states against attention over all keys."""

import itertools

import numpy as np
import pytest
import riffle
from attention_case import F16, F32, Case
from frameworks import BFLOAT16, DTYPES, bits


def parts_of(case, cuts, **options):
    """Results over parts of each sequence's keys; all queries come after all keys."""
    outs, lses = [], []
    for begin, end in itertools.pairwise([0, *cuts, int(case.kv_lens.max())]):
        part = Case([1], dim=case.q.shape[2], heads=(1, case.k[0].shape[1]))
        part.q, part.cu_q_lens = case.q, case.cu_q_lens
        part.k, part.v = ([x[begin:end] for x in both] for both in (case.k, case.v))
        part.kv_lens = np.array([len(k) for k in part.k], np.int32)
        part.page(4, np.random.default_rng(0))
        out, lse = part.run(causal=False, return_lse=True, **options)
        outs.append(out)
        lses.append(lse)
    return outs, lses


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cuts", [[], [10], [1, 30, 31]], ids=str)
def test_merged_parts_are_the_whole(dtype, cuts):
    case = Case([50, 33, 8], dtypes=(dtype, dtype))
    out, lse = riffle.merge_states(*parts_of(case, cuts))
    expected, expected_lse, magnitude = case.reference()
    rounding = {F32: 0, F16: 2.0**-10, BFLOAT16: 2.0**-6}[dtype]  # parts are rounded, and so is their sum
    assert (np.abs(out.astype(np.float64) - expected) <= (2e-5 + rounding) * (1 + magnitude)).all()
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=2e-5)
    assert out.dtype == dtype and lse.dtype == np.float32


def test_merging_with_nothing():
    case = Case([9, 20])
    out, lse = case.run(return_lse=True)
    nothing = np.full_like(out, np.nan), np.full_like(lse, -np.inf)
    full = out, lse
    for parts in ([full, nothing], [nothing, full], [nothing, full, nothing], [full]):
        merged, merged_lse = riffle.merge_states(*zip(*parts))
        np.testing.assert_allclose(merged, out, rtol=1e-6)
        np.testing.assert_allclose(merged_lse, lse, rtol=1e-6)
    merged, merged_lse = riffle.merge_states([nothing[0]] * 2, [nothing[1]] * 2)
    assert (merged == 0).all() and (merged_lse == -np.inf).all()


def test_no_tokens(framework):
    """A pair comes out of these too, though an array without elements may have no memory."""
    q, lse = framework.make(np.zeros((0, 4, 32), np.float32)), framework.make(np.zeros((0, 4), np.float32))
    pages, none = framework.make(np.zeros((1, 2, 4, 32), np.float32)), np.zeros(0, np.int32)
    for out, out_lse in (riffle.paged_attention(q, pages, pages, none, none.reshape(0, 1), return_lse=True),
                         riffle.merge_states([q, q], [lse, lse])):  # fmt: skip
        assert tuple(out.shape) == (0, 4, 32) and tuple(out_lse.shape) == (0, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merge_of_frameworks(framework, dtype):
    outs, lses = parts_of(Case([50, 33, 8], dtypes=(dtype, dtype)), [10, 20])
    expected, expected_lse = riffle.merge_states(outs, lses)
    out, lse = riffle.merge_states([framework.make(x) for x in outs], tuple(framework.make(x) for x in lses))
    np.testing.assert_array_equal(bits(framework.to_numpy(out)), bits(expected))
    np.testing.assert_array_equal(framework.to_numpy(lse), expected_lse)
    strided = [np.asfortranarray(x) for x in lses]
    wide = [np.repeat(x, 2, axis=1)[:, ::2] for x in outs]
    np.testing.assert_array_equal(bits(riffle.merge_states(wide, strided)[0]), bits(expected))


def test_bad_parts():
    out, lse = np.zeros((2, 4, 32), np.float32), np.zeros((2, 4), np.float32)
    cases = [
        (ValueError, "outs has 0 parts and lses 0", [], []),
        (ValueError, "outs has 2 parts and lses 1", [out, out], [lse]),
        (ValueError, "parts.1..out.tokens = 1 but parts.0..out.tokens = 2", [out, out[:1]], [lse, lse[:1]]),
        (ValueError, r"lses\[0\] has shape", [out], [lse[:1]]),
        (ValueError, r"lses\[0\] has shape", [out], [lse[0]]),
        (ValueError, r"outs\[0\] has shape", [out[0]], [lse]),
        (TypeError, "float16", [out, out.astype(np.float16)], [lse, lse]),
        (TypeError, r"lses\[0\] has dtype float64", [out], [lse.astype(np.float64)]),
        (TypeError, r"outs\[0\] must be an array", [[1.0]], [lse]),
    ]
    for error, text, outs, lses in cases:
        with pytest.raises(error, match=text):
            riffle.merge_states(outs, lses)
    with pytest.raises(TypeError, match="outs must be a sequence of arrays, not 1"):
        riffle.merge_states(1, 2)

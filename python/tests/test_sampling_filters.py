"""riffle.sample for servers: rows without an answer, seeds per row; and riffle.apply_top_k_top_p_ against a full sort."""

import numpy as np
import pytest
import reference
import riffle
from frameworks import DTYPES


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parameters", [dict(), dict(temperature=0), dict(top_k=5), dict(top_p=0.9), dict(min_p=0.1)], ids=str)
def test_invalid_rows_get_no_token(framework, dtype, parameters):
    x = np.random.default_rng(1).standard_normal((6, 2000)).astype(dtype)
    expected, expected_logprobs = riffle.sample(x, seed=4, return_logprobs=True, **parameters)
    bad = x.copy()
    bad[1] = -np.inf
    bad[3, 1999] = np.nan
    for given, rows in ((bad, [1, 3]), (x, [])):
        tokens, logprobs = riffle.sample(framework.make(given), seed=4, on_invalid="token", return_logprobs=True, **parameters)
        tokens, logprobs = framework.to_numpy(tokens), framework.to_numpy(logprobs)
        wanted, wanted_logprobs = expected.copy(), expected_logprobs.copy()
        wanted[rows], wanted_logprobs[rows] = -1, np.nan
        np.testing.assert_array_equal(tokens, wanted)
        np.testing.assert_array_equal(logprobs, wanted_logprobs)
    with pytest.raises(ValueError, match=r"logits\[1\] has nothing to sample"):
        riffle.sample(framework.make(bad), **parameters)


@pytest.mark.parametrize("code", "bhilqBHIL")
def test_seeds_of_rows(framework, code):
    x = np.random.default_rng(2).standard_normal((5, 300)).astype(np.float32)
    seeds = [3, 0, 7, 3, 100]
    tokens = framework.to_numpy(riffle.sample(framework.make(x), seed=framework.make(np.array(seeds, code))))
    assert tokens.tolist() == [riffle.sample(x, seed=seed)[row] for row, seed in enumerate(seeds)]


def test_seeds_have_64_bits():
    x = np.zeros((3, 1000), np.float32)
    seeds = [2**64 - 1, 2**63, 2**63 - 1]
    tokens = riffle.sample(x, seed=np.array(seeds, np.uint64))
    assert tokens.tolist() == [riffle.sample(x, seed=seed)[row] for row, seed in enumerate(seeds)]
    for seed, text in ((np.array([1, -1, 0]), r"seed\[1\] = -1 is not in 0\.\.2\^64 - 1"), (np.arange(2), "seeds has 2 elements for 3 rows"),
                       (np.ones(3), "seed has dtype float64; it must be an integer type")):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=text):
            riffle.sample(x, seed=seed)


def kept(row, top_k, top_p, min_p):
    """Which columns are kept, by a full sort in double; none where rounding could decide."""
    order = reference.top_k(row[None], len(row))[0]
    mask = np.zeros(len(row), bool)
    order = order[: top_k or None]
    weights = np.exp(row[order].astype(np.float64) - row[order[0]])
    if top_p < 1:
        reached = np.cumsum(weights) / weights.sum()
        assert np.abs(reached - top_p).min() > 1e-7
        order = order[: np.argmax(reached >= top_p) + 1]
    weights = weights[: len(order)]
    assert not ((np.abs(weights - min_p) < 1e-7 * min_p) & (weights != 1)).any()
    mask[order[weights >= min_p]] = True
    return mask


FILTERS = [(0, 1, 0), (5, 1, 0), (0, 0.7, 0), (0, 1, 0.05), (200, 0.9, 0.01), (2500, 0.95, 0), (0, 0.999, 0.001), (1, 1, 1), (0, 0, 0)]


@pytest.mark.parametrize("n", [4, 1000, 5000])
def test_apply_keeps_what_a_full_sort_keeps(n):
    rng = np.random.default_rng(n)
    x = (2 * rng.standard_normal((len(FILTERS), n))).astype(np.float32)
    x[:, rng.integers(0, n, n // 3)] = 1.5  # ties, of which the lower columns are kept
    wide = np.zeros((len(FILTERS), n + 3), np.float32)
    wide[:, :n] = x
    top_k, top_p, min_p = (np.array(column) for column in zip(*FILTERS))
    result = riffle.apply_top_k_top_p_(wide[:, :n], top_k, top_p, min_p)
    assert result.base is wide and not wide[:, n:].any()
    for row, filters in enumerate(FILTERS):
        mask = kept(x[row], *(np.float32(f) if i else int(f) for i, f in enumerate(filters)))
        np.testing.assert_array_equal(wide[row, :n], np.where(mask, x[row], -np.inf), err_msg=str(filters))


def test_apply_leaves_what_sample_draws():
    x = np.random.default_rng(7).standard_normal(30000).astype(np.float32)
    rows = np.broadcast_to(x, (2000, len(x)))
    for top_k, top_p, min_p in FILTERS:
        masked = riffle.apply_top_k_top_p_(x[None].copy(), top_k, top_p, min_p)[0]
        drawn = riffle.sample(rows, top_k=top_k, top_p=top_p, min_p=min_p, position=np.arange(2000), stream=1)
        assert np.isfinite(masked[drawn]).all()


def test_apply_leaves_invalid_rows_alone():
    x = np.random.default_rng(8).standard_normal((4, 3000)).astype(np.float32)
    x[1] = -np.inf
    x[2, 5] = np.nan
    y = riffle.apply_top_k_top_p_(x.copy(), 5, 0.9)
    np.testing.assert_array_equal(y[1:3], x[1:3])
    for row in (0, 3):
        np.testing.assert_array_equal(y[row], riffle.apply_top_k_top_p_(x[row : row + 1].copy(), 5, 0.9)[0])
    np.testing.assert_array_equal(riffle.apply_top_k_top_p_(x.copy(), None, None), x)


X = np.zeros((2, 16), np.float32)
ERRORS = [
    (dict(top_k=-1), ValueError, r"top_k\[0\] = -1 "),
    (dict(top_p=1.5), ValueError, r"top_p\[0\] = 1\.5 is not in 0\.\.1"),
    (dict(min_p=np.array([0, 2])), ValueError, r"min_p\[1\] = 2 is not in 0\.\.1"),
    (dict(top_k=np.arange(3)), ValueError, r"top_k has 3 elements for 2 rows"),
    (dict(logits=X[0]), ValueError, r"logits has shape \(16,\); it must be \[rows, vocab\]"),
    (dict(logits=X.astype(np.float16)), TypeError, r"logits has dtype float16; it must be float32"),
    (dict(logits=X[:, ::2]), ValueError, r"logits's last axis has a stride of 2"),
    (dict(logits=np.broadcast_to(X[:1], (2, 16))), ValueError, r"logits"),
    (dict(logits=np.lib.stride_tricks.as_strided(X, (3, 8), (16, 4))), ValueError, r"rows of logits, 8 columns at a stride of 4"),
]


@pytest.mark.parametrize("arguments,kind,text", ERRORS)
def test_apply_errors(arguments, kind, text):
    with pytest.raises(kind, match=text):
        riffle.apply_top_k_top_p_(**{"logits": X, "top_k": None, "top_p": None, **arguments})


def test_on_invalid_errors():
    for value in ("skip", None, 1):
        with pytest.raises(ValueError, match="on_invalid must be 'raise' or 'token', not"):
            riffle.sample(X, on_invalid=value)


def test_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import riffle.torch

    x = torch.from_numpy(np.random.default_rng(9).standard_normal((3, 2000)).astype(np.float32))
    filters = torch.tensor([3, 0, 50]), torch.tensor([1, 0.8, 0.9], dtype=torch.float64)
    expected = riffle.apply_top_k_top_p_(x.numpy().copy(), *(f.numpy() for f in filters))

    def apply(y):
        z = y * 1
        riffle.torch.apply_top_k_top_p_(z, *filters)
        return z + 0

    for function in (apply, torch.compile(apply, fullgraph=True, backend="eager")):
        np.testing.assert_array_equal(function(x).numpy(), expected)
    y = x.clone()
    assert riffle.apply_top_k_top_p_(y, *filters) is y
    np.testing.assert_array_equal(y.numpy(), expected)
    torch.library.opcheck(torch.ops.riffle.apply_top_k_top_p_.default, (x.clone(), *filters))
    x[1, 0] = float("nan")
    seeds = torch.tensor([5, 6, 7])
    tokens = riffle.sample(x, seed=seeds, on_invalid="token")
    assert tokens[1] == -1 and tokens.min() == -1

    def draw(y):
        return riffle.torch.sample(y, seed=seeds, on_invalid="token")

    for function in (draw, torch.compile(draw, fullgraph=True, backend="eager")):
        assert torch.equal(function(x), tokens)
    assert torch.equal(riffle.torch.sample(x, seed=seeds.to(torch.uint64), on_invalid="token"), tokens)

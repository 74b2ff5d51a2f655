"""What servers ask of riffle.sample, against NumPy: bitmasks, biases, penalties, top_logprobs; and riffle.verify_drafts."""

import numpy as np
import pytest
import riffle
from frameworks import DTYPES

ROWS, VOCAB = 4, 1000


def ragged(rng, most, width):
    counts = rng.integers(0, most, ROWS)
    return rng.integers(0, VOCAB, counts.sum()).astype(f"i{width}"), np.concatenate([[0], np.cumsum(counts)]).astype(f"i{width}")


def adjusted(x, allowed, bias, repetition, presence, frequency, prompt, output):
    x = x.astype(np.float32)
    bits = np.unpackbits(allowed.view(np.uint8).reshape(ROWS, -1), axis=1, bitorder="little")[:, :VOCAB]
    x[bits == 0] = -np.inf
    for row in range(ROWS):
        parts = {name: tokens[offsets[row] : offsets[row + 1]] for name, (tokens, offsets) in dict(p=prompt, o=output).items()}
        begin, end = bias[2][row : row + 2]
        np.add.at(x[row], bias[0][begin:end], bias[1][begin:end])
        counts = np.bincount(parts["o"], minlength=VOCAB)
        seen = np.union1d(parts["p"], parts["o"]).astype(int)
        scaled = np.where(x[row] > 0, x[row] / repetition[row], x[row] * repetition[row])
        x[row, seen] = scaled[seen]
        x[row] = x[row] - frequency[row] * counts.astype(np.float32) - presence[row] * (counts > 0)
    return x


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_draw_is_one_from_adjusted_logits(framework, dtype, width):
    if framework.name == "jax" and width == 8:
        pytest.skip("JAX has no 64-bit arrays by default")
    rng = np.random.default_rng(width)
    x = (3 * rng.standard_normal((ROWS, VOCAB))).astype(dtype)
    allowed = rng.integers(-(2**31), 2**31, (ROWS, (VOCAB + 31) // 32)).astype(np.int32)
    tokens, offsets = ragged(rng, 30, width)
    bias = tokens, rng.integers(-4, 5, len(tokens)).astype(np.float32), offsets
    repetition, presence, frequency = (np.array(v, np.float32) for v in ([1.5, 1, 0.5, 2], [1, 0, -0.5, 2], [0.25, 1, 0, -1]))
    prompt, output = ragged(rng, 50, width), ragged(rng, 50, width)
    make = framework.make
    for given in (dict(), dict(top_p=0.8), dict(top_k=9, temperature=0.5), dict(temperature=0)):
        result = riffle.sample(
            make(x), seed=3, allowed=make(allowed), logit_bias=tuple(map(make, bias)), repetition_penalty=make(repetition),
            presence_penalty=make(presence), frequency_penalty=make(frequency), prompt_tokens=tuple(map(make, prompt)),
            output_tokens=tuple(map(make, output)), return_logprobs=True, **given)  # fmt: skip
        expected = riffle.sample(adjusted(x, allowed, bias, repetition, presence, frequency, prompt, output), seed=3, **given)
        made = framework.to_numpy(result[0])
        np.testing.assert_array_equal(made, expected)
        wide = x.astype(np.float64)
        truth = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
        np.testing.assert_allclose(framework.to_numpy(result[1]), truth[np.arange(ROWS), made], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_top_logprobs(framework, dtype):
    x = np.random.default_rng(5).standard_normal((ROWS, VOCAB)).astype(dtype)
    x[2, 7] = np.nan
    tokens, values, best = riffle.sample(framework.make(x), top_logprobs=5, on_invalid="token", repetition_penalty=2.0)
    values, best = framework.to_numpy(values), framework.to_numpy(best)
    assert values.dtype == np.float32 and best.dtype == np.int32 and values.shape == best.shape == (ROWS, 5)
    rows = [0, 1, 3]
    columns = riffle.top_k(x, 5).indices
    np.testing.assert_array_equal(best[rows], columns[rows])
    wide = x.astype(np.float64)[rows]
    truth = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    np.testing.assert_allclose(values[rows], np.take_along_axis(truth, columns[rows], -1), rtol=2e-6, atol=2e-6)
    assert np.isnan(values[2]).all() and (best[2] == -1).all()
    assert framework.to_numpy(tokens)[2] == -1
    assert len(riffle.sample(x[:2], top_logprobs=VOCAB, return_logprobs=True)) == 4


X = np.zeros((2, 40), np.float32)
ERRORS = [
    (dict(top_logprobs=41), ValueError, r"top_logprobs = 41 is not in 0\.\.40"),
    (dict(top_logprobs=-1), ValueError, r"top_logprobs = -1 is not in"),
    (dict(allowed=np.zeros((2, 1), np.int32)), ValueError, r"allowed has shape \(2, 1\)"),
    (dict(allowed=np.zeros((2, 2), np.int64)), TypeError, r"allowed has dtype int64"),
    (dict(logit_bias=(np.arange(2), np.ones(2))), ValueError, r"logit_bias, a tuple, has 2 parts; it must be \(tokens, values, offsets\)"),
    (dict(logit_bias=(np.arange(2), np.array([1, np.inf]), np.array([0, 1, 2]))), ValueError, r"logit_bias: values\[1\] = inf"),
    (dict(prompt_tokens=(np.array([1, 40]), np.array([0, 1, 2]))), ValueError, r"prompt_tokens\[1\] = 40 is not in 0\.\.39"),
    (dict(output_tokens=(np.array([1, 2**40]), np.array([0, 1, 2]))), ValueError, r"output_tokens\[1\] = \d+ is not in"),
    (dict(output_tokens=(np.array([1, 4]), np.array([0, 2]))), ValueError, r"output_tokens has 2 offsets for 2 rows"),
    (dict(repetition_penalty=0), ValueError, r"repetition_penalty\[0\] = 0 is not finite and above 0"),
    (dict(presence_penalty=np.array([0, np.nan])), ValueError, r"presence_penalty\[1\] = nan is not finite"),
]


@pytest.mark.parametrize("arguments,kind,text", ERRORS)
def test_errors(arguments, kind, text):
    with pytest.raises(kind, match=text):
        riffle.sample(X, **arguments)


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("probable", [False, True])
@pytest.mark.parametrize("n", [7, 1500])
def test_verified_drafts_follow_the_target(n, probable):
    rng = np.random.default_rng(n)
    requests = 4000 if n < 100 else 1000
    target, q = 3 * rng.random((2, n), np.float32), softmax(4 * rng.random(n)).astype(np.float32)
    drafts = np.searchsorted(np.cumsum(q.astype(np.float64)), rng.random(requests)).clip(max=n - 1)
    given = dict(draft_probs=np.broadcast_to(q, (requests, n))) if probable else {}
    made = riffle.verify_drafts(np.tile(target, (requests, 1)), drafts, np.arange(requests + 1), seed=5, **given)
    assert made.shape == (requests, 2) and (made[:, 0] >= 0).all()
    accepted = made[:, 0] == drafts
    assert ((made[:, 1] >= 0) == accepted).all()
    for tokens, x in ((made[:, 0], target[0]), (made[accepted, 1], target[1])):
        if len(tokens) < 100:  # one draft of 1500 equally likely tokens is hardly ever accepted: too few to tell a distribution
            assert n == 1500 and not probable
            continue
        order = np.argsort(-x)
        p = softmax(x.astype(np.float64))
        bins = np.array_split(order, min(n, 12))  # as many tokens are expected in each
        expected = np.array([p[b].sum() for b in bins]) * len(tokens)
        seen = np.array([np.isin(tokens, b).sum() for b in bins])
        freedom = len(bins) - 1
        assert ((seen - expected) ** 2 / expected).sum() <= freedom + 6 * np.sqrt(2 * freedom) + 12
    if probable:  # the best that any verification can do
        most = np.minimum(softmax(target[0].astype(np.float64)), q).sum()
        assert abs(accepted.mean() - most) < 5 * np.sqrt(most * (1 - most) / requests) + 1e-3


def test_drafts_without_probabilities_give_the_tokens_of_sample(framework):
    x = np.random.default_rng(6).standard_normal((7, 500)).astype(np.float32)
    drawn = riffle.sample(x, top_p=0.9, stream=np.array([0, 0, 0, 0, 1, 2, 2]), position=np.array([4, 5, 6, 7, 9, 0, 1]))
    drafts = np.array([drawn[0], drawn[1], (drawn[2] + 1) % 500, drawn[5]], np.int32)
    make = framework.make
    made = riffle.verify_drafts(make(x), make(drafts), make(np.array([0, 3, 3, 4], np.int32)), top_p=0.9, position=make(np.array([4, 9, 0], np.int32)))
    expected = [[drawn[0], drawn[1], drawn[2], -1], [drawn[4], -1, -1, -1], [drawn[5], drawn[6], -1, -1]]
    np.testing.assert_array_equal(framework.to_numpy(made), expected)


def test_verify_errors():
    x = np.zeros((3, 10), np.float32)
    for arguments, text in (
        (dict(draft_tokens=np.array([1, 10])), r"draft_tokens\[1\] = 10 is not in 0\.\.9"),
        (dict(offsets=np.array([0, 1, 2])), r"logits has 3 rows for 2 drafts of 2 requests"),
        (dict(draft_probs=np.zeros((1, 10), np.float32)), r"draft_probs has shape \(1, 10\)"),
        (dict(temperature=np.ones(2)), r"temperature has 2 elements for 1 rows"),
    ):
        with pytest.raises(ValueError, match=text):
            riffle.verify_drafts(**{"logits": x, "draft_tokens": np.array([1, 2]), "offsets": np.array([0, 2]), **arguments})

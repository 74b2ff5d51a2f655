"""vLLM's V1 sampler with Riffle in it, against vLLM's own and against distributions in double."""

import math

import pytest
import torch

sampler_case = pytest.importorskip("sampler_case", reason="vLLM is not installed")

from sampler_case import Sampler, batch, native, topk_topp_sampler  # noqa: E402

pytestmark = pytest.mark.quick


def logits_of(rows: int, vocab: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(sampler: Sampler, logits: torch.Tensor, metadata) -> list[int]:
    return sampler(logits.clone(), metadata).sampled_token_ids.flatten().tolist()


def test_it_is_installed():
    assert sampler_case.REASON is None
    names = {name for _, name in sampler_case.CHANGED}
    assert {"sample", "forward", "greedy_sample", "gather_logprobs", "forward_cpu", "apply_top_k_top_p", "parse_output"} <= names
    assert {"_update_request_with_output", "_sample", "_bookkeeping_sync"} <= names


@pytest.mark.parametrize("vocab", [7, 1000, 32003])
@pytest.mark.parametrize("ties", [False, True])
def test_greedy_is_vllms(vocab, ties):
    logits = logits_of(9, vocab)
    if ties:
        logits = logits.round()
    expected = logits.argmax(-1).tolist() if not ties else [row.index(max(row)) for row in logits.tolist()]
    assert tokens(Sampler(), logits, batch(9, temperature=0.0)) == expected
    with native():
        assert tokens(Sampler(), logits, batch(9, temperature=0.0)) == expected


def test_greedy_rows_among_others():
    logits = logits_of(8, 500)
    temperature = [0.0, 1.0, 1e-6, 2.0, 0.5, 0.0, 1.0, 1e-6]
    metadata = batch(8, temperature, top_k=50, top_p=0.9, all_greedy=False, all_random=False)
    got = tokens(Sampler(), logits, metadata)
    best = logits.argmax(-1).tolist()
    assert [got[i] for i in (0, 2, 5, 7)] == [best[i] for i in (0, 2, 5, 7)]


def probabilities(logits: torch.Tensor, temperature: float, top_k: int | None, top_p: float | None, min_p: float) -> torch.Tensor:
    """vLLM's distribution of a row, in double: temperature, min-p, top-k, top-p, each of what the one before it left."""
    p = (logits.double() / temperature).softmax(-1)
    p = torch.where(p < min_p * p.max(), 0.0, p)
    order = p.argsort(descending=True)
    kept = p[order] / p.sum()
    if top_k is not None:
        kept[top_k:] = 0
        kept /= kept.sum()
    if top_p is not None:
        before = kept.cumsum(0) - kept  # a token stays if the mass before it is below top_p
        kept[before >= top_p] = 0
    return torch.zeros_like(p).scatter(0, order, kept / kept.sum())


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, None, None, 0.0),
        (0.7, None, None, 0.0),
        (1.0, 5, None, 0.0),
        (1.3, None, 0.8, 0.0),
        (1.0, 12, 0.7, 0.0),
        (1.0, None, None, 0.1),
        (1.5, 9, None, 0.05),
        (1.0, None, 0.75, 0.1),  # min-p before top-p: what is left is renormalised
        (0.8, 20, 0.9, 0.02),
    ],
)
@pytest.mark.parametrize("who", ["riffle", "vllm"])
def test_distribution(temperature, top_k, top_p, min_p, who):
    draws, vocab = 20000, 40
    row = logits_of(1, vocab, seed=5, scale=1.5)
    metadata = batch(draws, temperature, top_k, top_p, min_p)
    torch.manual_seed(1)
    if who == "riffle":
        drawn = tokens(Sampler(), row.expand(draws, vocab), metadata)
    else:
        with native():
            drawn = tokens(Sampler(), row.expand(draws, vocab), metadata)
    expected = probabilities(row[0], temperature, top_k, top_p, min_p) * draws
    seen = torch.bincount(torch.tensor(drawn), minlength=vocab).double()
    assert seen[expected == 0].sum() == 0
    kept = expected > 0
    chi_squared = float(((seen - expected)[kept] ** 2 / expected[kept]).sum())
    degrees = int(kept.sum()) - 1
    # The 99.99 % quantile, by Wilson and Hilferty.
    limit = degrees * (1 - 2 / (9 * degrees) + 3.72 * math.sqrt(2 / (9 * degrees))) ** 3
    assert chi_squared < limit


def test_seeded_rows_do_not_depend_on_the_batch():
    logits = logits_of(6, 3000)

    def run(rows: list[int], seeded: dict[int, int]) -> list[list[int]]:
        generators = {place: generator(seeded[row]) for place, row in enumerate(rows) if row in seeded}
        metadata = batch(len(rows), top_k=200, top_p=0.95, generators=generators)
        return [tokens(Sampler(), logits[rows], metadata) for _ in range(5)]

    alone = [step[0] for step in run([2], {2: 77})]
    assert len(set(alone)) > 1
    torch.manual_seed(123)
    together = run([0, 5, 2, 4], {2: 77, 4: 5})
    assert [step[2] for step in together] == alone
    assert [step[0] for step in run([2, 1], {2: 77})] == alone
    assert [step[0] for step in run([2], {2: 78})] != alone


def test_rows_without_a_seed():
    logits = logits_of(1, 4000, scale=0.5).expand(64, 4000)
    torch.manual_seed(9)
    first, second = (tokens(Sampler(), logits, batch(64)) for _ in range(2))
    assert len(set(first)) > 40 and first != second
    torch.manual_seed(9)
    assert [tokens(Sampler(), logits, batch(64)) for _ in range(2)] == [first, second]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 40, "temperature": 0.7}, {"min_p": 0.02}])
def test_logits_of_the_models_own_type(dtype, params):
    logits = (logits_of(6, 3000)).to(dtype)

    def run(logits: torch.Tensor, **more):
        metadata = batch(6, generators={row: generator(row) for row in range(6)}, max_num_logprobs=4, **params, **more)
        return Sampler()(logits.clone(), metadata)

    untouched = run(logits)
    # A processor that does nothing, which nobody can know: vLLM's own steps.
    steps = run(logits, logitsprocs=sampler_case.LogitsProcessors([Nothing(), *min_p_processors(6, params)]))
    assert torch.equal(untouched.sampled_token_ids, steps.sampled_token_ids) and untouched.sampled_token_ids.dtype == torch.int32
    got, expected = untouched.logprobs_tensors, steps.logprobs_tensors
    assert [x.dtype for x in got[:3]] == [x.dtype for x in expected[:3]]
    torch.testing.assert_close(got.logprobs, expected.logprobs, rtol=0, atol=1e-5)
    assert torch.equal(got.selected_token_ranks, expected.selected_token_ranks)
    if dtype == torch.float32:  # no ties
        assert torch.equal(got.logprob_token_ids, expected.logprob_token_ids)


def min_p_processors(rows: int, params: dict) -> list:
    return [sampler_case.min_p_processor(rows, params["min_p"])] if "min_p" in params else []


class Nothing(sampler_case.MinPLogitsProcessor):
    def __init__(self):
        pass

    def is_argmax_invariant(self):
        return False

    def apply(self, logits):
        return logits


@pytest.mark.parametrize("mode", ["raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_log_probabilities(mode, count):
    logits = logits_of(5, 2000)
    metadata = batch(5, temperature=0.8, top_k=400, top_p=0.97, max_num_logprobs=count)
    output = Sampler(mode)(logits.clone(), metadata)
    mine = output.logprobs_tensors
    with native():
        # The same tokens, so that their log-probabilities and ranks are compared too.
        raw = Sampler(mode)(logits.clone(), batch(5, temperature=0.8, top_k=400, top_p=0.97, max_num_logprobs=-1)).logprobs_tensors.logprobs
        theirs = Sampler.gather_logprobs(raw, count, output.sampled_token_ids.flatten().long())
    assert mine.logprob_token_ids.dtype == theirs.logprob_token_ids.dtype
    kept = theirs.logprobs > -math.inf  # masked tokens come in any order
    assert torch.equal(mine.logprob_token_ids[kept], theirs.logprob_token_ids[kept])
    torch.testing.assert_close(mine.logprobs, theirs.logprobs, rtol=0, atol=1e-5)
    assert torch.equal(mine.selected_token_ranks, theirs.selected_token_ranks)


@pytest.mark.parametrize(("top_k", "top_p"), [(5, None), (None, 0.9), (50, 0.6), (1, 0.5), (2000, 1.0), (None, None)])
def test_masks_are_vllms(top_k, top_p):
    logits = logits_of(6, 2000)
    k = None if top_k is None else torch.full((6,), top_k, dtype=torch.int32)
    p = None if top_p is None else torch.full((6,), top_p)
    got = topk_topp_sampler.apply_top_k_top_p(logits.clone(), k, p)
    with native():
        expected = topk_topp_sampler.apply_top_k_top_p(logits.clone(), k, p)
    assert torch.equal(got, expected)


def test_mask_of_min_p_is_vllms():
    logits = logits_of(6, 2000)
    processor = sampler_case.min_p_processor(6, 0.03)
    got = processor.apply(logits.clone())
    with native():
        expected = processor.apply(logits.clone())
    assert torch.equal(got, expected) and 0 < got.isinf().sum() < got.numel()


class Only(sampler_case.MinPLogitsProcessor):
    """A logits processor of a user: leaves one token."""

    def __init__(self, token):
        self.token = token

    def apply(self, logits):
        kept = logits[:, self.token].clone()
        logits.fill_(-math.inf)
        logits[:, self.token] = kept
        return logits


def test_other_logits_processors_are_applied():
    metadata = batch(4, logitsprocs=sampler_case.LogitsProcessors([Only(17)]))
    assert tokens(Sampler(), logits_of(4, 100), metadata) == [17] * 4


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("more", [{}, {"top_p": 0.9}, {"top_k": 5, "min_p": 0.1}, {"top_p": 0.9, "min_p": 0.1}, {"temperature": 0.0}])
@pytest.mark.parametrize("logprobs", [{}, {"max_num_logprobs": 3}, {"max_num_logprobs": 0, "logprob_token_ids": {0: [3, 4], 2: [5]}}])
def test_a_bad_row_harms_only_itself(bad, more, logprobs):
    logits = logits_of(4, 300)
    broken = logits.clone()
    broken[2, slice(7, 8) if math.isnan(bad) else slice(None)] = bad

    def run(logits: torch.Tensor):
        metadata = batch(4, generators={row: generator(row) for row in range(4)}, **more, **logprobs)
        return Sampler()(logits, metadata)

    good, got = run(logits.clone()), run(broken)
    assert got.sampled_token_ids[2].item() == -1
    for row in (0, 1, 3):
        assert got.sampled_token_ids[row].item() == good.sampled_token_ids[row].item() >= 0
        if logprobs:
            torch.testing.assert_close(got.logprobs_tensors.logprobs[row], good.logprobs_tensors.logprobs[row])

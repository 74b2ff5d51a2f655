"""Speculative decoding: what vLLM's rejection sampler draws with Riffle in it has the target's distribution."""

import math

import pytest
import torch

sampler_case = pytest.importorskip("sampler_case", reason="vLLM is not installed")

from sampler_case import RejectionSampler, Sampler, batch  # noqa: E402
from test_sampler import logits_of, probabilities  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402
from vllm.v1.sample import rejection_sampler  # noqa: E402
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata  # noqa: E402

current_platform.import_kernels()
current_platform.register_triton_kernel_overrides()

pytestmark = pytest.mark.quick


def outputs(logits: torch.Tensor, drafts: list[list[int]], draft_probs: torch.Tensor | None = None, **params) -> torch.Tensor:
    """The tokens [request, 2] of requests with one draft each, where logits are [2, vocab] of each of them."""
    metadata = SpecDecodeMetadata.make_dummy(drafts, torch.device("cpu"))
    metadata.target_logits_indices = torch.arange(len(drafts)) * 2
    metadata.bonus_logits_indices = torch.arange(len(drafts)) * 2 + 1
    per_request = batch(len(drafts), spec_token_ids=drafts, **params)
    rows = logits.repeat(len(drafts), 1)
    return RejectionSampler(Sampler())(metadata, draft_probs, rows, per_request).sampled_token_ids


def check(tokens: torch.Tensor, expected: torch.Tensor) -> None:
    """Chi-squared at 99.99 %."""
    seen = torch.bincount(tokens, minlength=len(expected)).double()
    expected = expected * len(tokens)
    kept = expected > 0
    assert seen[~kept].sum() == 0
    degrees = int(kept.sum()) - 1
    limit = degrees * (1 - 2 / (9 * degrees) + 3.72 * math.sqrt(2 / (9 * degrees))) ** 3
    assert float(((seen - expected)[kept] ** 2 / expected[kept]).sum()) < limit


@pytest.mark.parametrize("params", [{}, {"temperature": 0.6}, {"top_k": 6}, {"top_p": 0.8}, {"temperature": 1.5, "top_k": 20, "top_p": 0.9}])
@pytest.mark.parametrize("with_probabilities", [False, True])
def test_tokens_have_the_targets_distribution(params, with_probabilities):
    torch.manual_seed(3)
    requests, vocab = 20000, 30
    logits = logits_of(2, vocab, seed=8, scale=1.5)
    first, second = (probabilities(row, params.get("temperature", 1.0), params.get("top_k"), params.get("top_p"), 0.0) for row in logits)
    draft_probs = None
    if with_probabilities:
        # Drafts are drawn from a distribution of their own, which the sampler is told.
        row = logits_of(1, vocab, seed=9, scale=1.0).softmax(-1)
        draft_probs = row.repeat(requests, 1).contiguous()
        drafts = torch.multinomial(row[0], requests, replacement=True)
    else:
        drafts = torch.full((requests,), int(first.argmax()))
    tokens = outputs(logits, [[int(draft)] for draft in drafts], draft_probs, **params)
    check(tokens[:, 0].long(), first)
    accepted = tokens[:, 1] >= 0
    assert torch.equal(tokens[accepted, 0].long(), drafts[accepted]) and 0.05 < accepted.double().mean() < 1
    check(tokens[accepted, 1].long(), second)


def test_parameters_are_spread_over_drafts():
    expanded = rejection_sampler.expand_batch_to_tokens(
        torch.tensor([0.5, 0.0, 2.0]), torch.tensor([2, 2, 5], dtype=torch.int32), 5, replace_from=0, replace_to=1
    )
    assert expanded.tolist() == [0.5, 0.5, 2.0, 2.0, 2.0]
    k = torch.tensor([0, 40], dtype=torch.int32)
    assert rejection_sampler.expand_batch_to_tokens(k, torch.tensor([1, 3]), 3, 0, 1).tolist() == [1, 40, 40]

"""Tokens of a batch by riffle.sample."""

from __future__ import annotations

from typing import Any

import torch

import riffle
from riffle.vllm import _failed_requests

# Below this temperature a request is greedy, as in vLLM.
_GREEDY = 1e-5


def batch_arguments(batch: Any, min_p: type) -> dict[str, Any] | None:
    """The arguments of `draw` for a batch of vLLM's; None where vLLM's own steps must run one by one. `min_p`: vLLM's processor."""
    processors = batch.logitsprocs.argmax_invariant
    min_ps = [processor.min_p.view(-1) for processor in processors if type(processor) is min_p and processor.min_p_count]
    if (
        batch.all_greedy
        # Other processors want logits that are divided by the temperature.
        or any(type(processor) is not min_p for processor in processors)
        # vLLM's min-p comes before top-p, Riffle's after it.
        or (min_ps and batch.top_p is not None)
    ):
        return None
    temperature = batch.temperature
    if not batch.all_random:
        temperature = torch.where(temperature < _GREEDY, 0.0, temperature)
    return {
        "generators": batch.generators, "temperature": temperature, "top_k": batch.top_k, "top_p": batch.top_p,
        "min_p": min_ps[0] if min_ps else None,
    }  # fmt: skip


def greedy(logits: torch.Tensor, return_logprobs: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The best token of each row, as `draw`."""
    return _valid(riffle.sample(logits, temperature=0.0, on_invalid="token", return_logprobs=return_logprobs))


def draw(
    logits: torch.Tensor,
    generators: dict[int, torch.Generator],
    temperature: torch.Tensor | float = 1.0,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
    min_p: torch.Tensor | None = None,
    return_logprobs: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A token of each row, int64, and on request its log-probability among the raw logits.

    Each row draws from a stream of its own, whose number comes from its request's generator, or from PyTorch's for requests
    without a seed. So the tokens of a request with a seed depend on no other request; and all ranks of tensor parallelism,
    whose generators are seeded alike, draw the same.
    """
    streams = torch.empty(logits.shape[0], dtype=torch.int64).random_(0, 2**63 - 1)
    for row, generator in generators.items():
        streams[row : row + 1].random_(0, 2**63 - 1, generator=generator)
    return _valid(
        riffle.sample(
            logits,
            temperature=temperature,
            top_k=0 if top_k is None else top_k,
            top_p=1.0 if top_p is None else top_p,
            min_p=0.0 if min_p is None else min_p,
            stream=streams,
            on_invalid="token",
            return_logprobs=return_logprobs,
        )
    )


def _valid(sampled: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tokens as int64, 0 for rows that have none: those are remembered for the end of the sampler's forward."""
    tokens, logprobs = sampled if isinstance(sampled, tuple) else (sampled, None)
    tokens = tokens.long()
    if tokens.numel() and int(tokens.min()) < 0:
        _failed_requests.remember(tokens < 0)
        tokens = tokens.clamp_(min=0)
    return tokens, logprobs

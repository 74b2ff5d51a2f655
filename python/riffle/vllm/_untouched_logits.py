"""Batches whose logits no request changes before the draw: they are read where they are, in the model's own type.

vLLM copies the logits of every batch into float32, and takes log-softmax of the whole vocabulary where log-probabilities are
wanted. In a step of a small model of 262144 tokens that is more than the draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import riffle.torch
from riffle.vllm._draws import batch_arguments, draw, greedy
from riffle.vllm._interfaces import find

# Processors of vLLM's that change no logits while these attributes of theirs are empty.
_IDLE_WHEN_EMPTY = {"MinTokensLogitsProcessor": "min_toks", "LogitBiasLogitsProcessor": "biases", "AdapterLogitsProcessor": "req_info"}


def forward(native: Callable[..., Any], gather_logprobs: Callable[..., Any], min_p: type) -> Callable[..., Any]:
    """The sampler's forward, for such batches; `native` for all others."""
    output = find("vllm.v1.outputs", "SamplerOutput")
    processors = find("vllm.v1.sample.logits_processor")
    idle = {getattr(processors, name): empty for name, empty in _IDLE_WHEN_EMPTY.items() if hasattr(processors, name)}

    def riffle_forward(
        sampler: Any, logits: torch.Tensor, sampling_metadata: Any, predict_bonus_token: bool = False, logprobs_mode_override: Any = None
    ) -> Any:
        batch, mode = sampling_metadata, logprobs_mode_override or sampler.logprobs_mode
        count = batch.max_num_logprobs
        arguments = None
        if (
            not sampler.use_fp64_gumbel
            and mode in ("raw_logprobs", "raw_logits")
            and sampler.logprobs_mode == mode
            and (count is None or 0 <= count <= logits.shape[-1])
            and logits.dtype in (torch.float32, torch.bfloat16, torch.float16)
            and _untouched(batch, idle)
        ):
            arguments = {} if batch.all_greedy else batch_arguments(batch, min_p)
        if arguments is None:
            return native(sampler, logits, batch, predict_bonus_token, logprobs_mode_override)
        draw_tokens = greedy if batch.all_greedy else draw
        tokens, logprobs = draw_tokens(logits, **arguments, return_logprobs=count is not None)
        best = None if logprobs is None or count is None else _best(gather_logprobs, logits, count, tokens, logprobs if mode == "raw_logprobs" else None)
        return output(sampled_token_ids=tokens.to(torch.int32).unsqueeze(-1), logprobs_tensors=best)

    return riffle_forward


def _untouched(batch: Any, idle: dict[type, str]) -> bool:
    """Whether vLLM would draw from the logits as they are."""
    holder = batch.thinking_budget_state_holder
    return (
        batch.no_penalties
        and batch.allowed_token_ids_mask is None
        and not batch.bad_words_token_ids
        and not batch.logprob_token_ids
        and not (holder is not None and holder.has_tracked_requests())
        and not any(_active(processor, idle) for processor in batch.logitsprocs.non_argmax_invariant)
    )


def _active(processor: Any, idle: dict[type, str]) -> bool:
    for kind in type(processor).__mro__:
        # A class with an `apply` of its own may do anything; one that inherits it is judged by the parent.
        if kind in idle:
            return bool(getattr(processor, idle[kind], True))
        if "apply" in vars(kind):
            return True
    return True


def _best(
    gather_logprobs: Callable[..., Any], logits: torch.Tensor, count: int, tokens: torch.Tensor, logprobs: torch.Tensor | None
) -> Any:
    """vLLM's LogprobsTensors of the tokens and of the `count` best; of logits where there are no log-probabilities."""
    token = gather_logprobs(logits, 0, tokens)  # their ranks
    own = token.logprobs.double()
    # log-probability = logit - log(sum(exp(logits))): the difference is the same for all tokens of a row.
    normaliser = 0.0 if logprobs is None else own - logprobs.double().unsqueeze(1)
    ids, values = token.logprob_token_ids, own
    if count:
        best = riffle.torch.topk(logits, count)
        ids = torch.cat((ids, best.indices.to(torch.int32)), dim=1)
        values = torch.cat((values, best.values.double()), dim=1)
    return token._replace(logprob_token_ids=ids, logprobs=(values - normaliser).float())

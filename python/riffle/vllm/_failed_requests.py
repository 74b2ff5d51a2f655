"""A request whose logits have a NaN, or nothing above -inf, ends with an error; the others of its batch go on.

The sampler gives such a row the token -1. vLLM has no way for a worker to fail a request, so its scheduler is told here: a
request that is given -1 is finished with the reason "error", which the server answers with status 500.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from riffle.vllm._interfaces import InterfaceMismatch, expect_parameters, find

INVALID = -1

_scheduler_knows = False
_rows = threading.local()


def install() -> None:
    """Tells vLLM's scheduler. Where its interfaces differ, such a request is given token 0 and goes on."""
    global _scheduler_knows
    try:
        scheduler = find("vllm.v1.core.sched.scheduler", "Scheduler")
        status = find("vllm.v1.request", "RequestStatus", "FINISHED_ERROR")
        update = find("vllm.v1.core.sched.scheduler", "Scheduler", "_update_request_with_output")
        rejection = find("vllm.v1.sample.rejection_sampler", "RejectionSampler")
        expect_parameters(update, "self", "request", "new_token_ids", "is_stale")
        expect_parameters(rejection.parse_output, "output_token_ids", "vocab_size", "discard_req_indices", "logprobs_tensors")
    except InterfaceMismatch:
        return
    scheduler._update_request_with_output = _finishing(update, status)
    rejection.parse_output = staticmethod(_keeping_empty(rejection.parse_output))
    _scheduler_knows = True


def remember(rows: torch.Tensor) -> None:
    """Rows (bool) that the sampler's forward, which is running, found no token for."""
    before = getattr(_rows, "rows", None)
    _rows.rows = rows if before is None or before.shape != rows.shape else before | rows


def marking(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The sampler's forward, with -1 for rows that have no token: what runs inside indexes by tokens, and sees 0."""

    def riffle_forward(sampler: Any, *args: Any, **kwargs: Any) -> Any:
        _rows.rows = None
        output = forward(sampler, *args, **kwargs)
        if _rows.rows is not None and _scheduler_knows:
            output.sampled_token_ids.masked_fill_(_rows.rows.unsqueeze(1), INVALID)
        _rows.rows = None
        return output

    return riffle_forward


def _finishing(update: Callable[..., Any], status: Any) -> Callable[..., Any]:
    def _update_request_with_output(
        scheduler: Any, request: Any, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        if INVALID not in new_token_ids:
            return update(scheduler, request, new_token_ids, is_stale)
        good = new_token_ids[: new_token_ids.index(INVALID)]
        if good:
            good, stopped = update(scheduler, request, good, is_stale)
            if stopped:
                return good, stopped
        request.status = status
        request.resumable = False
        return good, True

    return _update_request_with_output


def _keeping_empty(parse_output: Callable[..., Any]) -> Callable[..., Any]:
    """With speculative decoding -1 means "rejected" and is dropped. A request that is left with nothing has failed."""

    def riffle_parse_output(
        output_token_ids: torch.Tensor, vocab_size: int, discard_req_indices: Any = (), logprobs_tensors: Any = None
    ) -> tuple[list[list[int]], Any]:
        tokens, logprobs = parse_output(output_token_ids, vocab_size, discard_req_indices, logprobs_tensors)
        discarded = {int(row) for row in discard_req_indices}
        return [row or ([] if i in discarded else [INVALID]) for i, row in enumerate(tokens)], logprobs

    return riffle_parse_output

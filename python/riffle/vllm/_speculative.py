"""Parameters of requests, spread over their drafts, where speculative decoding samples on CPUs.

vLLM 0.32's kernel for CPUs writes them into a copy that is thrown away, so temperature, top-k and top-p of drafts are
whatever the memory held.
"""

from __future__ import annotations

import torch

from riffle.vllm._interfaces import InterfaceMismatch, expect_parameters, find, replace_function


def install() -> None:
    """Replaces expand_batch_to_tokens. Does nothing where vLLM's interfaces differ."""
    try:
        native = find("vllm.v1.sample.rejection_sampler", "expand_batch_to_tokens")
        expect_parameters(native, "x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to")
    except InterfaceMismatch:
        return

    def expand_batch_to_tokens(
        x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
    ) -> torch.Tensor:
        if not x.is_cpu:
            return native(x, cu_num_tokens, num_tokens, replace_from, replace_to)
        counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
        expanded = torch.repeat_interleave(x, counts.long(), output_size=num_tokens)
        return expanded if replace_from == replace_to else expanded.masked_fill_(expanded == replace_from, replace_to)

    replace_function(native, expand_batch_to_tokens)

"""A sampler for Transformers' generate."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LogitsProcessor

import riffle


class Sampler(LogitsProcessor):
    """Draws the next token by riffle.sample: temperature, top-k, top-p and min-p without a sort of the vocabulary.

    For `model.generate(..., do_sample=False, logits_processor=LogitsProcessorList([Sampler(top_p=0.95)]))`: it raises the
    token that it drew above all others, and greedy search takes it. It must be the last processor, and it replaces
    do_sample and the temperature, top_k, top_p and min_p of generate. A sequence's tokens depend on its logits, the seed and the number of its row, not
    on PyTorch's generator.

    Args: as riffle.sample: one number, or one a row.

    >>> import torch, riffle.transformers
    >>> sampler = riffle.transformers.Sampler(top_k=1)
    >>> sampler(torch.tensor([[1, 2]]), torch.tensor([[0.5, 2.0, 1.0]]))
    tensor([[0.5000,    inf, 1.0000]])
    """

    def __init__(self, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed: int = 0) -> None:
        self._parameters: dict[str, Any] = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores [rows, vocab] with +inf at the tokens drawn; written in place."""
        tokens: Any = riffle.sample(scores, position=input_ids.shape[-1], **self._parameters)
        return scores.scatter_(1, tokens.to(torch.int64)[:, None], float("inf"))

"""An LM head for Transformers that computes only the logits that count."""

from __future__ import annotations

from typing import Any

import torch

import riffle.torch


class TopKHead(torch.nn.Module):
    """An LM head whose logits are those of `head` for the k largest of each row, and -inf for all others.

    Computed by riffle.linear_top_k on the weight and bias of `head`, which it shares; see use_top_k_head.

    >>> import torch, riffle.transformers
    >>> head = torch.nn.Linear(2, 3, bias=False)
    >>> _ = head.requires_grad_(False).weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    >>> riffle.transformers.TopKHead(head, 2)(torch.tensor([[3.0, 4.0]]))
    tensor([[-inf, 4., 7.]])
    """

    def __init__(self, head: torch.nn.Linear, k: int) -> None:
        super().__init__()
        if not isinstance(head, torch.nn.Linear):
            raise ValueError(f"the LM head is {type(head).__name__}, not torch.nn.Linear")
        if not 1 <= k <= head.out_features:
            raise ValueError(f"k = {k} is not in 1..{head.out_features}")
        self.in_features, self.out_features, self.k = head.in_features, head.out_features, k
        self.weight, self.bias = head.weight, head.bias

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states [..., d] -> logits [..., vocab] of the same dtype."""
        if torch.is_grad_enabled() and (hidden_states.requires_grad or self.weight.requires_grad):
            raise ValueError("an LM head of the k largest logits has no gradient; use torch.no_grad()")
        x, bias = hidden_states.detach().reshape(-1, self.in_features), self.bias
        logits = x.new_full((x.shape[0], self.out_features), -torch.inf)
        values, indices = riffle.torch.linear_top_k(
            x, self.weight.detach(), self.k, bias=None if bias is None else bias.detach()
        )
        logits.scatter_(1, indices.to(torch.int64), values.to(x.dtype))
        return logits.view(*hidden_states.shape[:-1], self.out_features)


def use_top_k_head(model: Any, k: int) -> None:
    """Replaces the LM head of a model by TopKHead(head, k), or for k = 0 puts the head back.

    Greedy search, and sampling whose top_k is at most k, give what they gave before; the draws of others are renormalised
    over the k largest logits. What reads other logits is not supported: beam search, penalties and processors that raise or
    lower tokens before the top_k, losses, perplexity.

    Raises:
      ValueError: k is not in 0..vocab; the head is not a torch.nn.Linear; the model has a soft cap on its logits, which
        makes -inf finite.
    """
    head = model.get_output_embeddings()
    if isinstance(head, TopKHead):
        bias = head.bias is not None
        linear = torch.nn.Linear(head.in_features, head.out_features, bias=bias, device="meta")
        linear.weight, linear.bias = head.weight, head.bias
        head = linear
    if k and getattr(model.config.get_text_config(), "final_logit_softcapping", None) is not None:
        raise ValueError("the model caps its logits: those that were left out would count")
    model.set_output_embeddings(TopKHead(head, k) if k else head)

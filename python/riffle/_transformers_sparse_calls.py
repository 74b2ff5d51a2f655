"""What the layers of sparse attention under Transformers have in common: refusals, and what a mask shows."""

from __future__ import annotations

from typing import Any

import torch

from riffle._transformers_masks import WITHOUT_EFFECT, Mask, VisibleKeys, additive_in, keys_of_each, keys_seen, visible_in


def refusal(model_type: str, reason: str) -> ValueError:
    return ValueError(f"riffle's sparse attention does not compute {model_type}: {reason}")


def check_call(layer: Any, hidden_states: torch.Tensor, kwargs: dict[str, Any]) -> None:
    """Raises ValueError for a call of a layer that riffle would compute wrongly; kwargs: its other keywords."""
    model_type = layer.config.model_type
    if torch.is_grad_enabled() and (hidden_states.requires_grad or any(x.requires_grad for x in layer.parameters())):
        raise refusal(model_type, "it has no gradient; use torch.no_grad()")
    if layer.training and layer.attention_dropout:
        raise refusal(model_type, f"it has no dropout; attention_dropout = {layer.attention_dropout}")
    if hidden_states.device.type != "cpu":
        raise refusal(model_type, f"it runs on the CPU; the hidden states are on {hidden_states.device}")
    for name, argument in kwargs.items():
        if name not in WITHOUT_EFFECT and argument is not None and argument is not False:
            raise refusal(model_type, f"its layers get {name}, which riffle does not know")


def check_indexer(heads: int, dim: int) -> str | None:
    """Why riffle.indexer_top_k cannot take an indexer of this size; None where it can."""
    if 1 <= heads <= 128 and dim % 16 == 0 and 32 <= dim <= 256:
        return None
    return f"index_n_heads = {heads} and index_head_dim = {dim}; riffle takes up to 128 heads of a multiple of 16 from 32 to 256"


def _visible(model_type: str, mask: Any, shape: tuple[int, int, int]) -> Mask | torch.Tensor:
    """A mask that is known by its description, or what it shows, bool [batch, queries, keys]."""
    if not isinstance(mask, torch.Tensor):
        raise refusal(model_type, f"its mask is of type {type(mask).__name__}")
    if mask.ndim != 4 or mask.shape[1] != 1 or any(n not in (1, m) for n, m in zip((mask.shape[0], *mask.shape[2:]), shape)):
        raise refusal(model_type, f"its mask is of shape {tuple(mask.shape)} for {shape[1]} queries and {shape[2]} keys")
    if isinstance(mask, Mask):
        return mask if (mask.shape[0], *mask.shape[2:]) == shape else mask.visible()[:, 0].expand(shape)
    try:
        adds = additive_in(mask) is not None
    except ValueError as error:
        raise refusal(model_type, f"{error}") from None
    if adds:
        raise refusal(model_type, "its mask does not only hide keys but adds to the logits")
    return visible_in(mask)[:, 0].expand(shape)


def keys_of(model_type: str, mask: Any, batch: int, q_len: int, kv_len: int) -> VisibleKeys:
    """Sequences whose queries see what the mask shows, causally: tokens are pages of one token each, one row of the batch after
    another."""
    known = _visible(model_type, mask, (batch, q_len, kv_len))
    keys = known.visible_keys(kv_len) if isinstance(known, Mask) else keys_seen(known, kv_len)
    one_each = keys.cu_q_lens is None
    if keys.mask is None and keys.window is None and (keys.causal or one_each):
        return keys
    return keys_of_each(known.visible()[:, 0] if isinstance(known, Mask) else known, kv_len)


def slots_of(model_type: str, mask: Any, batch: int, q_len: int, kv_len: int) -> torch.Tensor:
    """int32 [tokens, n]: row * kv_len + position of the keys that each query sees in its row of the batch, then -1."""
    known = _visible(model_type, mask, (batch, q_len, kv_len))
    if isinstance(known, Mask):
        keys = known.visible_keys(kv_len)
        if keys.mask is None and keys.causal:
            return _slots_by_position(keys)
        known = known.visible()[:, 0]
    keys = keys_of_each(known, kv_len)
    past_end = torch.arange(keys.page_table.shape[1]) >= keys.kv_lens[:, None]
    return keys.page_table.masked_fill(past_end, -1)


def _slots_by_position(keys: VisibleKeys) -> torch.Tensor:
    """The same for causal sequences of pages of one token, whose queries are their last positions."""
    lens = keys.kv_lens.to(torch.int64)
    q_lens = torch.ones_like(lens) if keys.cu_q_lens is None else keys.cu_q_lens.diff().to(torch.int64)
    sequence = torch.arange(len(lens)).repeat_interleave(q_lens)
    first = q_lens.cumsum(0) - q_lens
    position = torch.arange(len(sequence)) - first[sequence] + (lens - q_lens)[sequence]
    longest = max(int(lens.max()), 1)
    width = longest if keys.window is None else min(keys.window, longest)
    seen = position[:, None] - torch.arange(width)
    slots = keys.page_table[sequence[:, None], seen.clamp(min=0)]
    return slots.masked_fill(seen < 0, -1)

"""A layer of Transformers' DeepSeek-V4 on riffle: compressors, the indexer, and attention over two scopes."""

from __future__ import annotations

import importlib
from typing import Any, cast

import torch

import riffle
from riffle._transformers_sparse_calls import check_call, check_indexer, slots_of


def check(layer: Any) -> str | None:
    """Why riffle cannot compute a layer; None where it can."""
    dim = layer.head_dim
    if dim % 16 or not 32 <= dim <= 1024:
        return f"head_dim = {dim}; riffle takes multiples of 16 from 32 to 1024"
    indexer = getattr(layer.compressor, "indexer", None)
    return None if indexer is None else check_indexer(indexer.num_heads, indexer.head_dim)


def forward(self: Any, hidden_states, position_embeddings, position_ids, attention_mask, past_key_values=None, **kwargs):
    """A query sees a window of tokens and, of what came before, compressed entries: all of them (ratio 128 in the published
    models) or those that an indexer chooses (ratio 4). Keys are values."""
    check_call(self, hidden_states, kwargs)
    modeling = importlib.import_module(type(self).__module__)
    rotate, (cos, sin) = modeling.apply_rotary_pos_emb, position_embeddings[self.rope_layer_type]
    batch, q_len, _ = hidden_states.shape
    heads, dim = self.num_heads, self.head_dim
    q_residual = self.q_a_norm(self.q_a_proj(hidden_states))
    query = self.q_b_norm(self.q_b_proj(q_residual).view(batch, q_len, heads, dim).transpose(1, 2))
    query = rotate(query, cos, sin).transpose(1, 2).reshape(batch * q_len, heads, dim)
    rows = rotate(self.kv_norm(self.kv_proj(hidden_states)).view(batch, 1, q_len, dim), cos, sin)
    if past_key_values is not None:
        rows = past_key_values.update(rows, rows, self.layer_idx)[0]
    slots = slots_of(self.config.model_type, attention_mask, batch, q_len, rows.shape[2])
    layer = None if past_key_values is None else past_key_values.layers[self.layer_idx]
    extra = []
    if self.compressor is not None:
        entries = _entries(self.compressor, modeling, "compressor", hidden_states, layer)
        indexer = getattr(self.compressor, "indexer", None)
        if indexer is None:
            chosen = _all_entries(position_ids, batch, entries.shape[1], self.compressor.compress_rate)
        else:  # even if there are no entries: the indexer has a cache of its own to fill
            chosen = _select(indexer, modeling, hidden_states, q_residual, position_ids, layer)
        if entries.shape[1]:
            extra.append((entries.reshape(-1, dim), chosen, None, "plain"))
    scale, sinks = float(self.scaling), self.sinks.detach().float()
    out = cast(torch.Tensor, riffle.sparse_attention(query, rows.reshape(-1, dim), slots, extra=extra, scale=scale, sinks=sinks))
    # Values are rotated by their own positions; rotating back by the query's position leaves the distance.
    out = rotate(out.view(batch, q_len, heads, dim).transpose(1, 2), cos, -sin).transpose(1, 2)
    grouped = self.o_a_proj(out.reshape(batch, q_len, self.config.o_groups, -1))
    return self.o_b_proj(grouped.flatten(2)), None


def _entries(compressor: Any, modeling: Any, name: str, hidden_states: torch.Tensor, layer: Any) -> torch.Tensor:
    """[batch, entries, dim]: all entries so far, with those of the windows that hidden_states complete.

    name: the compressor's part of the cache layer. Without a cache layer the entries are those of the windows of hidden_states.
    """
    ratio, dim = compressor.compress_rate, compressor.head_dim
    kv, gates = compressor.kv_proj(hidden_states), compressor.gate_proj(hidden_states)
    overlap = kv.shape[-1] == 2 * dim
    first = 0
    if layer is not None:
        kv, gates, position = layer.store_compression_weights(name, kv, gates)
        first = position // ratio
    batch, windows = kv.shape[0], kv.shape[1] // ratio
    if windows == 0:
        made = kv.new_zeros(batch, 0, dim)
    else:
        kv, gates = (x[:, : windows * ratio].unflatten(1, (windows, ratio)) for x in (kv, gates))
        gates = gates + compressor.position_bias
        if overlap and layer is not None:
            kv, gates = _after_last_window(layer, name, kv, gates, dim)
        tokens = kv.shape[1] * ratio
        made = riffle.compress_kv(
            kv.reshape(batch * tokens, -1).detach(), gates.reshape(batch * tokens, -1).detach(), ratio=ratio, overlap=overlap,
            norm_weight=compressor.kv_norm.weight.detach().float(), norm_eps=compressor.kv_norm.variance_epsilon,
            cu_lens=torch.arange(batch + 1) * tokens, first_entries=torch.full((batch,), first),
        ).view(batch, windows, dim)  # fmt: skip
        positions = (torch.arange(windows) + first) * ratio
        cos_sin = compressor.rotary_emb(made, position_ids=positions.expand(batch, -1), layer_type=compressor.rope_layer_type)
        made = modeling.apply_rotary_pos_emb(made[:, None], *cos_sin)[:, 0]
    return made if layer is None else layer.update_compressor_states(name, made)


def _after_last_window(layer: Any, name: str, kv: torch.Tensor, gates: torch.Tensor, dim: int):
    """Windows [batch, windows, ratio, 2 * dim] preceded by the window before them, of which the cache keeps the first `dim` columns."""
    before = layer.update_overlap_state(name, kv, gates, dim)
    if before[0] is None:
        return kv, gates
    pad = torch.nn.functional.pad
    return tuple(torch.cat([pad(old, (0, dim)).to(new.dtype)[:, None], new], 1) for old, new in zip(before, (kv, gates)))


def _all_entries(position_ids: torch.Tensor, batch: int, entries: int, ratio: int) -> torch.Tensor:
    """int32 [tokens, entries] slots of the entries whose windows are complete at each position."""
    q_len = position_ids.shape[1]
    slots = (torch.arange(batch)[:, None] * entries + torch.arange(entries)).to(torch.int32)
    slots = slots[:, None].expand(batch, q_len, entries)
    if q_len > 1:  # a single query sees all entries, as in Transformers: with padding these may be more than are complete
        incomplete = torch.arange(entries) >= ((position_ids + 1) // ratio)[..., None]
        slots = slots.masked_fill(incomplete, -1)
    return slots.reshape(-1, entries)


def _select(indexer: Any, modeling: Any, hidden_states, q_residual, position_ids, layer) -> torch.Tensor:
    """int32 [tokens, k]: slots, batch row * entries + entry, of the entries that the indexer chooses; -1 pads."""
    keys = _entries(indexer, modeling, "indexer", hidden_states, layer)
    batch, entries, dim = keys.shape
    q_len, ratio = hidden_states.shape[1], indexer.compress_rate
    if entries == 0:
        return torch.empty(batch * q_len, 0, dtype=torch.int32)
    cos_sin = indexer.rotary_emb(hidden_states, position_ids=position_ids, layer_type=indexer.rope_layer_type)
    q = indexer.q_b_proj(q_residual).view(batch, q_len, indexer.num_heads, dim).transpose(1, 2)
    q = modeling.apply_rotary_pos_emb(q, *cos_sin).transpose(1, 2).reshape(batch * q_len, indexer.num_heads, dim)
    scorer = indexer.scorer
    weights = scorer.weights_proj(hidden_states).float().flatten(0, 1) * (scorer.weights_scaling * scorer.softmax_scale)
    positions = position_ids.expand(batch, q_len)
    table = (torch.arange(batch)[:, None] * entries + torch.arange(entries)).to(torch.int32)
    max_tokens = entries * ratio + ratio - 1  # as many tokens as there are entries for
    lens, cu_q_lens = positions[:, -1] + 1, torch.arange(batch + 1) * q_len
    if not bool((positions.diff(dim=1) == 1).all()) or int(lens.max()) > max_tokens:  # padding: each query is a sequence of its own
        lens, cu_q_lens = (positions.reshape(-1) + 1).clamp(max=max_tokens), None
        table = table.repeat_interleave(q_len, 0)
    return riffle.indexer_top_k(
        q.detach(), weights.detach(), keys.reshape(-1, 1, dim), lens, table, min(indexer.index_topk, entries),
        cu_q_lens=cu_q_lens, ratio=ratio, slots=True,
    )  # fmt: skip

"""DeepSeek's sparse attention (DSA) of Transformers' models on riffle.indexer_top_k and riffle.sparse_attention."""

from __future__ import annotations

import importlib
import types
from typing import Any, Callable

import torch

import riffle
from riffle._transformers_masks import Keys, Mask, keys_seen, visible_in

# The classes of attention that are known here, by model type, and whether they are GLM's: its indexers rotate neighbouring pairs, and
# its layers may share selections.
_KNOWN = {
    "deepseek_v32": ("DeepseekV32Attention", False),
    "glm_moe_dsa": ("GlmMoeDsaAttention", True),
}
_NOT_YET = {
    "deepseek_v4": "its layers attend to compressed entries, which Transformers keeps in caches of its own beside a sliding window",
}


def _refuse(model_type: str, reason: str) -> ValueError:
    return ValueError(f"riffle's sparse attention does not compute {model_type}: {reason}")


def _keys(model_type: str, mask: torch.Tensor, batch: int, q_len: int, kv_len: int) -> Keys:
    """What the mask shows, for tokens as pages of one token each, rows of the batch one behind the other."""
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[3] != kv_len:
        raise _refuse(model_type, f"its mask is of shape {tuple(mask.shape)} for {kv_len} keys")
    if isinstance(mask, Mask) and mask.shape[0] == batch and mask.shape[2] == q_len:
        keys = mask.keys(kv_len)
    else:
        try:
            visible = mask.visible() if isinstance(mask, Mask) else visible_in(mask)
        except ValueError as error:
            raise _refuse(model_type, f"{error}") from None
        keys = keys_seen(visible[:, 0].expand(batch, q_len, kv_len), kv_len)
    if keys.window is not None:
        raise _refuse(model_type, f"its mask has a window of {keys.window}")
    if not keys.causal and keys.cu_q_lens is not None:  # each query a sequence: the last token sees all
        times = keys.cu_q_lens.diff()
        keys = keys._replace(kv_lens=keys.kv_lens.repeat_interleave(times), page_table=keys.page_table.repeat_interleave(times, 0),
                             cu_q_lens=None)
    return keys


def _index_operands(indexer: Any, rotate: Callable, hidden_states, q_resid, position_embeddings, cache):
    """q [tokens, heads, d], weights [tokens, heads] and all index keys [batch, keys, d] of an indexer."""
    batch, q_len, _ = hidden_states.shape
    cos, sin = position_embeddings
    rope = indexer.qk_rope_head_dim
    q = indexer.wq_b(q_resid).view(batch, q_len, indexer.n_heads, indexer.head_dim)
    k = indexer.k_norm(indexer.wk(hidden_states)).unsqueeze(2)
    q_rot, k_rot = rotate(q[..., :rope], k[..., :rope], cos, sin, unsqueeze_dim=2)
    q = torch.cat([q_rot, q[..., rope:]], dim=-1)
    k = torch.cat([k_rot, k[..., rope:]], dim=-1).squeeze(2)
    if cache is not None:
        k = cache.update_indexer(k, indexer.layer_idx)
    weights = indexer.weights_proj(hidden_states.to(indexer.weights_proj.weight.dtype)).float()
    weights = weights * (indexer.n_heads**-0.5 * indexer.softmax_scale)
    return q.flatten(0, 1), weights.flatten(0, 1).contiguous(), k


def _select(indexer: Any, operands, where: Keys) -> torch.Tensor:
    """int32 [tokens, k] slots of the cache."""
    q, weights, keys = operands
    batch, kv_len, dim = keys.shape
    return riffle.indexer_top_k(q, weights, keys.reshape(batch * kv_len, 1, dim), where.kv_lens, where.page_table,
                                min(indexer.index_topk, kv_len), cu_q_lens=where.cu_q_lens, slots=True)


def _absorbed(attention: Any, query: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """query [tokens, heads, nope + rope] over latent rows [slots, lora + rope]: [tokens, heads * v]."""
    nope, rank = attention.qk_nope_head_dim, attention.kv_lora_rank
    weight = attention.kv_b_proj.weight.view(attention.num_heads, nope + attention.v_head_dim, rank)
    q = torch.cat([torch.einsum("thn,hnr->thr", query[..., :nope], weight[:, :nope]), query[..., nope:]], dim=-1)
    out = riffle.sparse_attention(q, rows, slots, value_dim=rank, scale=float(attention.scaling))
    return torch.einsum("thr,hvr->thv", out, weight[:, nope:]).flatten(1)


def _forward(
    self: Any,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor,
    past_key_values: Any = None,
    position_ids: torch.Tensor | None = None,
    prev_topk_indices: torch.Tensor | None = None,
    **kwargs: Any,
):
    """The forward of a DSA layer: latent rows stay compressed, only the selected ones are read."""
    model_type = self.config.model_type
    if torch.is_grad_enabled() and hidden_states.requires_grad:
        raise ValueError("riffle's sparse attention has no gradient; use torch.no_grad()")
    if attention_mask is None:
        raise _refuse(model_type, "its layer comes without a mask")
    modeling, shares = self._riffle_sparse
    batch, q_len, _ = hidden_states.shape
    rope = self.qk_rope_head_dim
    q_resid = self.q_a_layernorm(self.q_a_proj(hidden_states))
    query = self.q_b_proj(q_resid).view(batch, q_len, self.num_heads, self.qk_head_dim).transpose(1, 2)
    q_pass, q_rot = query.split([self.qk_nope_head_dim, rope], dim=-1)
    latent, k_rot = self.kv_a_proj_with_mqa(hidden_states).split([self.kv_lora_rank, rope], dim=-1)
    latent = self.kv_a_layernorm(latent).view(batch, 1, q_len, self.kv_lora_rank)
    q_rot, k_rot = modeling.apply_rotary_pos_emb_interleave(q_rot, k_rot.view(batch, 1, q_len, rope), *position_embeddings)
    if past_key_values is not None:
        latent, k_rot = past_key_values.update(latent, k_rot, self.layer_idx)
    kv_len = latent.shape[2]
    rows = torch.cat([latent, k_rot], dim=-1).view(batch * kv_len, self.kv_lora_rank + rope)
    where = _keys(model_type, attention_mask, batch, q_len, kv_len)
    if self.indexer is not None:
        rotate = modeling.apply_rotary_pos_emb_interleave if shares else modeling.apply_rotary_pos_emb
        operands = _index_operands(self.indexer, rotate, hidden_states, q_resid, position_embeddings, past_key_values)
        if operands[2].shape[1] != kv_len:
            raise _refuse(model_type, f"its cache has {kv_len} rows and {operands[2].shape[1]} index keys")
        slots = _select(self.indexer, operands, where)
    elif prev_topk_indices is None:
        raise ValueError("a layer that shares the selection of an earlier one comes without it")
    else:
        slots = prev_topk_indices.view(batch * q_len, -1)
    query = torch.cat([q_pass, q_rot], dim=-1).transpose(1, 2).flatten(0, 1)
    out = self.o_proj(_absorbed(self, query, rows, slots).view(batch, q_len, -1))
    return (out, None, slots.view(batch, q_len, -1)) if shares else (out, None)


def _check_layer(model_type: str, layer: Any) -> None:
    if type(layer.kv_b_proj) is not torch.nn.Linear or layer.kv_b_proj.bias is not None:
        raise _refuse(model_type, f"its kv_b_proj is {type(layer.kv_b_proj).__name__}, not a plain torch.nn.Linear")
    row, rank = layer.kv_lora_rank + layer.qk_rope_head_dim, layer.kv_lora_rank
    if row % 16 or rank % 16 or not 32 <= row <= 1024:
        raise _refuse(model_type, f"kv_lora_rank = {rank} and qk_rope_head_dim = {layer.qk_rope_head_dim}; riffle takes multiples of 16, "
                      "32 to 1024 together")  # fmt: skip
    if layer.indexer is not None:
        heads, dim = layer.indexer.n_heads, layer.indexer.head_dim
        if not 1 <= heads <= 128 or dim % 16 or not 32 <= dim <= 256:
            raise _refuse(model_type, f"index_n_heads = {heads} and index_head_dim = {dim}; riffle takes up to 128 heads of a multiple of 16 "
                          "from 32 to 256")  # fmt: skip


def use_sparse_attention(model: Any) -> None:
    """Has the layers of a model with DeepSeek's sparse attention (deepseek_v32, glm_moe_dsa) run on riffle.

    The indexer's scores and the choice of the best keys are one call of riffle.indexer_top_k, which stores no scores; attention is
    riffle.sparse_attention over the latent rows that were chosen, in absorbed form: keys and values are not expanded. What
    Transformers does differently: of equal scores it may choose other keys; here the lower position is chosen. A query of
    padding, which sees no key, gets zeros.

    The model may have any attn_implementation; its masks may be causal, with padding. Modes with gradients are refused.

    Raises:
      ValueError: the model has no such layers, or they are of a form that riffle does not compute; the text has the reason.
    """
    config = model.config.get_text_config()
    model_type = getattr(config, "model_type", type(model).__name__)
    if model_type in _NOT_YET:
        raise _refuse(model_type, _NOT_YET[model_type])
    if model_type not in _KNOWN:
        raise _refuse(model_type, f"it is none of {', '.join(_KNOWN)}")
    name, shares = _KNOWN[model_type]
    layers = [module for module in model.modules() if type(module).__name__ == name]
    if not layers:
        raise _refuse(model_type, f"it has no layer {name}")
    for layer in layers:
        _check_layer(model_type, layer)
    for layer in layers:
        modeling = importlib.import_module(type(layer).__module__)
        layer._riffle_sparse = modeling, shares
        layer.forward = types.MethodType(_forward, layer)

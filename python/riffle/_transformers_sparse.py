"""DeepSeek's sparse attention (DSA) of Transformers' models on riffle.indexer_top_k and riffle.sparse_attention."""

from __future__ import annotations

import importlib
import types
from typing import Any, Callable, NamedTuple

import torch

import riffle
from riffle import _transformers_sparse_v4
from riffle._transformers_sparse_calls import check_call, check_indexer, keys_of, refusal


def use_sparse_attention(model: Any) -> None:
    """Makes the layers of a model with DeepSeek's sparse attention (deepseek_v32, glm_moe_dsa, deepseek_v4) run on riffle.

    The indexer's scores and the choice of the best keys are one call of riffle.indexer_top_k, which stores no scores; attention
    is riffle.sparse_attention over what was chosen. In DeepSeek-V3.2 and GLM-5 these are latent rows, in absorbed form: keys
    and values of heads are not made. In DeepSeek-V4 they are a window of tokens and compressed entries, which
    riffle.compress_kv makes.

    Of equal scores the key at the lower position is chosen, always; Transformers leaves the choice to torch.topk, which may
    choose another one. Where a ReLU leaves zeros in all heads, scores are equal. A query of padding, which sees no key, gets zeros.

    The model may have any attn_implementation; in V3.2 and GLM-5 masks may show any keys. Gradients, dropout and masks that add
    to the logits are refused by a call.

    Raises:
      ValueError: the model has no such layers, or they are of a form that riffle does not compute; the text has the reason.
    """
    config = model.config.get_text_config()
    model_type = getattr(config, "model_type", type(model).__name__)
    if model_type not in _KINDS:
        raise refusal(model_type, f"it is none of {', '.join(_KINDS)}")
    kind = _KINDS[model_type]
    layers = [module for module in model.modules() if type(module).__name__ == kind.attention]
    if not layers:
        raise refusal(model_type, f"it has no layer {kind.attention}")
    for layer in layers:
        reason = kind.check(layer)
        if reason is not None:
            raise refusal(model_type, reason)
    for layer in layers:
        layer.forward = types.MethodType(kind.forward, layer)


def _forward(self: Any, hidden_states, position_embeddings, attention_mask, past_key_values=None, position_ids=None,
             prev_topk_indices=None, **kwargs):  # fmt: skip
    """The forward of a layer of DeepSeek-V3.2 or GLM-5: latent rows stay compressed, only the selected ones are read."""
    check_call(self, hidden_states, kwargs)
    modeling, model_type = importlib.import_module(type(self).__module__), self.config.model_type
    batch, q_len, _ = hidden_states.shape
    q_resid, query, latent, key = _operands(self, modeling, hidden_states, position_embeddings)
    if past_key_values is not None:
        latent, key = past_key_values.update(latent, key, self.layer_idx)
    # GLM's indexers rotate neighbouring pairs, and its layers may share selections.
    of_glm = model_type == "glm_moe_dsa"
    if self.indexer is not None:
        where = keys_of(model_type, attention_mask, batch, q_len, latent.shape[2])
        rotate = modeling.apply_rotary_pos_emb_interleave if of_glm else modeling.apply_rotary_pos_emb
        slots = _select(self.indexer, rotate, hidden_states, q_resid, position_embeddings, past_key_values, where)
    elif prev_topk_indices is None:
        raise ValueError("a layer that shares the selection of an earlier one comes without it")
    else:
        slots = prev_topk_indices.flatten(0, 1)
    out = _absorbed(self, query, torch.cat([latent, key], dim=-1).flatten(0, 2), slots)
    out = self.o_proj(out.view(batch, q_len, -1))
    return (out, None, slots.view(batch, q_len, -1)) if of_glm else (out, None)


def _operands(layer: Any, modeling: Any, hidden_states: torch.Tensor, cos_sin: Any):
    """(the latent from which queries are made, by the indexer too; the queries [tokens, heads, nope + rope]; the new tokens' latents
    [batch, 1, q_len, rank]; their rotated keys [batch, 1, q_len, rope])."""
    batch, q_len, _ = hidden_states.shape
    nope, rope, rank = layer.qk_nope_head_dim, layer.qk_rope_head_dim, layer.kv_lora_rank
    q_resid = layer.q_a_layernorm(layer.q_a_proj(hidden_states))
    query = layer.q_b_proj(q_resid).view(batch, q_len, layer.num_heads, nope + rope).transpose(1, 2)
    latent, key = layer.kv_a_proj_with_mqa(hidden_states).split([rank, rope], dim=-1)
    rotated, key = modeling.apply_rotary_pos_emb_interleave(query[..., nope:], key.view(batch, 1, q_len, rope), *cos_sin)
    query = torch.cat([query[..., :nope], rotated], dim=-1).transpose(1, 2).flatten(0, 1)
    return q_resid, query, layer.kv_a_layernorm(latent).view(batch, 1, q_len, rank), key


def _select(indexer: Any, rotate: Callable[..., Any], hidden_states, q_resid, cos_sin, cache, where) -> torch.Tensor:
    """int32 [tokens, k]: slots, batch row * keys + position, of the keys that an indexer chooses; -1 pads."""
    batch, q_len, _ = hidden_states.shape
    rope, dim = indexer.qk_rope_head_dim, indexer.head_dim
    q = indexer.wq_b(q_resid).view(batch, q_len, indexer.n_heads, dim)
    k = indexer.k_norm(indexer.wk(hidden_states)).unsqueeze(2)
    q_rot, k_rot = rotate(q[..., :rope], k[..., :rope], *cos_sin, unsqueeze_dim=2)
    q = torch.cat([q_rot, q[..., rope:]], dim=-1).flatten(0, 1)
    k = torch.cat([k_rot, k[..., rope:]], dim=-1).squeeze(2)
    if cache is not None:
        k = cache.update_indexer(k, indexer.layer_idx)
    weights = indexer.weights_proj(hidden_states.to(indexer.weights_proj.weight.dtype)).float().flatten(0, 1)
    weights = weights * (indexer.n_heads**-0.5 * indexer.softmax_scale)
    return riffle.indexer_top_k(
        q.detach(), weights.detach(), k.detach().reshape(-1, 1, dim), where.kv_lens, where.page_table,
        min(indexer.index_topk, k.shape[1]), cu_q_lens=where.cu_q_lens, slots=True,
    )  # fmt: skip


def _absorbed(layer: Any, query: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """query [tokens, heads, nope + rope] over latent rows [slots, rank + rope]: [tokens, heads * v]."""
    nope, rank = layer.qk_nope_head_dim, layer.kv_lora_rank
    weight = layer.kv_b_proj.weight.view(layer.num_heads, nope + layer.v_head_dim, rank)
    q = torch.cat([torch.einsum("thn,hnr->thr", query[..., :nope], weight[:, :nope]), query[..., nope:]], dim=-1)
    out = riffle.sparse_attention(q, rows, slots, value_dim=rank, scale=float(layer.scaling))
    return torch.einsum("thr,hvr->thv", out, weight[:, nope:]).flatten(1)


def _check(layer: Any) -> str | None:
    """Why riffle cannot compute a layer of DeepSeek-V3.2 or GLM-5; None where it can."""
    if type(layer.kv_b_proj) is not torch.nn.Linear or layer.kv_b_proj.bias is not None:
        return f"its kv_b_proj is {type(layer.kv_b_proj).__name__}, not a plain torch.nn.Linear"
    rank, rope = layer.kv_lora_rank, layer.qk_rope_head_dim
    if (rank + rope) % 16 or rank % 16 or not 32 <= rank + rope <= 1024:
        return f"kv_lora_rank = {rank} and qk_rope_head_dim = {rope}; riffle takes multiples of 16, 32 to 1024 together"
    return None if layer.indexer is None else check_indexer(layer.indexer.n_heads, layer.indexer.head_dim)


class _Kind(NamedTuple):
    attention: str  # the class of the attention layers
    forward: Callable[..., Any]
    check: Callable[[Any], str | None]


_KINDS = {
    "deepseek_v32": _Kind("DeepseekV32Attention", _forward, _check),
    "glm_moe_dsa": _Kind("GlmMoeDsaAttention", _forward, _check),
    "deepseek_v4": _Kind("DeepseekV4Attention", _transformers_sparse_v4.forward, _transformers_sparse_v4.check),
}

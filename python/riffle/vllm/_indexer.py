"""The indexer of DeepSeek V3.2 and GLM-5 on CPUs: the scores of a query and each key before it, and the best of them.

Scores are sum over heads of weight * relu(q . k). Keys are kept in a cache of their own:
  models in float32   keys as they are: selection is that of exact scores
  float16, bfloat16   int8 after a Hadamard transform, with a float32 scale each: as many bytes as vLLM's float8 cache on GPUs, 132 a
                      key of 128 elements, with a quarter of its rounding error, and scores that are the same on every host
"""

from __future__ import annotations

import torch
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.deepseek_v2 import DeepseekV32IndexerCache, Indexer
from vllm.utils.torch_utils import direct_register_custom_op
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.mla.indexer import DeepseekV32IndexerBackend
from vllm.v1.kv_cache_interface import MLAAttentionSpec, SparseCacheRole

import riffle
from riffle.vllm._sparse_metadata import SparseMetadataBuilder


class RiffleIndexBackend(DeepseekV32IndexerBackend):
    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None) -> list[int | MultipleOf]:
        return [MultipleOf(1)]

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return []  # any

    @staticmethod
    def get_builder_cls():
        return SparseMetadataBuilder


class RiffleIndexCache(DeepseekV32IndexerCache):
    """Pages of index keys, in one of the two formats above."""

    def prepare(self, key_dim: int, model_dtype: torch.dtype) -> None:
        self.key_dim = key_dim
        self.is_exact = model_dtype == torch.float32
        # The size of a Hadamard matrix is a power of two; without the transform int8 keeps less precision.
        self.hadamard = not self.is_exact and key_dim & (key_dim - 1) == 0

    def get_kv_cache_spec(self, vllm_config) -> MLAAttentionSpec:
        return MLAAttentionSpec(
            block_size=self.cache_config.block_size,
            num_kv_heads=1,
            max_tp_shards=1,
            head_size=self.key_dim if self.is_exact else self.key_dim + 4,
            dtype=torch.float32 if self.is_exact else torch.int8,
            cache_role=SparseCacheRole.INDEXER,
        )

    def get_attn_backend(self):
        return RiffleIndexBackend

    def pages(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Keys [pages, page_size, key_dim] and, of int8, their scales [pages, page_size]: a page has all keys, then all scales."""
        cache, dim = self.kv_cache, self.key_dim
        if self.is_exact:
            return cache, None
        pages, size, _ = cache.shape
        keys = cache.as_strided((pages, size, dim), (cache.stride(0), dim, 1))
        numbers = cache.view(torch.float32)
        first = numbers.storage_offset() + size * dim // 4
        return keys, numbers.as_strided((pages, size), (numbers.stride(0), 1), first)


class RiffleIndexer(Indexer):
    """vLLM's indexer after `take_over`."""

    def forward(self, hidden_states: torch.Tensor, qr: torch.Tensor, positions, rotary_emb) -> torch.Tensor:
        q = self.wq_b(qr)[0].view(-1, self.n_head, self.head_dim)
        k, weights = self.wk_weights_proj(hidden_states)[0].split([self.head_dim, self.n_head], dim=-1)
        k = self.k_norm(k)
        q_rotated, k_rotated = rotary_emb(positions, q[..., : self.rope_dim].contiguous(), k[:, None, : self.rope_dim].contiguous())
        q = torch.cat([q_rotated.view(-1, self.n_head, self.rope_dim), q[..., self.rope_dim :]], dim=-1)
        k = torch.cat([k_rotated.view(-1, self.rope_dim), k[:, self.rope_dim :]], dim=-1)
        weights = weights.float() * (self.softmax_scale * self.n_head_scale)
        torch.ops.vllm.riffle_select(q, k, weights, self.topk_indices_buffer, self.k_cache.prefix)
        return self.topk_indices_buffer


def take_over(indexer: Indexer, model_dtype: torch.dtype) -> None:
    """Turns an indexer of vLLM and its cache, whose pages do not exist yet, into Riffle's."""
    if type(indexer) is Indexer and type(indexer.k_cache) is DeepseekV32IndexerCache:
        indexer.__class__, indexer.k_cache.__class__ = RiffleIndexer, RiffleIndexCache
        indexer.k_cache.prepare(indexer.head_dim, model_dtype)
    elif not isinstance(indexer, RiffleIndexer):
        raise NotImplementedError(f"riffle: an indexer of type {type(indexer).__qualname__} is not supported")


def select(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, selected: torch.Tensor, layer_name: str) -> None:
    """Writes the keys of this step's tokens and, into `selected`, the positions of the best keys of each; -1 after the last."""
    context = get_forward_context()
    if not isinstance(context.attn_metadata, dict):
        return  # vLLM tries the model out before there are caches
    metadata, cache = context.attn_metadata[layer_name], context.no_compile_layers[layer_name]
    tokens = metadata.num_actual_tokens
    keys, scales = cache.pages()
    q, k = q[:tokens], k[:tokens]
    if cache.is_exact:
        riffle.write_index_keys(k, metadata.slot_mapping, keys, format="plain", hadamard=False)
    else:
        riffle.write_index_keys(k, metadata.slot_mapping, keys, scales, format="int8", hadamard=cache.hadamard)
        q = riffle.hadamard(q) if cache.hadamard else q
    riffle.indexer_top_k(
        q, weights[:tokens], keys, metadata.seq_lens, metadata.block_table, selected.shape[1], cu_q_lens=metadata.query_start_loc,
        key_scales=scales, out=selected[:tokens],
    )  # fmt: skip


direct_register_custom_op(
    op_name="riffle_select",
    op_func=select,
    mutates_args=["selected"],
    fake_impl=lambda q, k, weights, selected, layer_name: None,
)

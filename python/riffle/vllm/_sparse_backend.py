"""vLLM's interface of a sparse MLA backend, on Riffle: attention over the rows of the latent cache that the indexer selected.

All queries are absorbed (riffle.vllm._mla_backend says what that is), in prefill as in decode: a query then reads the rows that
it names and nothing else. While no sequence of a step is longer than what the indexer selects, every key is selected, and the
rows are read page by page as those of dense attention, with the same bits.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.attention.sparse_mla_attention import SharedTopkIndicesBuffer
from vllm.v1.attention.backend import AttentionBackend, MLAAttentionImpl, MultipleOf

import riffle
from riffle.vllm._indexer import take_over
from riffle.vllm._mla_backend import FLOAT8, check_arguments, write_rows
from riffle.vllm._sparse_metadata import SparseMetadata, SparseMetadataBuilder

# DeepSeek V3.2's own rows of 656 bytes.
PACKED = "fp8_ds_mla"


class RiffleSparseBackend(AttentionBackend):
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list] = ["auto", "float16", "bfloat16", *FLOAT8, PACKED]
    forward_includes_kv_cache_update: bool = False

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[RiffleSparseImpl]:
        return RiffleSparseImpl

    @staticmethod
    def get_builder_cls() -> type[SparseMetadataBuilder]:
        return SparseMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None) -> list[int | MultipleOf]:
        return [MultipleOf(1)]

    @classmethod
    def is_mla(cls) -> bool:
        return True

    @classmethod
    def is_sparse(cls) -> bool:
        return True

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return True


class RiffleSparseImpl(MLAAttentionImpl[SparseMetadata], SharedTopkIndicesBuffer):
    is_sparse = True
    supports_dense_mha_prefill = False

    def __init__(self, num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window, kv_cache_dtype, logits_soft_cap,
                 attn_type, kv_sharing_target_layer_name, topk_indices_buffer=None, indexer=None, **mla_args) -> None:  # fmt: skip
        check_arguments(alibi_slopes, sliding_window, logits_soft_cap, attn_type)
        if kv_sharing_target_layer_name is not None:
            raise NotImplementedError("riffle: MLA whose layers share a cache is not supported")
        self.num_heads, self.head_size, self.scale, self.num_kv_heads = num_heads, head_size, float(scale), num_kv_heads
        self.kv_lora_rank: int = mla_args["kv_lora_rank"]
        self.kv_cache_dtype = kv_cache_dtype
        self.float8 = FLOAT8.get(kv_cache_dtype)
        self.init_topk_indices_buffer(indexer, topk_indices_buffer)
        if indexer is not None:
            take_over(indexer, get_current_vllm_config().model_config.dtype)

    def record_logical_topk_ready(self) -> None:
        """The indexer has run; nothing waits for it."""

    def do_kv_cache_update(self, kv_c_normed, k_pe, kv_cache, slot_mapping, kv_cache_dtype, k_scale) -> None:
        if self.kv_cache_dtype != PACKED:
            rows = kv_cache if self.float8 is None else kv_cache.view(self.float8)
            write_rows(kv_c_normed, k_pe, rows, slot_mapping, None if self.float8 is None else float(k_scale))
        elif kv_cache.numel() > 0:
            slots = slot_mapping.flatten()
            rows = torch.cat([kv_c_normed, k_pe.reshape(k_pe.shape[0], -1)], dim=-1)[: slots.shape[0]]
            riffle.write_sparse_rows(rows, slots, kv_cache, row_format="mla656")

    def forward_mqa(self, q, kv_c_and_k_pe_cache, attn_metadata, layer) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Absorbed attention: q is [tokens, heads, latent + rotated], the result [tokens, heads, latent]."""
        if isinstance(q, tuple):
            q = torch.cat(q, dim=-1)
        metadata, cache, packed = attn_metadata, kv_c_and_k_pe_cache, self.kv_cache_dtype == PACKED
        cache = cache if self.float8 is None else cache.view(self.float8)
        scale = None if self.float8 is None else float(layer._k_scale)
        selected = self.topk_indices_buffer
        assert selected is not None
        if metadata.max_seq_len <= selected.shape[1] and not packed:
            keys = cache.unsqueeze(1)
            out: Any = riffle.paged_attention(
                q, keys, keys[..., : self.kv_lora_rank], metadata.seq_lens, metadata.block_table,
                cu_q_lens=metadata.query_start_loc, scale=self.scale, key_scales=scale, value_scales=scale,
            )  # fmt: skip
            return out, None
        slots = riffle.positions_to_slots(
            selected[: q.shape[0]], metadata.block_table, cache.shape[1], cu_q_lens=metadata.query_start_loc
        )
        out = riffle.sparse_attention(
            q, cache, slots, row_format="mla656" if packed else "plain", row_scales=scale, value_dim=self.kv_lora_rank, scale=self.scale
        )
        return out, None

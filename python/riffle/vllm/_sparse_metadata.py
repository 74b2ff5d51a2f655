"""Where the tokens of a step are, for the latent cache and the indexer's cache of models with sparse attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from vllm.v1.attention.backend import AttentionMetadata, AttentionMetadataBuilder, CommonAttentionMetadata


@dataclass
class SparseMetadata(AttentionMetadata):
    """Where the tokens of a step are. vLLM's layer is told that all of them are decodes, so that it absorbs all queries."""

    num_actual_tokens: int
    max_seq_len: int
    slot_mapping: torch.Tensor
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    query_start_loc: torch.Tensor
    num_reqs: int
    max_query_len: int
    num_decodes: int
    num_decode_tokens: int
    num_prefills: int = 0
    prefill: None = None
    decode: None = None


class SparseMetadataBuilder(AttentionMetadataBuilder[SparseMetadata]):
    """Builds the metadata of the latent cache and of the indexer's cache."""

    def __init__(self, kv_cache_spec, layer_names: list[str], vllm_config, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.reorder_batch_threshold = None  # the order of a batch does not matter

    def build(self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False) -> SparseMetadata:
        common = common_attn_metadata
        return SparseMetadata(
            num_actual_tokens=common.num_actual_tokens,
            max_seq_len=common.max_seq_len,
            slot_mapping=common.slot_mapping[: common.num_actual_tokens],
            block_table=common.block_table_tensor[: common.num_reqs],
            seq_lens=common.seq_lens[: common.num_reqs],
            query_start_loc=common.query_start_loc[: common.num_reqs + 1],
            num_reqs=common.num_reqs,
            max_query_len=common.max_query_len,
            num_decodes=common.num_reqs,
            num_decode_tokens=common.num_actual_tokens,
        )

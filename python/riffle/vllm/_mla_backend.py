"""vLLM's interface of an MLA backend, on Riffle.

A token's row in the cache has its compressed latent (512 elements in DeepSeek's models) and its rotated key (64). The latent
is key and value at once: queries that are multiplied by the key projection ("absorbed") score whole rows, and the weighted
sum of latents is multiplied by the value projection afterwards. Riffle reads a row once for both.

Absorbed attention costs 1088 multiplications for a query, head and key, attention over the model's own keys and values of
192 and 128 elements 320, plus the two projections that make them. So a request with many new tokens has its keys and values
made again from the cache, MHA_KEYS at a time, and all others are absorbed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import vllm.envs
from vllm.model_executor.layers.attention.mla_attention import (
    MLACommonBackend,
    MLACommonDecodeMetadata,
    MLACommonImpl,
    MLACommonMetadata,
    MLACommonMetadataBuilder,
    MLACommonPrefillMetadata,
    QueryLenSupport,
)
from vllm.v1.attention.backend import AttentionType, MultipleOf
from vllm.v1.attention.backends.utils import split_decodes_and_prefills

import riffle

# Requests with at most so many new tokens are absorbed. After 8192 cached tokens and with 16 heads, 128 new tokens take 44 ms absorbed and
# 89 with keys made from the cache, 512 take 180 and 127, so both are equal at about 300; without a context, keys that are made are never
# slower (bench/vllm_mla.py).
ABSORBED_TOKENS = 256

# Keys of a request that are made from the cache at a time: 16 heads of 320 bf16 elements are 80 MiB.
MHA_KEYS = 8192

FLOAT8 = {"fp8": torch.float8_e4m3fn, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


@dataclass
class RiffleDecodeMetadata(MLACommonDecodeMetadata):
    """The requests that are absorbed, each with any number of queries up to the threshold."""

    query_start_loc: torch.Tensor | None = None


@dataclass
class RifflePrefillMetadata(MLACommonPrefillMetadata):
    """The requests whose keys and values are made again from the cache."""

    starts: list[int] | None = None  # where the queries of each begin and end, among the queries of these requests
    seq_lens: list[int] | None = None


class RiffleMLABackend(MLACommonBackend):
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list] = ["auto", "float16", "bfloat16", *FLOAT8]

    @staticmethod
    def get_name() -> str:
        return "CPU_MLA"

    @staticmethod
    def get_impl_cls() -> type[RiffleMLAImpl]:
        return RiffleMLAImpl

    @staticmethod
    def get_builder_cls() -> type[RiffleMLAMetadataBuilder]:
        return RiffleMLAMetadataBuilder

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return []  # any

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None) -> list[int | MultipleOf]:
        return [MultipleOf(1)]

    @classmethod
    def supports_block_size(cls, block_size: int | None) -> bool:
        return True

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return True


class RiffleMLAMetadataBuilder(MLACommonMetadataBuilder[MLACommonMetadata]):
    query_len_support: ClassVar[QueryLenSupport] = QueryLenSupport.VARLEN
    # The runner puts requests with at most so many new tokens first. An absorbed query gets the same bits in any batch, so all
    # are absorbed where vLLM is asked for batch invariance.
    reorder_batch_threshold: int = 1 << 30 if vllm.envs.VLLM_BATCH_INVARIANT else ABSORBED_TOKENS

    def build(self, common_prefix_len: int, common_attn_metadata, fast_build: bool = False) -> MLACommonMetadata:
        common = common_attn_metadata
        decodes, prefills, decode_tokens, _ = split_decodes_and_prefills(
            common, decode_threshold=self.reorder_batch_threshold, require_uniform=False
        )
        decode = prefill = None
        if decodes > 0:
            decode = RiffleDecodeMetadata(
                block_table=common.block_table_tensor[:decodes],
                seq_lens=common.seq_lens[:decodes],
                dcp_tot_seq_lens=None,
                query_start_loc=None if decode_tokens == decodes else common.query_start_loc[: decodes + 1],
            )
        if prefills > 0:
            starts = common.query_start_loc_cpu[decodes : common.num_reqs + 1] - decode_tokens
            prefill = RifflePrefillMetadata(
                block_table=common.block_table_tensor[decodes:],
                query_start_loc=common.query_start_loc[decodes:] - decode_tokens,
                max_query_len=common.max_query_len,
                starts=starts.tolist(),
                seq_lens=common.seq_lens[decodes : common.num_reqs].tolist(),
            )
        return MLACommonMetadata(
            num_reqs=common.num_reqs,
            max_query_len=common.max_query_len,
            max_seq_len=common.max_seq_len,
            num_actual_tokens=common.num_actual_tokens,
            query_start_loc=common.query_start_loc,
            slot_mapping=common.slot_mapping,
            num_decodes=decodes,
            num_decode_tokens=decode_tokens,
            num_prefills=prefills,
            causal=common.causal is not False,
            prefill=prefill,
            decode=decode,
        )


def check_arguments(alibi_slopes, sliding_window, logits_soft_cap, attn_type) -> None:
    """Raises NotImplementedError for what no model with MLA has."""
    given = dict(alibi_slopes=alibi_slopes, sliding_window=sliding_window, logits_soft_cap=logits_soft_cap)
    for name, value in given.items():
        if value:
            raise NotImplementedError(f"riffle: MLA with {name} = {value} is not supported")
    if attn_type != AttentionType.DECODER:
        raise NotImplementedError(f"riffle: MLA with attn_type = {attn_type} is not supported; only decoders have it")


def write_rows(kv_c_normed: torch.Tensor, k_pe: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor, scale: float | None) -> None:
    """Writes latents and rotated keys into rows of the cache, [pages, page_size, latent + rotated]; slots of -1 are skipped."""
    if cache.numel() == 0:
        return
    latent, slots = kv_c_normed.shape[-1], slots.flatten()
    kv_c_normed, k_pe = kv_c_normed[: slots.shape[0]], k_pe.reshape(-1, 1, k_pe.shape[-1])[: slots.shape[0]]
    pages = cache.unsqueeze(2)
    riffle.write_kv(kv_c_normed.unsqueeze(1), k_pe, slots, pages[..., :latent], pages[..., latent:], layout="NHD",
                    key_scales=scale, value_scales=scale)  # fmt: skip


class RiffleMLAImpl(MLACommonImpl[MLACommonMetadata]):
    def __init__(self, num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window, kv_cache_dtype, logits_soft_cap,
                 attn_type, kv_sharing_target_layer_name, **mla_args) -> None:  # fmt: skip
        super().__init__(num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window, kv_cache_dtype,
                         logits_soft_cap, attn_type, kv_sharing_target_layer_name, **mla_args)  # fmt: skip
        check_arguments(alibi_slopes, sliding_window, logits_soft_cap, attn_type)
        self.supports_quant_query_input = False
        self.float8 = FLOAT8.get(kv_cache_dtype)

    def fused_output_quant_supported(self, quant_key) -> bool:
        return False

    def _rows(self, cache: torch.Tensor) -> torch.Tensor:
        """The cache in the dtype of its elements, [pages, page_size, latent + rotated]."""
        return cache if self.float8 is None else cache.view(self.float8)

    def _scale(self, k_scale: torch.Tensor) -> float | None:
        return None if self.float8 is None else float(k_scale)

    def do_kv_cache_update(self, kv_c_normed, k_pe, kv_cache, slot_mapping, kv_cache_dtype, k_scale) -> None:
        write_rows(kv_c_normed, k_pe, self._rows(kv_cache), slot_mapping, self._scale(k_scale))

    def forward_mqa(self, q, kv_c_and_k_pe_cache, attn_metadata, layer) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Absorbed attention: q is [tokens, heads, latent + rotated], the result [tokens, heads, latent]."""
        if isinstance(q, tuple):
            q = torch.cat(q, dim=-1)
        decode = attn_metadata.decode
        keys, scale = self._rows(kv_c_and_k_pe_cache).unsqueeze(1), self._scale(layer._k_scale)
        out: Any = riffle.paged_attention(
            q, keys, keys[..., : self.kv_lora_rank], decode.seq_lens, decode.block_table, cu_q_lens=decode.query_start_loc,
            scale=self.scale, causal=attn_metadata.causal, key_scales=scale, value_scales=scale,
        )  # fmt: skip
        return out, None

    def forward_mha(self, q, kv_c_normed, k_pe, kv_c_and_k_pe_cache, attn_metadata, k_scale, output, output_scale=None) -> None:
        """Attention over keys and values that are made from the cache, in which those of the new tokens are already."""
        assert output_scale is None
        prefill = attn_metadata.prefill
        rows, scale = self._rows(kv_c_and_k_pe_cache), self._scale(k_scale)
        output = output.view(-1, self.num_heads, self.v_head_dim)
        for i, seq_len in enumerate(prefill.seq_lens):
            begin, end = prefill.starts[i], prefill.starts[i + 1]
            self._attend(q[begin:end], rows, prefill.block_table[i], seq_len, scale, output[begin:end])

    def _attend(self, q, rows, blocks, seq_len: int, scale: float | None, output: torch.Tensor) -> None:
        """One request, whose queries are its last positions: MHA_KEYS of its context at a time, then what is left of it and
        the new tokens, each of which sees what is before it."""
        context = seq_len - q.shape[0]
        bounds = [*range(0, context - context % MHA_KEYS + 1, MHA_KEYS), seq_len]
        parts: list[Any] = []
        for first, end in zip(bounds, bounds[1:]):
            keys, values = self._keys_and_values(rows, blocks, first, end, scale, q.dtype)
            last = end == seq_len
            parts.append(riffle.paged_attention(
                q, keys, values, torch.tensor([end - first], dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32),
                cu_q_lens=torch.tensor([0, q.shape[0]], dtype=torch.int32), layout="NHD", scale=self.scale, causal=last,
                out=output if last and first == 0 else None, return_lse=True,
            ))  # fmt: skip
        if len(parts) > 1:
            outs, lses = zip(*parts)
            output.copy_(riffle.merge_states(outs, lses)[0])

    def _keys_and_values(self, rows, blocks, first: int, end: int, scale: float | None, dtype: torch.dtype):
        """Keys and values of the positions first..end - 1 of a request, each as one page of so many tokens."""
        size = rows.shape[1]
        block_ids = blocks[first // size : -(-end // size)]
        latent = rows.index_select(0, block_ids).flatten(0, 1) if self.float8 is None else rows[block_ids].flatten(0, 1).to(dtype)
        latent = latent[first % size : first % size + end - first]
        if scale is not None and scale != 1:
            latent = latent * scale
        latent, rotated = latent.to(dtype).split([self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)
        made = self.kv_b_proj(latent)[0].view(-1, self.num_heads, self.qk_nope_head_dim + self.v_head_dim)
        keys = made.new_empty(made.shape[0], self.num_heads, self.qk_head_dim)
        keys[..., : self.qk_nope_head_dim] = made[..., : self.qk_nope_head_dim]
        keys[..., self.qk_nope_head_dim :] = rotated.unsqueeze(1)
        return keys.unsqueeze(0), made[..., self.qk_nope_head_dim :].unsqueeze(0)

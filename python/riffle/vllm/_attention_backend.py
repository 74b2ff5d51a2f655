"""Attention of vLLM's engine on CPUs by Riffle: the backend, what it makes once per step, and a layer's calls."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.config import get_layers_from_vllm_config
from vllm.distributed.parallel_state import get_dcp_group, get_dcp_world_size_and_rank
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionMetadataBuilder, AttentionType, MultipleOf
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import CrossAttentionSpec, EncoderOnlyAttentionSpec

import riffle
from riffle.vllm import _attention_shards
from riffle.vllm._attention_cache import KV_CACHE_DTYPES, SCALE_BYTES, CacheFormat
from riffle.vllm._parts import use_pytorch_threads

_logger = logging.getLogger("vllm.riffle")


class RiffleAttentionBackend(CPUAttentionBackend):
    supported_kv_cache_dtypes: ClassVar[list[Any]] = list(KV_CACHE_DTYPES)

    @staticmethod
    def get_name() -> str:
        # A member of vLLM's enumeration. Not "CPU_ATTN": what is transferred into a cache under that name is packed
        # afterwards for vLLM's own kernels.
        return "CUSTOM"

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None) -> list[int | MultipleOf]:
        return [MultipleOf(16)]

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return list(range(8, 1025, 8))

    @classmethod
    def customize_spec(cls, spec):
        """Caches whose rows have scales keep them in the page: a key's after its elements, a value's likewise."""
        if spec.state_content_bytes is not None or not spec.kv_quant_mode.is_per_token_head:
            return spec
        return replace(spec, state_content_bytes=spec.head_size + spec.head_size_v + 2 * SCALE_BYTES)

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return True

    @staticmethod
    def get_impl_cls() -> type[RiffleAttentionImpl]:
        return RiffleAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[RiffleAttentionMetadataBuilder]:
        return RiffleAttentionMetadataBuilder


@dataclass
class RiffleAttentionMetadata(CPUAttentionMetadata):
    """A step's batch. The fields of vLLM's own are for layers that are left to it."""

    tokens: int = 0  # that belong to a sequence; the rest of a batch is padding
    causal_flags: bool | Tensor = True  # causal, for all or for each sequence
    kv_lens: Tensor | None = None
    page_table: Tensor | None = None  # [sequences, max_pages]
    cu_q_lens: Tensor | None = None
    shard: _attention_shards.Shard | None = None  # with decode context parallelism


class RiffleAttentionMetadataBuilder(CPUAttentionMetadataBuilder):
    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        layers = get_layers_from_vllm_config(vllm_config, Attention, layer_names)
        self.has_native = any(getattr(layer.impl, "left_to_vllm", None) for layer in layers.values())
        if self.has_native:
            super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        else:  # vLLM's own refuses what its kernels lack, such as 8-bit floats without AVX-512
            AttentionMetadataBuilder.__init__(self, kv_cache_spec, layer_names, vllm_config, device)
            self.is_cross_attention = isinstance(kv_cache_spec, CrossAttentionSpec)
            self.is_encoder_only_attention = isinstance(kv_cache_spec, EncoderOnlyAttentionSpec)
        self.ranks, self.rank = get_dcp_world_size_and_rank(kv_cache_spec.dcp_sharded)
        use_pytorch_threads()  # the worker has its number of threads now

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        common = common_attn_metadata
        causal_flags = False if self.is_cross_attention else common.causal
        if isinstance(causal_flags, Tensor):
            causal_flags = causal_flags[: common.num_reqs].to(torch.bool)
        if self.has_native:
            base = vars(super().build(common_prefix_len, common, fast_build))
        else:
            base = dict(
                num_actual_tokens=common.num_actual_tokens, max_query_len=common.max_query_len,
                query_start_loc=common.query_start_loc, max_seq_len=common.max_seq_len, seq_lens=common.seq_lens,
                block_table=common.block_table_tensor, slot_mapping=common.slot_mapping, scheduler_metadata=None,
                causal=not isinstance(causal_flags, Tensor) and causal_flags,
            )  # fmt: skip
        cu_q_lens = common.query_start_loc
        kv_lens, page_table = common.seq_lens, common.block_table_tensor
        if self.is_encoder_only_attention:
            # Keys and values are read where the layer has them: a page for each token.
            page_table = cu_q_lens[:-1, None] + torch.arange(common.max_query_len, dtype=cu_q_lens.dtype)
        shard = None
        if self.ranks > 1:
            interleave = self.vllm_config.parallel_config.cp_kv_cache_interleave_size
            shard = _attention_shards.shard(cu_q_lens, kv_lens, common.max_query_len, self.ranks, self.rank, interleave)
        return RiffleAttentionMetadata(**base, tokens=int(common.query_start_loc_cpu[-1]), causal_flags=causal_flags, kv_lens=kv_lens,
                                       page_table=page_table, cu_q_lens=cu_q_lens, shard=shard)  # fmt: skip


class RiffleAttentionImpl(CPUAttentionBackendImpl):
    # Decode context parallelism: log-sum-exps are natural logarithms, which is vLLM's default (lse_base_on_e).
    can_return_lse_for_decode = True
    supports_dcp = True
    supports_mtp_with_cp_non_trivial_interleave_size = True

    def __init__(self, num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window, kv_cache_dtype,
                 logits_soft_cap=None, attn_type=AttentionType.DECODER, kv_sharing_target_layer_name=None, sinks=None):  # fmt: skip
        super().__init__(num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window, kv_cache_dtype, logits_soft_cap,
                         attn_type, kv_sharing_target_layer_name, sinks)  # fmt: skip
        self.left_to_vllm = _reason(head_size, kv_cache_dtype)
        self.is_encoder = attn_type in (AttentionType.ENCODER, AttentionType.ENCODER_ONLY)
        self.format = CacheFormat(kv_cache_dtype, head_size)
        window = self.sliding_window if self.sliding_window > 0 else None
        # A causal layer sees `window` keys back; a layer that is not causal also sees as many ahead.
        self.window = window
        self.window_right = None if window is None else window - 1
        self.soft_cap = float(self.logits_soft_cap) or None
        if self.dcp_world_size > 1 and (window or self.alibi_slopes is not None or self.left_to_vllm):
            raise NotImplementedError("decode context parallelism: no windows, no ALiBi, and only layers that Riffle does")

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale=None, output_block_scale=None):
        if attn_metadata is None:  # vLLM warms up
            return output
        if self.left_to_vllm:
            _warn_once(layer, self.left_to_vllm)
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("riffle: attention does not quantise its output")
        metadata = attn_metadata
        q, out = query, output
        if query.shape[0] != metadata.tokens:
            q, out = query[: metadata.tokens], output[: metadata.tokens]
        sinks = self.sinks
        if sinks is not None and sinks.requires_grad:
            sinks = self.sinks = sinks.detach()
        if self.is_encoder:
            riffle.paged_attention(
                q, key[: metadata.tokens, None], value[: metadata.tokens, None], metadata.kv_lens, metadata.page_table,
                cu_q_lens=metadata.cu_q_lens, layout="NHD", scale=self.scale, causal=metadata.causal_flags, window=self.window,
                window_right=None if metadata.causal_flags is True else self.window_right, soft_cap=self.soft_cap,
                sinks=sinks, alibi_slopes=self.alibi_slopes, key_scales=None, value_scales=None, out=out,
            )  # fmt: skip
            return output
        pages = self.format.pages(kv_cache)
        key_scales, value_scales = pages.key_scales, pages.value_scales
        if self.format.scaled_tensors:
            key_scales, value_scales = layer._k_scale_float, layer._v_scale_float
        if metadata.shard is not None:
            _attention_shards.attend(get_dcp_group(), q, key[: metadata.tokens], value[: metadata.tokens], pages, metadata, out,
                                     sinks=sinks, scale=self.scale, soft_cap=self.soft_cap,
                                     scales=dict(key_scales=key_scales, value_scales=value_scales))  # fmt: skip
            return output
        riffle.paged_attention(
            q, pages.keys, pages.values, metadata.kv_lens, metadata.page_table, cu_q_lens=metadata.cu_q_lens, scale=self.scale,
            causal=metadata.causal_flags, window=self.window, window_right=None if metadata.causal_flags is True else self.window_right,
            soft_cap=self.soft_cap, sinks=sinks, alibi_slopes=self.alibi_slopes,
            key_scales=key_scales, value_scales=value_scales, out=out,
        )  # fmt: skip
        return output

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping):
        if self.left_to_vllm:
            return super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
        if self.is_encoder:
            return None
        pages = self.format.pages(kv_cache)
        tokens = slot_mapping.shape[0]
        if key.shape[0] != tokens:
            key, value = key[:tokens], value[:tokens]
        key_scales, value_scales = pages.key_scales, pages.value_scales
        if self.format.scaled_tensors:
            key_scales, value_scales = layer._k_scale_float, layer._v_scale_float
        riffle.write_kv(key, value, slot_mapping, pages.keys, pages.values, key_scales=key_scales, value_scales=value_scales,
                        compute_scales=self.format.scaled_rows)  # fmt: skip
        return None


def _reason(head_size: int, kv_cache_dtype: str) -> str | None:
    """Why a layer is left to vLLM's own kernels, which both write and read its cache; None: Riffle does it."""
    if head_size % 8 or not 8 <= head_size <= 1024:
        return f"head_size = {head_size} is not a multiple of 8 from 8 to 1024"
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        return f"kv_cache_dtype = {kv_cache_dtype} is none of {', '.join(KV_CACHE_DTYPES)}"
    return None


_warned: set[str] = set()


def _warn_once(layer, reason) -> None:
    name = getattr(layer, "layer_name", repr(layer))
    if name not in _warned:
        _warned.add(name)
        _logger.warning("riffle: attention of %s is left to vLLM: %s", name, reason)

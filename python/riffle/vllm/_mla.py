"""Multi-head latent attention (DeepSeek V2, V3, R1) in vLLM on Riffle: the part `mla` of the plugin.

Where vLLM would choose its CPU_MLA, a reference with pages of 16 tokens, no chunked prefill and no prefix cache, Riffle's backend
takes its place. On hosts with AMX vLLM chooses AMX_MLA, which has all of this and AMX's matrix tiles, but for bfloat16 alone. It keeps
models whose weights and cache are bfloat16, unless RIFFLE_VLLM names the part (`RIFFLE_VLLM=mla,...`); others, for which it fails,
run on Riffle.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch

from riffle.vllm._interfaces import InterfaceMismatch, expect_parameters, find, inform, warn, wrap_classmethod
from riffle.vllm._rotation import patch_rotary_embedding

BACKEND = "riffle.vllm._mla_backend.RiffleMLABackend"

# Tokens of a page where the user names none: rows of 1152 bytes, so a page is 72 KiB. Riffle reads pages of any size; small
# ones let the prefix cache share more.
BLOCK_SIZE = 64


def install() -> str | None:
    """Wraps the two methods of vLLM's CPU platform by which it chooses and restricts MLA. None, or why it is left to vLLM."""
    platform = find("vllm.platforms.cpu", "CpuPlatform")
    expect_parameters(platform.get_attn_backend_cls, "selected_backend", "attn_selector_config", "num_heads")
    expect_parameters(platform.check_and_update_config, "vllm_config")
    backends = find("vllm.v1.attention.backends.registry", "AttentionBackendEnum")
    chosen = _Choice(
        cpu_mla=find_path(backends, "CPU_MLA"),
        amx_mla=find_path(backends, "AMX_MLA"),
        named="mla" in os.environ.get("RIFFLE_VLLM", "").lower().split(","),
    )
    patch_rotary_embedding(platform)
    wrap_classmethod(platform, "get_attn_backend_cls", chosen.get_attn_backend_cls)
    wrap_classmethod(platform, "check_and_update_config", functools.partial(configure, chosen.is_ours))
    return None


def find_path(backends: Any, name: str) -> str:
    """The path of the class that vLLM itself has under this name, whatever has been put in its place since."""
    member = getattr(backends, name, None)
    if member is None or not isinstance(member.value, str):
        raise InterfaceMismatch(f"no attention backend {name}")
    return member.value


class _Choice:
    """Which models with MLA get Riffle's backend.

    `cpu_mla` and `amx_mla` are the paths of vLLM's own backends; `named`: the user asked for Riffle's by name.
    """

    def __init__(self, cpu_mla: str, amx_mla: str, named: bool):
        self.cpu_mla = cpu_mla
        self.amx_mla = amx_mla
        self.named = named

    def replaces(self, path: str, dtype: torch.dtype, cache_dtype: str | None) -> bool:
        """Whether Riffle's backend takes the place of vLLM's answer for a model and a cache of those dtypes."""
        amx_can = dtype == torch.bfloat16 and cache_dtype in ("auto", None)
        return path == self.cpu_mla or (path == self.amx_mla and (self.named or not amx_can))

    def get_attn_backend_cls(self, original, selected_backend, attn_selector_config, num_heads=None) -> str:
        path = original(selected_backend, attn_selector_config, num_heads)
        config = attn_selector_config
        wanted = config.use_mla and not config.use_sparse and not (config.use_dcp or config.use_pcp)
        return BACKEND if wanted and self.replaces(path, config.dtype, config.kv_cache_dtype) and _problem() is None else path

    def is_ours(self, vllm_config) -> bool:
        """Whether the model is one whose layers get Riffle's backend."""
        model, parallel = vllm_config.model_config, vllm_config.parallel_config
        if hasattr(model.hf_config, "index_topk") or hasattr(model.hf_config, "compress_ratios"):  # the sparse part's, and DeepSeek V4
            return False
        selected = getattr(vllm_config.attention_config.backend, "name", None)
        amx = torch.cpu._is_amx_tile_supported() and selected != "CPU_MLA"
        if not self.replaces(self.amx_mla if amx else self.cpu_mla, model.dtype, vllm_config.cache_config.cache_dtype):
            inform("mla: bfloat16 is left to AMX_MLA; RIFFLE_VLLM=mla,... has Riffle take its place")
            return False
        if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
            warn("mla is left to vLLM: a sequence whose keys are shared out among processes is not supported")
            return False
        return _problem() is None


@functools.cache
def _problem() -> str | None:
    """None, or what of this vLLM differs from what the backend was written for."""
    # The classes are looked at only where a model with MLA is being made: importing vLLM's layers takes seconds.
    try:
        base = find("vllm.model_executor.layers.attention.mla_attention", "MLACommonImpl")
        expect_parameters(base.forward_mqa, "self", "q", "kv_c_and_k_pe_cache", "attn_metadata", "layer")
        expect_parameters(base.forward_mha, "self", "q", "kv_c_normed", "k_pe", "kv_c_and_k_pe_cache", "attn_metadata", "k_scale", "output")
        expect_parameters(
            base.do_kv_cache_update, "self", "kv_c_normed", "k_pe", "kv_cache", "slot_mapping", "kv_cache_dtype", "k_scale"
        )
        find("riffle.vllm._mla_backend", "RiffleMLABackend")
    except Exception as error:  # an engine must not fail because of a plugin
        warn(f"mla is left to vLLM: {error!r}")
        return repr(error)
    return None


def configure(is_ours, original, vllm_config) -> None:
    """check_and_update_config, without the restrictions of models with MLA that only vLLM's reference backend needs.

    For that backend it sets pages of 16 tokens, turns chunked prefill and the prefix cache off, and has a step take whole prompts.
    """
    model, cache, scheduler = vllm_config.model_config, vllm_config.cache_config, vllm_config.scheduler_config
    before = (cache.block_size, scheduler.enable_chunked_prefill, cache.enable_prefix_caching, scheduler.max_num_batched_tokens)
    original(vllm_config)
    if model is None or not model.use_mla or not is_ours(vllm_config):
        return
    block_size, scheduler.enable_chunked_prefill, cache.enable_prefix_caching, scheduler.max_num_batched_tokens = before
    cache.block_size = block_size if cache.user_specified_block_size else BLOCK_SIZE

"""Multi-head latent attention (DeepSeek V2, V3, R1) in vLLM on Riffle: the part `mla` of the plugin.

Where vLLM would choose its CPU_MLA, a reference with pages of 16 tokens, no chunked prefill and no prefix cache, Riffle's backend
takes its place. On hosts with AMX vLLM chooses AMX_MLA, which has all of this and AMX's matrix tiles: that is left to vLLM
unless RIFFLE_VLLM names the part (`RIFFLE_VLLM=mla,...`).
"""

from __future__ import annotations

import functools
import os
from typing import Any

from riffle.vllm._interfaces import InterfaceMismatch, expect_parameters, find, warn, wrap_classmethod
from riffle.vllm._rotation import patch_rotary_embedding

BACKEND = "riffle.vllm._mla_backend.RiffleMLABackend"

# Tokens of a page where the user names none: rows of 1152 bytes, so a page is 72 KiB. Riffle reads pages of any size; small
# ones let the prefix cache share more.
BLOCK_SIZE = 64


def install() -> str | None:
    """Wraps the two methods of vLLM's CPU platform by which it chooses and restricts MLA. None, or why it is left to vLLM."""
    import torch

    platform = find("vllm.platforms.cpu", "CpuPlatform")
    expect_parameters(platform.get_attn_backend_cls, "selected_backend", "attn_selector_config", "num_heads")
    expect_parameters(platform.check_and_update_config, "vllm_config")
    backends = find("vllm.v1.attention.backends.registry", "AttentionBackendEnum")
    replaced = {find_path(backends, "CPU_MLA")}
    if torch.cpu._is_amx_tile_supported():
        if "mla" not in os.environ.get("RIFFLE_VLLM", "").lower().split(","):
            return "AMX_MLA is there; RIFFLE_VLLM=mla,... has Riffle take its place"
        replaced.add(find_path(backends, "AMX_MLA"))
    patch_rotary_embedding(platform)
    wrap_classmethod(platform, "get_attn_backend_cls", functools.partial(_choose, replaced))
    wrap_classmethod(platform, "check_and_update_config", functools.partial(configure, _is_ours))
    return None


def find_path(backends: Any, name: str) -> str:
    """The path of the class that vLLM itself has under this name, whatever has been put in its place since."""
    member = getattr(backends, name, None)
    if member is None or not isinstance(member.value, str):
        raise InterfaceMismatch(f"no attention backend {name}")
    return member.value


def _choose(replaced: set[str], original, selected_backend, attn_selector_config, num_heads=None) -> str:
    """get_attn_backend_cls: Riffle's where vLLM's answer is one of `replaced` and Riffle can."""
    path = original(selected_backend, attn_selector_config, num_heads)
    config = attn_selector_config
    wanted = config.use_mla and not config.use_sparse and path in replaced and not (config.use_dcp or config.use_pcp)
    return BACKEND if wanted and _problem() is None else path


def _is_ours(vllm_config) -> bool:
    """Whether the model is one whose layers get Riffle's backend."""
    config, parallel = vllm_config.model_config.hf_config, vllm_config.parallel_config
    if hasattr(config, "index_topk") or hasattr(config, "compress_ratios"):  # the sparse part's, and DeepSeek V4
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

"""The sparse attention of DeepSeek V3.2 and GLM-5 in vLLM on Riffle: the part `sparse` of the plugin.

vLLM refuses these models on CPUs. What is missing there is put in place:
  the choice of a backend that attends over the selected rows of the latent cache (riffle.vllm._sparse_backend)
  the indexer, which selects them, with a cache of its own (riffle.vllm._indexer)
  chunked prefill and the prefix cache, as for other models with multi-head latent attention
All else (projections, experts, rotary embeddings) is vLLM's own and runs on CPUs. DeepSeek V4 has layers of its own, which are
left to vLLM.
"""

from __future__ import annotations

import functools

from riffle.vllm._interfaces import expect_parameters, find, warn, wrap_classmethod
from riffle.vllm._mla import configure
from riffle.vllm._rotation import patch_rotary_embedding

BACKEND = "riffle.vllm._sparse_backend.RiffleSparseBackend"


def install() -> str | None:
    """Wraps the two methods of vLLM's CPU platform by which it refuses and restricts these models."""
    platform = find("vllm.platforms.cpu", "CpuPlatform")
    expect_parameters(platform.get_attn_backend_cls, "selected_backend", "attn_selector_config", "num_heads")
    expect_parameters(platform.check_and_update_config, "vllm_config")
    wrap_classmethod(platform, "get_attn_backend_cls", _choose)
    patch_rotary_embedding(platform)
    wrap_classmethod(platform, "check_and_update_config", functools.partial(configure, _is_ours))
    return None


def _choose(original, selected_backend, attn_selector_config, num_heads=None) -> str:
    config = attn_selector_config
    ours = config.use_mla and config.use_sparse and not (config.use_dcp or config.use_pcp)
    return BACKEND if ours and _problem() is None else original(selected_backend, attn_selector_config, num_heads)


def _is_ours(vllm_config) -> bool:
    """Whether the model is one of those whose indexer Riffle has."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    if not hasattr(model.hf_config, "index_topk") or hasattr(model.hf_config, "compress_ratios"):
        return False
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        return False
    return _problem() is None


@functools.cache
def _problem() -> str | None:
    """None, or what of this vLLM differs from what backend and indexer were written for."""
    try:
        models = find("vllm.model_executor.models.deepseek_v2")
        indexer, cache = find(models.__name__, "Indexer"), find(models.__name__, "DeepseekV32IndexerCache")
        expect_parameters(indexer.forward, "self", "hidden_states", "qr", "positions", "rotary_emb")
        expect_parameters(cache.get_kv_cache_spec, "self", "vllm_config")
        base = find("vllm.v1.attention.backend", "MLAAttentionImpl")
        expect_parameters(base.forward_mqa, "self", "q", "kv_c_and_k_pe_cache", "attn_metadata", "layer")
        find("riffle.vllm._sparse_backend", "RiffleSparseBackend")
    except Exception as error:  # an engine must not fail because of a plugin
        warn(f"sparse is left to vLLM: {error!r}")
        return repr(error)
    return None

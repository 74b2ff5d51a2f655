"""The part `attention`: Riffle's backend in the place of vLLM's CPU_ATTN."""

from __future__ import annotations

from riffle.vllm._attention_shards import slot_mapping
from riffle.vllm._interfaces import InterfaceMismatch, expect_parameters, find


def install() -> str | None:
    """Registers the backend. Returns None when it is on; otherwise what this vLLM lacks, so that attention is left to it."""
    try:
        _check_interfaces()
        backends = find("vllm.v1.attention.backends.registry", "AttentionBackendEnum", "CPU_ATTN")
        register = find("vllm.v1.attention.backends.registry", "register_backend")
        # Imported now: afterwards it is vLLM that imports it, and an error would end the engine.
        find("riffle.vllm._attention_backend", "RiffleAttentionBackend")
    except InterfaceMismatch as mismatch:
        return str(mismatch)
    _allow_context_parallelism()
    # Whatever backend is asked for, vLLM's platform for CPUs answers with the path that is registered for CPU_ATTN.
    register(backends, "riffle.vllm._attention_backend.RiffleAttentionBackend")
    return None


def _allow_context_parallelism() -> None:
    """vLLM's slot mapping on CPUs refuses several ranks; where its interface is not the expected one, that stays so."""
    try:
        module = find("vllm.utils.cpu_triton_utils")
        compute = find("vllm.utils.cpu_triton_utils", "_compute_slot_mapping_kernel_impl")
        expect_parameters(compute, "num_tokens", "max_num_tokens", "query_start_loc", "positions", "block_table", "block_table_stride",
                          "slot_mapping", "KV_CACHE_BLOCK_SIZE", "TOTAL_CP_WORLD_SIZE", "TOTAL_CP_RANK", "CP_KV_CACHE_INTERLEAVE_SIZE",
                          "PAD_ID")  # fmt: skip
    except InterfaceMismatch:
        return
    module._compute_slot_mapping_kernel_impl = slot_mapping(compute)


def _check_interfaces() -> None:
    """Raises InterfaceMismatch unless vLLM has everything that the backend uses."""
    native = "vllm.v1.attention.backends.cpu_attn"
    find(native, "CPUAttentionBackend", "forward_includes_kv_cache_update")
    expect_parameters(find(native, "CPUAttentionMetadataBuilder", "__init__"), "self", "kv_cache_spec", "layer_names", "vllm_config",
                      "device")  # fmt: skip
    expect_parameters(find(native, "CPUAttentionMetadataBuilder", "build"), "self", "common_prefix_len", "common_attn_metadata", "fast_build")
    expect_parameters(find(native, "CPUAttentionBackendImpl", "__init__"), "self", "num_heads", "head_size", "scale", "num_kv_heads",
                      "alibi_slopes", "sliding_window", "kv_cache_dtype", "logits_soft_cap", "attn_type",
                      "kv_sharing_target_layer_name", "sinks")  # fmt: skip
    expect_parameters(find(native, "CPUAttentionBackendImpl", "forward"), "self", "layer", "query", "key", "value", "kv_cache",
                      "attn_metadata", "output", "output_scale", "output_block_scale")  # fmt: skip
    expect_parameters(find(native, "CPUAttentionBackendImpl", "do_kv_cache_update"), "self", "layer", "key", "value", "kv_cache",
                      "slot_mapping")  # fmt: skip
    metadata = find(native, "CPUAttentionMetadata", "__dataclass_fields__")
    common = find("vllm.v1.attention.backend", "CommonAttentionMetadata", "__dataclass_fields__")
    for fields, names in (
        (metadata, ("num_actual_tokens", "max_query_len", "query_start_loc", "max_seq_len", "seq_lens", "block_table", "slot_mapping",
                    "scheduler_metadata", "causal")),
        (common, ("query_start_loc", "query_start_loc_cpu", "seq_lens", "num_reqs", "num_actual_tokens", "max_query_len", "max_seq_len",
                  "block_table_tensor", "slot_mapping", "causal")),
    ):  # fmt: skip
        missing = [name for name in names if name not in fields]
        if missing:
            raise InterfaceMismatch(f"no {', '.join(missing)} in vLLM's metadata of attention")
    find("vllm.model_executor.layers.attention", "Attention")
    find("vllm.config", "get_layers_from_vllm_config")

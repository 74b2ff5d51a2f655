"""Tiny random models of every type of causal language model that the installed Transformers has."""

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# The names that configurations give to their sizes, and the sizes of a tiny model. Windows and chunks are shorter than prompts.
SMALL = {
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input"], 99),
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "encoder_hidden_size"], 128),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size",
                     "expert_intermediate_size", "feed_forward_size", "dff", "dim_ff", "intermediate_size_mlp"], 96),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size",
                     "shared_intermediate_size", "moe_ffn_hidden_size"], 32),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
                     "num_decoder_layers", "num_encoder_layers"], 4),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
                     "decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads", "multi_query_group_num"], 2),
    **dict.fromkeys(["head_dim", "kv_channels", "d_kv", "attention_head_dim"], 32),
    **dict.fromkeys(["kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"], 32),
    "v_head_dim": 40,
    **dict.fromkeys(["num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"], 2),
    **dict.fromkeys(["n_group", "topk_group", "first_k_dense_replace", "n_shared_experts", "num_shared_experts"], 1),
    **dict.fromkeys(["sliding_window", "attention_window_size", "window_size"], 8),
    "attention_chunk_size": 5,
    "index_topk": 6,
    **dict.fromkeys(["index_n_heads"], 2),
    **dict.fromkeys(["index_head_dim"], 64),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim", "mamba_d_state", "ssm_state_size", "mamba_d_head"], 32),
    **dict.fromkeys(["linear_num_key_heads"], 2),
    **dict.fromkeys(["linear_num_value_heads"], 4),
    **dict.fromkeys(["mamba_n_heads"], 8),
    **dict.fromkeys(["hidden_size_per_layer_input", "mamba_dt_rank"], 16),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_target_positions", "max_seq_len"], 128),
    **dict.fromkeys(["pad_token_id"], 0),
    **dict.fromkeys(["bos_token_id"], 1),
    **dict.fromkeys(["eos_token_id"], 2),
    "is_decoder": True,
}  # fmt: skip


def types():
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _sets(config, name):
    """Whether a configuration takes a size of this name: an integer that is there, or None; no computed property."""
    own = getattr(type(config), name, None)
    if isinstance(own, property) and own.fset is None:
        return False
    if name not in config.to_dict() and name not in config.attribute_map:
        return False
    try:
        default = getattr(config, name)
    except Exception:  # each configuration has its own way to say no
        return False
    return isinstance(default, (int, type(None)))


def tiny_config(config_class):
    """A configuration with the sizes of SMALL wherever it has their names, and with those of SIZES for its type.

    Of the kinds of layers of its default, the four layers have each.
    """
    default = config_class()
    chosen = {name: size for name, size in SMALL.items() if _sets(default, name)}
    if default.to_dict().get("kv_lora_rank"):  # every head has its own keys, made from what the heads share
        chosen["num_key_value_heads"] = SMALL["num_attention_heads"]
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or ()))
    if 1 < len(kinds) <= 4 and "layer_types" not in default.attribute_map and (
        getattr(getattr(config_class, "layer_types", None), "fset", True)
    ):
        chosen["layer_types"] = (kinds * 4)[:4]
    for name in default.sub_configs:
        if isinstance(getattr(default, name, None), transformers.PreTrainedConfig):
            chosen[name] = tiny_config(type(getattr(default, name)))
    chosen.update(SIZES.get(config_class.model_type, {}))
    return config_class(**{name: size for name, size in chosen.items() if size is not NONE})


def build(model_type, implementation):
    torch.manual_seed(3)
    config = tiny_config(CONFIG_MAPPING[model_type])
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # attention that matters, and sinks that do
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
            elif "sink" in name:
                parameter.normal_(0, 1, generator=generator)
    return model


NONE = object()  # leaves out a size of SMALL

# What a type needs beside SMALL.
HYBRID = dict(layer_types=["linear_attention", "full_attention"] * 2)
SIZES = {
    "blt": dict(encoder_hash_byte_group_size=[2, 3], encoder_hash_byte_group_vocab=100),
    "dbrx": dict(attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=10000.0)),
    "bamba": dict(attn_layer_indices=[1, 3]),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "granitemoehybrid": HYBRID,
    "kimi_linear": HYBRID,
    "bailing_hybrid": HYBRID,
    "gemma3n_text": dict(intermediate_size=96, num_kv_shared_layers=2, activation_sparsity_pattern=[0.0] * 4,
                         layer_types=["sliding_attention", "full_attention"] * 2),
    "gemma4_assistant": dict(hidden_size_per_layer_input=0),
    "recurrent_gemma": dict(num_hidden_layers=6, layer_types=NONE),
    "gemma4_unified_assistant": dict(layer_types=NONE),
    "cohere_compass_text": dict(rope_parameters={kind: dict(rope_type="default", rope_theta=10000.0)
                                                 for kind in ("full_attention", "sliding_attention")}),
    "falcon_h1": dict(mamba_d_state=NONE, mamba_d_head=NONE, mamba_n_heads=NONE),
    "reformer": dict(axial_pos_embds=False),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2),
    "zamba": dict(layers_block_type=["linear_attention", "hybrid"] * 2,
                  attn_layer_period=2, attn_layer_offset=1, attention_hidden_size=256, attention_head_dim=64),
    "qwen4_exp_text": dict(indexer_n_heads=4, indexer_kv_heads=1, indexer_head_dim=32, indexer_budget=8, indexer_compress_ratio=2),
    "codegen": dict(rotary_dim=16),
    "gptj": dict(rotary_dim=16),
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]]),
    "mamba2": dict(num_heads=8, head_dim=32),
    "zaya": dict(num_experts_per_tok=1),
    "xmod": dict(default_language="en_XX"),
    "qwen2_moe": dict(use_sliding_window=True, max_window_layers=2, sliding_window=8),
    "qwen2": dict(use_sliding_window=True, max_window_layers=2, sliding_window=8),
    "qwen3": dict(use_sliding_window=True, max_window_layers=2, sliding_window=8),
    "zamba2": dict(layer_types=["mamba", "hybrid"] * 2),
}

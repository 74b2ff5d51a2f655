"""Writes tests/data/random_models_greedy.json: what Transformers generates greedily, in float32, from the files that
write_random_models makes (testing/random_models.h), with the gap between the two best logits at each step.

    build/dev/tests/write_random_models FOLDER
    python tests/engine/make_random_models_fixture.py FOLDER tests/data/random_models_greedy.json

Needs torch, transformers and gguf, which `scripts/venv.sh` installs; seconds. Transformers' own reader of GGUF files is not used:
it ignores some of the keys.
"""

import json
import pathlib
import random
import sys

import gguf
import torch
import transformers

NEW_TOKENS = 24
LAYER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
GEMMA_NORMS = {
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip


class File:
    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.fields = {name: field.contents() for name, field in reader.fields.items()}
        self.architecture = self.fields["general.architecture"]
        self.tensors = {t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}

    def get(self, name, default=None):
        return self.fields.get(f"{self.architecture}.{name}", default)


def common_config(file):
    return {
        "vocab_size": len(file.tensors["token_embd.weight"]),
        "hidden_size": file.get("embedding_length"),
        "intermediate_size": file.get("feed_forward_length"),
        "num_hidden_layers": file.get("block_count"),
        "num_attention_heads": file.get("attention.head_count"),
        "num_key_value_heads": file.get("attention.head_count_kv"),
        "head_dim": file.get("attention.key_length", file.get("embedding_length") // file.get("attention.head_count")),
        "max_position_embeddings": file.get("context_length"),
        "rms_norm_eps": file.get("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attn_implementation": "eager",
    }


def llama_config(file):
    rope = {"rope_type": "default", "rope_theta": file.get("rope.freq_base")}
    if file.get("rope.scaling.type") == "linear":
        rope |= {"rope_type": "linear", "factor": file.get("rope.scaling.factor")}
    if file.get("rope.scaling.type") == "yarn":
        rope |= {"rope_type": "yarn", "factor": file.get("rope.scaling.factor"), "beta_fast": file.get("rope.scaling.yarn_beta_fast")}
        rope["original_max_position_embeddings"] = file.get("rope.scaling.original_context_length")
    if file.get("rope.scaling.type") == "longrope":
        rope |= {"rope_type": "longrope", "original_max_position_embeddings": file.get("rope.scaling.original_context_length")}
        rope |= {f"{size}_factor": file.tensors[f"rope_factors_{size}.weight"].tolist() for size in ("long", "short")}
    if "rope_freqs.weight" in file.tensors:
        rope |= {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope["original_max_position_embeddings"] = 32
    bias = "blk.0.attn_q.bias" in file.tensors
    return transformers.LlamaConfig(**common_config(file), rope_parameters=rope, attention_bias=bias)


def qwen_config(file):
    qwen3 = file.architecture == "qwen3"
    kind = transformers.Qwen3Config if qwen3 else transformers.Qwen2Config
    return kind(**common_config(file), rope_parameters={"rope_type": "default", "rope_theta": file.get("rope.freq_base")})


def gemma_config(file):
    base = {"rope_type": "default", "rope_theta": file.get("rope.freq_base")}
    gemma = {
        "sliding_window": file.get("attention.sliding_window"),
        "query_pre_attn_scalar": file.get("attention.key_length"),
        "final_logit_softcapping": file.get("final_logit_softcapping"),
        "attn_logit_softcapping": file.get("attn_logit_softcapping"),
    }
    if file.architecture == "gemma2":
        return transformers.Gemma2Config(**common_config(file), **gemma, rope_parameters=base)
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": base | {"rope_type": "linear", "factor": file.get("rope.scaling.factor")},
    }
    return transformers.Gemma3TextConfig(**common_config(file), **gemma, rope_parameters=ropes)


CONFIGS = {
    "gemma2": gemma_config, "gemma3": gemma_config, "llama": llama_config, "qwen2": qwen_config, "qwen3": qwen_config,
}  # fmt: skip


def adjacent_to_halves(rows, heads):
    """Transformers turns elements i and i + half of a head; Llama's files hold these rows side by side."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def state(file, config, names):
    gemma = file.architecture.startswith("gemma")
    result = {}
    for name, tensor in file.tensors.items():
        if name.startswith("rope_"):
            continue
        if gemma and "norm" in name:
            tensor = tensor - 1  # Transformers adds it
        if not name.startswith("blk."):
            renamed = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
            result[renamed.get(name, "lm_head.weight")] = tensor
            continue
        _, layer, part, kind = name.split(".")
        if file.architecture == "llama" and part in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
            tensor = adjacent_to_halves(tensor, heads)
        norms = GEMMA_NORMS if gemma else NORMS
        result[f"model.layers.{layer}.{(LAYER | norms)[part]}.{kind}"] = tensor
    if config.tie_word_embeddings:
        result["lm_head.weight"] = result["model.embed_tokens.weight"]
    for name in names - result.keys():
        if name.endswith("o_proj.bias"):  # Transformers' biases are all or none
            result[name] = torch.zeros(config.hidden_size)
    return result


def load(file):
    config = CONFIGS[file.architecture](file)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.load_state_dict(state(file, config, model.state_dict().keys()))
    return model


@torch.inference_mode()
def generate(model, prompt, stop, new_tokens=NEW_TOKENS):
    tokens, gaps = [], []
    cache = transformers.DynamicCache(config=model.config)
    feed = prompt
    while len(tokens) < new_tokens and stop not in tokens:
        logits = model(torch.tensor([feed]), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        best = torch.topk(logits[0, -1].double(), 2)
        tokens.append(best.indices[0].item())
        gaps.append(round((best.values[0] - best.values[1]).item(), 4))
        feed = tokens[-1:]
    return tokens, gaps


def main(folder, out):
    results = {}
    for path in sorted(pathlib.Path(folder).glob("*.gguf")):
        if path.stem == "formats":  # no model
            continue
        file = File(path)
        model = load(file)
        numbers = random.Random(path.stem)
        results[path.stem] = []
        for length in (1, 2, 7, 23, 40, 90, 150):
            prompt = [1] + [numbers.randrange(3, 128) for _ in range(length - 1)]
            tokens, gaps = generate(model, prompt, file.fields["tokenizer.ggml.eos_token_id"])
            results[path.stem].append({"prompt": prompt, "tokens": tokens, "gaps": gaps})
        gaps = [gap for case in results[path.stem] for gap in case["gaps"]]
        tokens = {token for case in results[path.stem] for token in case["tokens"]}
        print(f"{path.stem}: {len(gaps)} tokens, {len(tokens)} different, {sum(gap > 0.05 for gap in gaps)} gaps above 0.05")
    with open(out, "w", encoding="ascii") as target:
        json.dump(results, target, separators=(",", ":"))
        target.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

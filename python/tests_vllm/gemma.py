"""Gemma 3 270M in float32 as a folder that vLLM loads, from the GGUF file of scripts/model.sh, and prompts for it."""

from __future__ import annotations

import json
import os
import pathlib

import gguf
import torch
import transformers
from safetensors.torch import save_file

from engine import CACHE, HERE

NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
BEGIN = 2  # the token that begins every text


def gguf_path() -> pathlib.Path:
    """Where scripts/model.sh puts the file."""
    cache = os.environ.get("RIFFLE_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "riffle")
    return pathlib.Path(cache, "models", "gemma-3-270m-q4_k_m.gguf")


def folder() -> pathlib.Path:
    """The model's folder, made when it is asked for the first time."""
    path = CACHE / "models" / "gemma3_270m"
    if not (path / "config.json").exists():
        reader = gguf.GGUFReader(gguf_path())
        path.mkdir(parents=True, exist_ok=True)
        save_file({_name(tensor.name): _float32(tensor) for tensor in reader.tensors}, path / "model.safetensors", {"format": "pt"})
        _config(reader).save_pretrained(path)
    return path


def _name(name: str) -> str:
    if not name.startswith("blk."):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.weight"


def _float32(tensor) -> torch.Tensor:
    weights = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).float()
    return weights - 1 if tensor.name.endswith("norm.weight") else weights  # GGUF's norms have the 1 that Transformers adds


def _config(reader) -> transformers.Gemma3TextConfig:
    def field(name: str):
        return reader.fields[f"gemma3.{name}"].contents()

    layers = field("block_count")
    return transformers.Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"], dtype="float32", vocab_size=262144, hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"), num_hidden_layers=layers, num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"), head_dim=field("attention.key_length"),
        max_position_embeddings=field("context_length"), rms_norm_eps=1e-6, sliding_window=field("attention.sliding_window"),
        query_pre_attn_scalar=field("attention.key_length"), tie_word_embeddings=True,
        layer_types=["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)],
    )  # fmt: skip


def texts() -> list[list[int]]:
    """14 texts of up to 48 tokens that Transformers generated, without a beginning."""
    data = HERE.parents[1] / "tests" / "data" / "gemma3_greedy.json"
    return [entry["tokens"] for entry in json.loads(data.read_text(encoding="utf-8"))]


def prompts() -> dict[str, list[list[int]]]:
    """Eight short prompts, four long ones, and four that are longer than the windows of the local layers, 512."""
    words = texts()
    every = [token for text in words for token in text]
    return dict(
        short=[[BEGIN, *words[i][: 4 + 3 * i]] for i in range(8)],
        long=[[BEGIN, *every[i * 31 : i * 31 + 150 + 40 * i]] for i in range(4)],
        windows=[[BEGIN, *every[i * 7 :], *every[: 60 * (i + 1)]] for i in range(4)],
    )

"""Small models with random weights, made so that what they say depends on attention, as folders that vLLM loads."""

from __future__ import annotations

import inspect
import json
import pathlib

import tokenizers
import torch
import transformers

from engine import CACHE

VOCABULARY = 512
SIZES = dict(vocab_size=VOCABULARY, hidden_size=128, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0,
             tie_word_embeddings=False)  # fmt: skip
WINDOW = 24
WINDOWS = dict(sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"] * 2)

# Name: class of the configuration and what it needs beside SIZES.
MODELS = {
    "llama": ("LlamaConfig", {}),
    "llama_one_kv_head": ("LlamaConfig", dict(num_key_value_heads=1)),
    "llama_head_40": ("LlamaConfig", dict(head_dim=40)),
    "qwen3": ("Qwen3Config", {}),
    "gemma2": ("Gemma2Config", dict(query_pre_attn_scalar=8, attn_logit_softcapping=2.0, final_logit_softcapping=None, tie_word_embeddings=True, **WINDOWS)),
    "gemma3": ("Gemma3TextConfig", dict(query_pre_attn_scalar=8, tie_word_embeddings=True, **WINDOWS)),
    "gpt_oss": ("GptOssConfig", dict(num_local_experts=4, num_experts_per_tok=2, **WINDOWS)),
    "bloom": ("BloomConfig", dict(n_layer=4, n_head=4, tie_word_embeddings=True)),
    "bert": ("BertConfig", {}),
    "whisper": ("WhisperConfig", dict(d_model=128, encoder_layers=2, decoder_layers=4, encoder_attention_heads=4, decoder_attention_heads=4,
                                      encoder_ffn_dim=192, decoder_ffn_dim=192, num_mel_bins=80, max_target_positions=128,
                                      decoder_start_token_id=3, suppress_tokens=None, begin_suppress_tokens=None)),
}  # fmt: skip
AUTO = {"bert": transformers.AutoModel, "whisper": transformers.AutoModelForSpeechSeq2Seq}


def folder(name: str) -> pathlib.Path:
    """The folder of a model, made when it is asked for the first time."""
    class_name, sizes = MODELS[name]
    path = CACHE / "models" / name
    settings = json.dumps([class_name, SIZES, sizes, inspect.getsource(_make), transformers.__version__])
    stamp = path / "settings.json"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != settings:
        _make(getattr(transformers, class_name)(**{**SIZES, **sizes}), path)
        stamp.write_text(settings, encoding="utf-8")
    return path


def _make(config, path: pathlib.Path) -> None:
    torch.manual_seed(3)
    auto = AUTO.get(config.model_type, transformers.AutoModelForCausalLM)
    model = auto.from_config(config).to(torch.float32).eval()
    generator = torch.Generator().manual_seed(4)
    tied = config.tie_word_embeddings
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed" in name and parameter.ndim == 2:
                # Where they are the output's weights too, large ones would make the model repeat the last token.
                parameter.normal_(0, 0.002 if tied else 1, generator=generator)
            elif parameter.ndim >= 2:
                # Twice the size that keeps activations as they are: heads look at few of their keys, and residual
                # branches weigh more than the embedding of the last token. Bloom, which norms its embedding, needs more.
                size = 4 if config.model_type == "bloom" else 2
                parameter.normal_(0, size * parameter.shape[-1] ** -0.5, generator=generator)
            elif "sink" in name:
                parameter.normal_(2, 1, generator=generator)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(path)
    if config.model_type == "whisper":
        _make_processor(path)
    if config.model_type == "bert":  # vLLM wants a tokenizer although prompts are tokens
        words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"word{i}": i for i in range(VOCABULARY)}, unk_token="word0"))
        transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="word0", pad_token="word0").save_pretrained(path)


def _make_processor(path: pathlib.Path) -> None:
    """What vLLM needs to read sound: a tokenizer of bytes, and the spectrum's settings."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|nospeech|>", "<|notimestamps|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    tokenizer = transformers.WhisperTokenizer(vocab=vocabulary, merges=[])
    transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer).save_pretrained(path)


def prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Random tokens; prompt i is longer by one than the one before."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length + i,), generator=generator).tolist() for i in range(count)]

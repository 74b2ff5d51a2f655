"""A small random Llama whose tokens depend on what its attention sees, and how engines of it are run."""

import functools
import os
import pathlib
import tempfile

# vLLM reads these when it is imported.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # functions are sent to workers
}
VOCAB = 512
WORDS = VOCAB - 3  # beside <s>, </s> and <unk>

# Options of every engine here: small, and without compilation.
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 64, "seed": 0}


def in_one_process() -> None:
    """Engines of this process run in it: to be called before vLLM is imported."""
    os.environ.update(ENVIRONMENT, VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind")


@functools.cache
def model() -> str:
    """The path of the model. It is made once a run of the tests."""
    folder = tempfile.TemporaryDirectory(prefix="riffle_llama_")
    _folders.append(folder)
    write_model(pathlib.Path(folder.name))
    return folder.name


_folders: list[tempfile.TemporaryDirectory] = []


def write_model(folder: pathlib.Path) -> None:
    """Writes a Llama with two KV heads and a tokenizer of words w0, w1, ... into `folder`."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1,
        tie_word_embeddings=False, dtype="float32",
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(config).float()
    with torch.no_grad():
        for name, weight in llama.named_parameters():
            if weight.ndim == 2:
                # Queries and keys are large, so that attention is far from even.
                weight.normal_(0, 2.0 / weight.shape[1] ** 0.5 if "q_proj" in name or "k_proj" in name else weight.shape[1] ** -0.5)
        llama.lm_head.weight.mul_(4)
    llama.save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def prompts(count: int, length: int = 12, seed: int = 0) -> list[dict]:
    """Prompts of random words, as token ids."""
    import random

    numbers = random.Random(seed)
    return [{"prompt_token_ids": [numbers.randrange(3, VOCAB) for _ in range(length)]} for _ in range(count)]

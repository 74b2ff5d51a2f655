"""Small random models with multi-head latent attention, an engine of vLLM for them, and what Transformers' eager says."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # the engine in this process
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_LOGGING_LEVEL="WARNING",
)

import contextlib  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402

import torch  # noqa: E402
import transformers  # noqa: E402

SIZES = dict(
    vocab_size=512, hidden_size=128, intermediate_size=192, moe_intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=4, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=48, n_routed_experts=4,
    num_experts_per_tok=2, n_shared_experts=1, n_group=1, topk_group=1, first_k_dense_replace=1, max_position_embeddings=4096,
    topk_method="noaux_tc", scoring_func="sigmoid", bos_token_id=0, eos_token_id=None, pad_token_id=None, tie_word_embeddings=False,
)  # fmt: skip


def build(model_type: str, folder, seed: int = 0, **sizes):
    """A random model in float32 whose tokens depend on its attention, saved into the folder. Returns it."""
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[model_type]
    config = config_class(**{**SIZES, **sizes})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
            if "q_b_proj" in name or "q_proj" in name:  # peaked attention: a token depends on which keys a query sees
                parameter.mul_(3)
            if "bias" in name:
                parameter.normal_(0, 0.1, generator=generator)
    model.save_pretrained(folder)
    return model


@contextlib.contextmanager
def engine(folder, **options):
    """vLLM with one thread, the plugin on, in this process."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    torch.set_num_threads(1)
    options = dict(dict(max_model_len=1024, max_num_seqs=16, dtype="float32"), **options)
    llm = LLM(model=str(folder), enforce_eager=True, skip_tokenizer_init=True, seed=0, **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def generate(llm, prompts, steps: int) -> list[list[int]]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True, detokenize=False)
    outputs = llm.generate([dict(prompt_token_ids=prompt) for prompt in prompts], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def generate_in_processes(folder, prompts, steps: int, processes: int) -> list[list[int]]:
    """The same from an engine whose workers are `processes` processes, by tensor parallelism."""
    request = json.dumps(dict(folder=str(folder), prompts=prompts, steps=steps, processes=processes))
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run([sys.executable, "-P", __file__], input=request, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))  # vLLM logs there too


def _serve_request() -> None:
    """What generate_in_processes runs."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    request = json.load(sys.stdin)
    with engine(request["folder"], tensor_parallel_size=request["processes"], max_num_batched_tokens=64) as llm:
        print("\n" + json.dumps(generate(llm, request["prompts"], request["steps"])), flush=True)


def random_prompts(lengths, seed: int = 1, vocab: int = SIZES["vocab_size"]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocab, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def check_tokens(model, prompts, tokens, gap: float = 0.05) -> int:
    """Every token is the best of eager's logits at its place, or within `gap` of it. Returns how many had to be the best.

    Each is judged by the logits that follow the tokens before it, so one near tie does not excuse those behind it.
    """
    decided = 0
    for prompt, generated in zip(prompts, tokens, strict=True):
        logits = model(torch.tensor([[*prompt, *generated]])).logits[0, len(prompt) - 1 : -1].float()
        best = logits.topk(2).values
        for place, token in enumerate(generated):
            if best[place, 0] - best[place, 1] > gap:
                decided += 1
                assert token == int(logits[place].argmax()), f"prompt of {len(prompt)}: token {place}"
            else:
                assert best[place, 0] - logits[place, token] <= gap
    return decided


if __name__ == "__main__":
    _serve_request()

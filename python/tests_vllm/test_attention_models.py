"""Small random models in vLLM's engine: tokens with Riffle's attention equal vLLM's own, or Transformers'."""

import pytest
import small_models
import torch
import transformers

import engine

NEW = 16
ENGINE = dict(dtype="float32", block_size=32)

# What the controls of each model change in the calls of riffle.paged_attention; each must change the text that it generates.
CONTROLS = {
    "llama": [dict(soft_cap=0.5)],
    "qwen3": [dict(window=3)],
    "gemma2": [dict(soft_cap=None), dict(window=None)],
    "gemma3": [dict(window=None)],
    "gpt_oss": [dict(sinks=None), dict(window=None)],
    "bloom": [dict(alibi_slopes=None)],
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.quick) if name == "gpt_oss" else name for name in CONTROLS])
def test_tokens_are_those_of_vllm(name):
    prompts = small_models.prompts(6, 60)
    runs = [dict(prompts=prompts, max_tokens=NEW)]
    job = dict(model=str(small_models.folder(name)), engine=ENGINE)
    native = engine.run_native(dict(job, runs=runs))
    controls = [dict(runs[0], change=change, forget=True) for change in CONTROLS[name]]
    riffle = engine.run(dict(job, runs=[*runs, *controls]))
    engine.expect_riffle(riffle)
    tokens = riffle["runs"][0]["tokens"]
    assert tokens == native["runs"][0]["tokens"]
    assert all(len(set(row)) > 3 for row in tokens), "says the same whatever it read"
    for change, control in zip(CONTROLS[name], riffle["runs"][1:]):
        assert control["tokens"] != tokens, change


@torch.inference_mode()
def by_transformers(name, prompts, new=NEW):
    model = transformers.AutoModelForCausalLM.from_pretrained(small_models.folder(name), dtype=torch.float32, attn_implementation="eager")
    texts = [list(prompt) for prompt in prompts]
    for text in texts:
        for _ in range(new):
            text.append(model(torch.tensor([text])).logits[0, -1].argmax().item())
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts)]


def test_head_size_that_vllm_has_not_and_blocks_of_16():
    prompts = small_models.prompts(3, 40)
    job = dict(model=str(small_models.folder("llama_head_40")), engine=dict(ENGINE, block_size=16), runs=[dict(prompts=prompts, max_tokens=NEW)])
    riffle = engine.run(job)
    engine.expect_riffle(riffle)
    assert all(layer["cache"][1:] == [2, 16, 80] for layer in riffle["layers"].values())
    assert riffle["runs"][0]["tokens"] == by_transformers("llama_head_40", prompts)


def test_drafts_are_verified():
    """Several queries of a sequence at once: drafts are taken from the prompt by n-grams. Greedy tokens do not change."""
    prompts = [prompt * 3 for prompt in small_models.prompts(4, 16)]
    runs = [dict(prompts=prompts, max_tokens=24)]
    job = dict(model=str(small_models.folder("llama")), engine=ENGINE, runs=runs)
    drafts = dict(method="ngram", num_speculative_tokens=4, prompt_lookup_max=3, prompt_lookup_min=1)
    riffle = engine.run(dict(job, engine=dict(ENGINE, speculative_config=drafts)))
    engine.expect_riffle(riffle)
    assert riffle["drafts"] > 0
    assert riffle["runs"][0]["tokens"] == engine.run_native(job)["runs"][0]["tokens"]


def test_layers_that_are_left_to_vllm():
    """Every second layer is left to vLLM, which then writes and reads its cache; one warning names each."""
    prompts = small_models.prompts(6, 60)
    job = dict(model=str(small_models.folder("llama")), engine=ENGINE, runs=[dict(prompts=prompts, max_tokens=NEW)])
    riffle = engine.run(dict(job, leave_every=2))
    left = [name for name, layer in riffle["layers"].items() if layer["left_to_vllm"]]
    assert len(left) == 2
    for name in left:
        assert riffle["log"].count(f"attention of {name} is left to vLLM: a test") == 1
    assert riffle["runs"][0]["tokens"] == engine.run_native(job)["runs"][0]["tokens"]


def test_encoder_only():
    """Keys and values of an encoder are read where they are: no cache, nothing masked."""
    prompts = small_models.prompts(5, 3) + small_models.prompts(3, 90)
    job = dict(model=str(small_models.folder("bert")), engine=dict(dtype="float32", runner="pooling", skip_tokenizer_init=False))
    runs = [dict(prompts=prompts, max_tokens=0)]
    native = torch.tensor(engine.run_native(dict(job, runs=runs))["runs"][0]["embeddings"])
    riffle = engine.run(dict(job, runs=[*runs, dict(runs[0], change=dict(window=2, window_right=0))]))
    engine.expect_riffle(riffle)
    ours, control = (torch.tensor(run["embeddings"]) for run in riffle["runs"])
    torch.testing.assert_close(ours, native, rtol=1e-4, atol=1e-5)
    assert (control - native).abs().max() > 0.05


def test_cross_attention():
    """A decoder that reads what an encoder made of sound: the cache of a sequence's sound is written once."""
    prompts = [[3 + i, 20, 30 + i] for i in range(4)]
    whisper = dict(ENGINE, skip_tokenizer_init=False, max_model_len=128, max_num_seqs=4, max_num_batched_tokens=2048)  # a sound is 1500
    runs = [dict(prompts=prompts, sounds=[1.0, 2.0, 0.5, 3.0], max_tokens=NEW)]
    job = dict(model=str(small_models.folder("whisper")), engine=whisper)
    native = engine.run_native(dict(job, runs=runs))
    riffle = engine.run(dict(job, runs=[*runs, dict(runs[0], change=dict(soft_cap=0.1))]))
    engine.expect_riffle(riffle)
    assert sum("CrossAttention" in layer["implementation"] for layer in riffle["layers"].values()) == 4
    tokens, control = (run["tokens"] for run in riffle["runs"])
    assert tokens == native["runs"][0]["tokens"]
    assert control != tokens


def test_decode_context_parallelism():
    """Two ranks, each with one half of the tokens of each sequence's only KV head, say what one engine without Riffle says."""
    prompts = small_models.prompts(5, 60)
    job = dict(model=str(small_models.folder("llama_one_kv_head")), engine=ENGINE, runs=[dict(prompts=prompts, max_tokens=NEW)])
    ranks = dict(ENGINE, tensor_parallel_size=2, decode_context_parallel_size=2, cp_kv_cache_interleave_size=8, max_num_batched_tokens=128)
    riffle = engine.run(dict(job, engine=ranks), VLLM_LOGGING_LEVEL="INFO", OMP_NUM_THREADS="1")
    assert riffle["log"].count("attention on") >= 2  # in each of the workers
    assert riffle["runs"][0]["tokens"] == engine.run_native(job)["runs"][0]["tokens"]

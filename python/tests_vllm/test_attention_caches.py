"""Small random models in vLLM's engine with every kind of cache: log-probabilities against Transformers with the same rounding."""

import pytest
import small_models
import torch
import transformers

import engine

PROMPTS = small_models.prompts(8, 100)
RUNS = [dict(prompts=PROMPTS, max_tokens=1, logprobs=20)]


def round_to(element):
    """Each number becomes the nearest that the type has."""
    return lambda x: x.to(element).float()


def with_row_scales(element, largest):
    """The largest magnitude of each row becomes the type's largest number."""

    def rounded(x):
        scale = x.abs().amax(-1, keepdim=True) / largest
        codes = x / scale
        return (codes.round() if element is torch.int8 else codes).to(element).float() * scale

    return rounded


# kv_cache_dtype: dtype of the engine's cache, and what it makes of keys and values.
CACHES = {
    "bfloat16": (torch.bfloat16, round_to(torch.bfloat16)),
    "float16": (torch.float16, round_to(torch.float16)),
    "fp8_e4m3": (torch.uint8, round_to(torch.float8_e4m3fn)),
    "fp8_e5m2": (torch.uint8, round_to(torch.float8_e5m2)),
    "int8_per_token_head": (torch.int8, with_row_scales(torch.int8, 127)),
    "fp8_per_token_head": (torch.uint8, with_row_scales(torch.float8_e4m3fn, 448)),
}


@torch.inference_mode()
def by_transformers(rounded) -> torch.Tensor:
    """Log-probabilities [prompts, vocabulary] of the first new token in float32, where attention sees rounded keys and values."""

    def attention(module, query, key, value, mask, scaling, **rest):
        key, value = (rounded(x).repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
        logits = query @ key.transpose(2, 3) * scaling
        hidden = torch.ones(logits.shape[2:], dtype=torch.bool).triu(1)
        return (logits.masked_fill(hidden, float("-inf")).softmax(3) @ value).transpose(1, 2), None

    transformers.AttentionInterface.register("rounded", attention)
    folder = small_models.folder("llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="rounded")
    return torch.stack([model(torch.tensor([prompt])).logits[0, -1].log_softmax(0) for prompt in PROMPTS])


def best(result) -> tuple[torch.Tensor, torch.Tensor]:
    """The 20 best tokens [prompts, 20] of a run and their log-probabilities."""
    rows = [sorted(positions[0].items(), key=lambda item: -item[1])[:20] for positions in result["runs"][0]["logprobs"]]
    return torch.tensor([[int(token) for token, _ in row] for row in rows]), torch.tensor([[value for _, value in row] for row in rows])


def distance(a, b) -> float:
    return (a - b).square().mean().sqrt().item()


@pytest.fixture(scope="module")
def exact():
    return by_transformers(lambda x: x)


@pytest.mark.parametrize("kind", CACHES)
def test_rounded_as_in_transformers(kind, exact):
    """The engine is far nearer to Transformers with the same rounding than that is to Transformers without.

    In float32 the two differ in what is rounded by some 1e-6 of it, so that a few numbers round the other way, each by one
    step. Where steps are s of a number, that is one of s / 1e-6 numbers; all of them are off by s / sqrt(12) in the root
    mean square, so the share of the former in the latter is sqrt(12e-6 / s): 0.1 for float16, 0.05 for bfloat16, below
    0.02 for 8 bits. Truncation instead of rounding, a wrong scale, or no rounding at all would be at least 1.
    """
    dtype, rounded = CACHES[kind]
    result = engine.run(dict(model=str(small_models.folder("llama")), runs=RUNS, engine=dict(dtype="float32", block_size=32, kv_cache_dtype=kind)))
    engine.expect_riffle(result)
    assert {layer["dtype"] for layer in result["layers"].values()} == {str(dtype)}
    tokens, ours = best(result)
    reference = by_transformers(rounded)
    effect = distance(reference.gather(1, tokens), exact.gather(1, tokens))
    assert distance(ours, reference.gather(1, tokens)) < effect / 4


def test_a_model_of_bfloat16(exact):
    """Both engines are off by what the model's own bfloat16 does; Riffle's by no more than half as much again as vLLM's."""
    job = dict(model=str(small_models.folder("llama")), engine=dict(dtype="bfloat16", block_size=32), runs=RUNS)
    result = engine.run(job)
    engine.expect_riffle(result)
    errors = []
    for run in (result, engine.run_native(job)):
        tokens, values = best(run)
        errors.append(distance(values, exact.gather(1, tokens)))
    assert errors[0] < 1.5 * errors[1]

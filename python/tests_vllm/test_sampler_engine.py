"""Riffle's sampler in engines of a small Llama, in this process: seeds, failed requests, speculative decoding."""

import gc
import math

import llama_case
import pytest

llama_case.in_one_process()
vllm = pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm import LLM, SamplingParams  # noqa: E402


def engine(**options) -> LLM:
    gc.collect()  # frees the engine before this one
    return LLM(llama_case.model(), **llama_case.ENGINE | options)


def generated(llm: LLM, prompts: list[dict], params: list[SamplingParams]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params, use_tqdm=False)]


def seeded(seed: int, tokens: int = 24, **more) -> SamplingParams:
    return SamplingParams(seed=seed, temperature=1.0, top_p=0.97, max_tokens=tokens, ignore_eos=True, **more)


def free(tokens: int = 24) -> SamplingParams:
    return SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True)


@pytest.fixture(scope="module")
def llm():
    return engine()


@pytest.mark.quick
def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(llm):
    prompts = llama_case.prompts(8)
    params = [seeded(i) if i % 2 else free() for i in range(8)]
    first, second = (generated(llm, prompts, params) for _ in range(2))
    alone = generated(llm, [prompts[3]], [seeded(3)])[0]
    for i in range(8):
        assert (first[i] == second[i]) == bool(i % 2)
    assert alone == first[3]
    assert generated(llm, [prompts[3]], [seeded(4)])[0] != alone


def test_requests_whose_logits_are_bad_end_with_an_error(llm):
    prompts = llama_case.prompts(6, seed=1)
    good = [SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True) if i % 2 else seeded(i, 12) for i in range(6)]
    expected = generated(llm, prompts, good)
    bad = list(good)
    bad[2] = seeded(2, 12, logit_bias={5: math.nan}, logprobs=2)
    bad[5] = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logit_bias={5: math.nan})
    outputs = llm.generate(prompts, bad, use_tqdm=False)
    for i, output in enumerate(outputs):
        if i in (2, 5):
            assert output.outputs[0].finish_reason == "error" and list(output.outputs[0].token_ids) == []
        else:
            assert list(output.outputs[0].token_ids) == expected[i] and output.outputs[0].finish_reason == "length"
    # The engine goes on, and has forgotten them.
    assert generated(llm, prompts, good) == expected


def test_log_probabilities_are_of_the_tokens(llm):
    output = llm.generate(llama_case.prompts(1), seeded(1, 8, logprobs=5, prompt_logprobs=2), use_tqdm=False)[0]
    for token, best in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True):
        ranked = sorted(best.values(), key=lambda entry: entry.rank)
        assert token in best and [entry.logprob for entry in ranked] == sorted((e.logprob for e in ranked), reverse=True)
        assert {entry.rank for entry in ranked} >= {1, 2, 3, 4, 5}
    assert len(output.prompt_logprobs) == 12


def test_seeds_with_chunked_prompts_and_preemption(llm):
    prompts = llama_case.prompts(6, length=100)
    params = [seeded(i, 100) for i in range(6)]
    expected = [generated(llm, [prompt], [param])[0] for prompt, param in zip(prompts, params, strict=True)]
    # 16 tokens a step: a prompt takes seven. 15 blocks of 32 tokens hold two of the six sequences, so some are preempted.
    small = engine(max_num_batched_tokens=16, max_num_seqs=6, block_size=32, num_gpu_blocks_override=16, enable_prefix_caching=False)
    preempted = []
    scheduler = small.llm_engine.engine_core.engine_core.scheduler
    preempt = scheduler._preempt_request
    scheduler._preempt_request = lambda request, *more, **named: (preempted.append(request), preempt(request, *more, **named))[1]
    assert generated(small, prompts, params) == expected
    assert preempted


@pytest.fixture(scope="module")
def speculative():
    return engine(speculative_config={"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1})


def test_speculative_decoding_with_sampling(llm, speculative):
    word = [7, 8, 9, 10, 11, 12]
    prompts = [{"prompt_token_ids": word * 6}, *llama_case.prompts(3)]
    greedy = [SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)] * 4
    expected = generated(llm, prompts, greedy)
    assert generated(speculative, prompts, greedy) == expected
    mixed = [seeded(i, 32, top_k=40) for i in range(3)] + [free(32)]
    first, second = (generated(speculative, prompts, mixed) for _ in range(2))
    assert all(len(tokens) == 32 for tokens in first + second)
    assert first[:3] == second[:3]
    assert [generated(speculative, [prompts[i]], [mixed[i]])[0] for i in range(3)] == first[:3]
    outputs = speculative.generate(prompts, [seeded(i, 16, logprobs=3) for i in range(4)], use_tqdm=False)
    assert all(len(output.outputs[0].logprobs) == 16 for output in outputs)


def test_speculative_decoding_with_bad_logits(speculative):
    runner = speculative.llm_engine.model_executor.driver_worker.model_runner
    compute = runner.model.compute_logits

    def with_bad_row(*args):
        logits = compute(*args)
        if len(logits) >= 4:
            logits[-1] = math.nan  # of the last request, where its next token is drawn
        return logits

    runner.model.compute_logits = with_bad_row
    try:
        outputs = speculative.generate(llama_case.prompts(4), [seeded(i, 16) for i in range(4)], use_tqdm=False)
    finally:
        runner.model.compute_logits = compute
    reasons = [output.outputs[0].finish_reason for output in outputs]
    assert "error" in reasons and reasons[0] == "length"
    assert generated(speculative, llama_case.prompts(1), [seeded(0, 16)])[0] == list(outputs[0].outputs[0].token_ids)

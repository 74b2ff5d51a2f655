"""Gemma 3 270M in vLLM's engine: Riffle's attention gives vLLM's own tokens."""

import gemma
import pytest

import engine

NEW = 24
ENGINE = dict(dtype="float32", max_model_len=1536, max_num_batched_tokens=256, enable_chunked_prefill=True, block_size=64)


@pytest.fixture(scope="module")
def folder():
    if not gemma.gguf_path().exists():
        pytest.skip("scripts/model.sh has not been run")
    return str(gemma.folder())


def sixteen():
    prompts = gemma.prompts()
    return [*prompts["short"], *prompts["long"], *prompts["windows"]]


def test_sixteen_prompts_a_batch_of_32_and_prefixes(folder):
    """Prefill in chunks of at most 256 tokens among sequences that decode; the second run finds its prefixes in the cache."""
    prompts = sixteen()
    assert [len(prompt) > 512 + NEW for prompt in prompts].count(True) == 4
    batch = [[gemma.BEGIN, *text[i : i + 20]] for text in gemma.texts() for i in (0, 5, 11)][:32]
    continued = [prompt + [50 + i] for i, prompt in enumerate(gemma.prompts()["windows"])]
    job = dict(model=folder, engine=ENGINE, runs=[
        dict(prompts=prompts, max_tokens=NEW),
        dict(prompts=batch, max_tokens=12),
        dict(prompts=continued, max_tokens=NEW),
        dict(prompts=prompts[:2] + prompts[-1:], max_tokens=6, change=dict(scale=0.03)),
    ])  # fmt: skip
    native = engine.run_native(dict(job, runs=job["runs"][:3]))
    riffle = engine.run(job)
    engine.expect_riffle(riffle)
    for ours, theirs in zip(riffle["runs"], native["runs"]):
        assert ours["tokens"] == theirs["tokens"]
    assert len(riffle["runs"][1]["tokens"]) == 32
    assert all(cached >= 512 for cached in riffle["runs"][2]["cached"]), "the prefixes were not cached"
    # The control: another scale of the logits is another text.
    changed, same = riffle["runs"][3]["tokens"], [riffle["runs"][0]["tokens"][i][:6] for i in (0, 1, -1)]
    assert changed != same


def test_preemption(folder):
    """The cache is too small for all sequences: some are preempted and computed anew.

    Of 60 blocks a sequence has 12 at first, two for each of six groups of layers, and 18 after its 128th token.
    """
    prompts = [prompt[:100] for prompt in sixteen()[8:]]
    job = dict(model=folder, engine=dict(ENGINE, num_gpu_blocks_override=60, max_model_len=256, enable_prefix_caching=False),
               runs=[dict(prompts=prompts, max_tokens=64)])  # fmt: skip
    riffle = engine.run(job)
    engine.expect_riffle(riffle)
    assert riffle["preemptions"] > 0
    roomy = dict(job, engine={key: value for key, value in job["engine"].items() if key != "num_gpu_blocks_override"})
    native = engine.run_native(roomy)
    assert native["preemptions"] == 0
    assert riffle["runs"][0]["tokens"] == native["runs"][0]["tokens"]

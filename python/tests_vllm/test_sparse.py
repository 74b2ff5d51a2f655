"""The part `sparse` of riffle.vllm: DeepSeek V3.2 and GLM-5, small and random, and the calls of indexer and attention.

Models in float32 keep their index keys as they are, so what is compared with Transformers' eager attention is the model itself, not
a quantised one: every token is the best of eager's logits where its two best are more than 0.05 apart (mla_models.check_tokens).
Contexts are up to 20 times as long as what the indexer selects. Models of 16 bits keep int8 keys: their selection is compared with
that of exact scores, not their tokens.
"""

import types

import mla_models
import pytest
import torch

LENGTHS = (1, 7, 40, 300, 17, 130)
TOPK = 16
# 24 index heads leave no two scores of a query equal: eager does not say which of equal ones it takes.
DSA = dict(q_lora_rank=48, index_topk=TOPK, index_n_heads=24, index_head_dim=64, num_hidden_layers=4)
MODELS = {
    "v32": dict(model_type="deepseek_v32", **DSA),
    # Every other layer reuses the selection of the one before.
    "glm5": dict(model_type="glm_moe_dsa", index_topk_pattern="FSFS", indexer_rope_interleave=True, **DSA),
    # DeepSeek's own sizes of latents, rotated elements and index keys, which rows of 656 bytes have.
    "wide": dict(model_type="deepseek_v32", kv_lora_rank=512, qk_rope_head_dim=64, **dict(DSA, index_head_dim=128)),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """All are made before there is an engine in this process: Transformers saves a model of a kind that an engine of vLLM has loaded
    without the norms of its indexers."""
    made = {}
    for name, sizes in MODELS.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = mla_models.build(folder=folder, **sizes), folder
    return made.__getitem__


def layers(llm):
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner.compilation_config.static_forward_context


@pytest.mark.parametrize("name", [pytest.param("v32", marks=pytest.mark.quick), "glm5"])
def test_tokens_in_chunks_and_from_the_prefix_cache(models, name):
    from riffle.vllm._indexer import RiffleIndexCache
    from riffle.vllm._sparse_backend import RiffleSparseImpl

    model, folder = models(name)
    prompts = mla_models.random_prompts(LENGTHS)
    with mla_models.engine(folder, max_num_batched_tokens=64, block_size=16) as llm:
        config = llm.llm_engine.vllm_config
        assert config.scheduler_config.enable_chunked_prefill and config.cache_config.enable_prefix_caching
        kinds = [type(getattr(layer, "impl", layer)) for layer in layers(llm).values()]
        assert kinds.count(RiffleSparseImpl) == 4 and kinds.count(RiffleIndexCache) == (2 if name == "glm5" else 4)
        first = mla_models.generate(llm, prompts, 8)
        longer = [prompt + tokens for prompt, tokens in zip(prompts, first)]
        manager, hits = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager, []
        look_up = manager.get_computed_blocks
        manager.get_computed_blocks = lambda request: (found := look_up(request), hits.append(found[1]))[0]
        second = mla_models.generate(llm, longer, 8)
    assert max(hits) >= 288 and sum(hit > 0 for hit in hits) >= 4
    assert mla_models.check_tokens(model, prompts, first) >= 36
    assert mla_models.check_tokens(model, longer, second) >= 36


def test_tokens_of_two_processes(models):
    """Tensor parallelism: each worker loads the plugin and has half of the heads."""
    model, folder = models("v32")
    prompts = mla_models.random_prompts(LENGTHS[:4])
    tokens = mla_models.generate_in_processes(folder, prompts, 6, 2)
    assert mla_models.check_tokens(model, prompts, tokens) >= 16


@pytest.mark.parametrize("change", ["newest", "one of 16"])
def test_tokens_depend_on_the_selection(models, monkeypatch, change):
    """A negative control: check_tokens sees other tokens if the newest keys are selected, or if one key of 16 is another."""
    from riffle.vllm import _sparse_backend

    model, folder = models("v32")
    prompts = mla_models.random_prompts((300, 130))
    convert = _sparse_backend.riffle.positions_to_slots

    def perturbed(positions, page_table, page_size, *, cu_q_lens):
        positions = positions.clone()
        full = positions[:, -1] >= 0
        if change == "newest":
            lens = (positions.amax(1, keepdim=True)).clamp(min=TOPK)
            positions[full] = (lens - torch.arange(TOPK, dtype=torch.int32))[full]
        else:  # the best one is named twice, that is, counts twice, and the last one not at all
            positions[full, -1] = positions[full, 0]
        return convert(positions, page_table, page_size, cu_q_lens=cu_q_lens)

    monkeypatch.setattr(_sparse_backend.riffle, "positions_to_slots", perturbed)
    with mla_models.engine(folder) as llm:
        tokens = mla_models.generate(llm, prompts, 8)
    with pytest.raises(AssertionError):
        mla_models.check_tokens(model, prompts, tokens)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8_ds_mla"])
def test_bfloat16_generates(models, kv_cache_dtype):
    """int8 index keys and rows of bfloat16, or DeepSeek's of 656 bytes."""
    from riffle.vllm._indexer import RiffleIndexCache

    model, folder = models("wide")
    prompts = mla_models.random_prompts(LENGTHS)
    with mla_models.engine(folder, dtype="bfloat16", kv_cache_dtype=kv_cache_dtype) as llm:
        caches = [layer for layer in layers(llm).values() if isinstance(layer, RiffleIndexCache)]
        assert {(cache.kv_cache.dtype, cache.kv_cache.shape[-1], cache.hadamard) for cache in caches} == {(torch.int8, 132, True)}
        tokens = mla_models.generate(llm, prompts, 8)
    # Near ties of a selection fall otherwise than in eager, and their keys matter: only short contexts, where all is selected, are
    # judged by their tokens.
    short = [i for i, length in enumerate(LENGTHS) if length + 8 <= TOPK]
    decided = mla_models.check_tokens(model, [prompts[i] for i in short], [tokens[i] for i in short], gap=1.0)
    assert decided >= 1 and all(len(generated) == 8 for generated in tokens)


# Below: selection without an engine.


def cache_of(dtype, dim, pages, size):
    """A RiffleIndexCache whose pages are a part of longer ones, as those of one layer among several are."""
    from riffle.vllm._indexer import RiffleIndexCache

    cache = RiffleIndexCache.__new__(RiffleIndexCache)
    torch.nn.Module.__init__(cache)
    cache.prepare(dim, dtype)
    width, kind = (dim, torch.float32) if cache.is_exact else (dim + 4, torch.int8)
    whole = torch.zeros(pages, 3, size, width, dtype=kind)
    cache.kv_cache = whole[:, 1]
    return cache, whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [64, 128, 96])
def test_selection(monkeypatch, dtype, dim):
    """Exact keys: the best by float64 scores, best first. int8 keys: at least 0.95 of them, and their scores near the best."""
    from riffle.vllm import _indexer

    if dim == 96 and dtype == torch.bfloat16:
        floor = 0.9  # no Hadamard transform of 96 elements
    else:
        floor = 0.95
    generator = torch.Generator().manual_seed(dim)
    heads, topk, size, kv_lens, new = 16, 64, 16, [40, 500, 333], [3, 1, 200]
    counts = [-(-length // size) for length in kv_lens]
    pages = torch.randperm(sum(counts), generator=generator).to(torch.int32)
    table = torch.zeros(3, max(counts), dtype=torch.int32)
    cache, whole = cache_of(dtype, dim, sum(counts), size)
    keys = [torch.randn(length, dim, generator=generator).to(dtype) for length in kv_lens]
    used = 0
    slots = []
    for i, (length, count) in enumerate(zip(kv_lens, counts)):
        table[i, :count] = pages[used : used + count]
        used += count
        at = torch.arange(length)
        slots.append(table[i, at // size].long() * size + at % size)
    context = types.SimpleNamespace(attn_metadata={}, no_compile_layers={"layer": cache})
    monkeypatch.setattr(_indexer, "get_forward_context", lambda: context)

    def step(first, behind, q, weights):
        """Tokens first[i]..behind[i] of each sequence."""
        lens = torch.tensor([b - a for a, b in zip(first, behind)])
        context.attn_metadata["layer"] = types.SimpleNamespace(
            num_actual_tokens=int(lens.sum()), seq_lens=torch.tensor(behind, dtype=torch.int32), block_table=table,
            query_start_loc=torch.cat([torch.zeros(1), lens.cumsum(0)]).to(torch.int32),
            slot_mapping=torch.cat([s[a:b] for s, a, b in zip(slots, first, behind)]),
        )  # fmt: skip
        k = torch.cat([x[a:b] for x, a, b in zip(keys, first, behind)])
        selected = torch.full((len(q) + 2, topk), -7, dtype=torch.int32)
        padding = torch.zeros(2, dim, dtype=dtype)  # rows behind the step's tokens stay as they are
        _indexer.select(q, torch.cat([k, padding]), weights, selected, "layer")
        assert (selected[len(q) :] == -7).all()
        return selected[: len(q)]

    before = [length - count for length, count in zip(kv_lens, new)]
    tokens = sum(before)
    step([0, 0, 0], before, torch.randn(tokens, heads, dim, generator=generator).to(dtype), torch.rand(tokens, heads, generator=generator))
    q = torch.randn(sum(new), heads, dim, generator=generator).to(dtype)
    weights = torch.randn(sum(new), heads, generator=generator)
    selected = step(before, kv_lens, q, weights)
    assert not whole[:, [0, 2]].any()  # the neighbours' pages
    found = wanted = t = 0
    for i, count in enumerate(new):
        for j in range(count):
            sees = kv_lens[i] - count + j + 1
            scores = (torch.relu(q[t].double() @ keys[i][:sees].double().T) * weights[t].double()[:, None]).sum(0)
            k = min(topk, sees)
            best = torch.argsort(scores, descending=True, stable=True)[:k]
            got = selected[t]
            assert (got[k:] == -1).all() and len(set(got[:k].tolist())) == k
            if dtype == torch.float32 and sees > topk:
                assert got.tolist() == best.tolist()
            found, wanted, t = found + len(set(got[:k].tolist()) & set(best.tolist())), wanted + k, t + 1
    assert found >= floor * wanted

"""The part `mla` of riffle.vllm: greedy tokens of small random models against Transformers' eager attention in float32, and the
backend's calls against float64 and vLLM's own kernel.

Tokens are those of eager wherever its two best logits are more than 0.05 apart (mla_models.check_tokens).
"""

import math
import types

import mla_models
import pytest
import torch

LENGTHS = (5, 40, 300, 17, 64, 130)
MODELS = {
    "v3": dict(model_type="deepseek_v3", q_lora_rank=48),
    # V2-Lite: queries without LoRA, experts chosen by softmax.
    "v2_lite": dict(model_type="deepseek_v2", q_lora_rank=None, topk_method="greedy", scoring_func="softmax", norm_topk_prob=False,
                    routed_scaling_factor=1.0),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = mla_models.build(folder=folder, **MODELS[name]), folder
        return made[name]

    return get


def runner(llm):
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner


def implementations(llm):
    layers = runner(llm).compilation_config.static_forward_context.values()
    return [layer.impl for layer in layers if hasattr(layer, "impl")]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.quick) if name == "v2_lite" else name for name in MODELS])
def test_tokens_in_chunks_and_from_the_prefix_cache(models, name):
    """Steps of 64 tokens cut prompts into chunks and mix them with decodes; the second round finds its prefixes in the cache."""
    from riffle.vllm._mla_backend import RiffleMLAImpl

    model, folder = models(name)
    prompts = mla_models.random_prompts(LENGTHS)
    with mla_models.engine(folder, max_num_batched_tokens=64, block_size=16) as llm:
        config = llm.llm_engine.vllm_config
        assert config.scheduler_config.enable_chunked_prefill and config.cache_config.enable_prefix_caching
        assert config.scheduler_config.max_num_batched_tokens == 64 and config.cache_config.block_size == 16
        assert {type(impl) for impl in implementations(llm)} == {RiffleMLAImpl}
        first = mla_models.generate(llm, prompts, 8)
        longer = [prompt + tokens for prompt, tokens in zip(prompts, first)]
        cached = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager
        hits = []
        look_up = cached.get_computed_blocks
        cached.get_computed_blocks = lambda request: (found := look_up(request), hits.append(found[1]))[0]
        second = mla_models.generate(llm, longer, 8)
    assert max(hits) >= 288 and sum(hit > 0 for hit in hits) >= 4
    assert mla_models.check_tokens(model, prompts, first) >= 36
    assert mla_models.check_tokens(model, longer, second) >= 36


def test_tokens_of_keys_and_values_made_from_the_cache(models, monkeypatch):
    """Requests with more than 8 new tokens: their keys and values are made again, 48 at a time, and the parts merged."""
    from riffle.vllm import _mla_backend

    monkeypatch.setattr(_mla_backend.RiffleMLAMetadataBuilder, "reorder_batch_threshold", 8)
    monkeypatch.setattr(_mla_backend, "MHA_KEYS", 48)
    calls = []
    attend = _mla_backend.RiffleMLAImpl._attend
    monkeypatch.setattr(
        _mla_backend.RiffleMLAImpl, "_attend", lambda self, q, *rest: (calls.append((len(q), rest[2])), attend(self, q, *rest))[1]
    )
    model, folder = models("v3")
    prompts = mla_models.random_prompts(LENGTHS)
    with mla_models.engine(folder, max_num_batched_tokens=96) as llm:
        assert llm.llm_engine.vllm_config.cache_config.block_size == 64  # where the user names none
        tokens = mla_models.generate(llm, prompts, 6)
    assert any(seq_len - queries > 96 for queries, seq_len in calls)
    assert mla_models.check_tokens(model, prompts, tokens) >= 30


def test_a_cache_of_float8_generates(models):
    """Every token's logit is within 1 of the best of eager's, which keeps its keys in float32: 0.67 was the furthest. A token at random
    is 3 below."""
    model, folder = models("v3")
    prompts = mla_models.random_prompts((5, 40, 130))
    with mla_models.engine(folder, kv_cache_dtype="fp8", max_num_batched_tokens=64) as llm:
        assert {impl.float8 for impl in implementations(llm)} == {torch.float8_e4m3fn}
        tokens = mla_models.generate(llm, prompts, 6)
    assert all(len(generated) == 6 for generated in tokens)
    mla_models.check_tokens(model, prompts, tokens, gap=1.0)
    with pytest.raises(AssertionError):
        mla_models.check_tokens(model, prompts, [[(token + 1) % 512 for token in generated] for generated in tokens], gap=1.0)


def test_tokens_depend_on_attention(models, monkeypatch):
    """A negative control: with logits of attention a tenth too small, check_tokens sees other tokens."""

    model, folder = models("v3")
    prompts = mla_models.random_prompts(LENGTHS)
    with mla_models.engine(folder) as llm:
        for impl in implementations(llm):
            impl.scale *= 0.9
        tokens = mla_models.generate(llm, prompts, 8)
    with pytest.raises(AssertionError):
        mla_models.check_tokens(model, prompts, tokens)


@pytest.mark.quick
@pytest.mark.parametrize(
    "vllms, dtype, cache_dtype, named, riffles",
    [
        ("CPU_MLA", torch.bfloat16, "auto", False, True),
        ("AMX_MLA", torch.bfloat16, "auto", False, False),
        ("AMX_MLA", torch.bfloat16, "auto", True, True),
        ("AMX_MLA", torch.bfloat16, "fp8_e4m3", False, True),
        ("AMX_MLA", torch.float16, "auto", False, True),
        ("AMX_MLA", torch.float32, "auto", False, True),
    ],
)
def test_amx_keeps_only_what_it_can_do(monkeypatch, vllms, dtype, cache_dtype, named, riffles):
    """On any host: vLLM's answer is made up. Backend and configuration must agree."""
    from riffle.vllm import _mla

    choice = _mla._Choice("CPU_MLA", "AMX_MLA", named)
    selector = types.SimpleNamespace(
        use_mla=True, use_sparse=False, use_dcp=False, use_pcp=False, dtype=dtype, kv_cache_dtype=cache_dtype
    )
    answer = choice.get_attn_backend_cls(lambda *_: vllms, None, selector)
    assert answer == (_mla.BACKEND if riffles else vllms)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: vllms == "AMX_MLA")
    config = types.SimpleNamespace(
        model_config=types.SimpleNamespace(hf_config=object(), dtype=dtype), cache_config=types.SimpleNamespace(cache_dtype=cache_dtype),
        attention_config=types.SimpleNamespace(backend=None),
        parallel_config=types.SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1),
    )  # fmt: skip
    assert choice.is_ours(config) == riffles


# Below: the calls of a backend without an engine.

LATENT, ROTATED, HEADS = 512, 64, 16


def implementation(kv_cache_dtype="auto"):
    """A RiffleMLAImpl of DeepSeek's dimensions; its projections are not called here."""
    from riffle.vllm._mla_backend import FLOAT8, RiffleMLAImpl

    impl = RiffleMLAImpl.__new__(RiffleMLAImpl)
    impl.num_heads, impl.kv_lora_rank, impl.qk_rope_head_dim, impl.scale = HEADS, LATENT, ROTATED, 192**-0.5
    impl.float8 = FLOAT8.get(kv_cache_dtype)
    return impl


def case(dtype, kv_lens, block, seed=0):
    """A cache with these sequences in it, written by the backend, and one query a sequence."""
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-length // block) for length in kv_lens]
    table = torch.zeros(len(kv_lens), max(counts), dtype=torch.int32)
    pages = torch.randperm(sum(counts) + 3, generator=generator)[: sum(counts)].to(torch.int32)
    rows = torch.randn(sum(kv_lens), LATENT + ROTATED, generator=generator).to(dtype)
    slots, used = [], 0
    for i, (length, count) in enumerate(zip(kv_lens, counts)):
        table[i, :count] = pages[used : used + count]
        used += count
        at = torch.arange(length)
        slots.append(table[i, at // block].long() * block + at % block)
    q = torch.randn(len(kv_lens), HEADS, LATENT + ROTATED, generator=generator).to(dtype)
    cache = torch.zeros(sum(counts) + 3, block, LATENT + ROTATED, dtype=dtype)
    return q, rows, torch.cat(slots), cache, table, torch.tensor(kv_lens, dtype=torch.int32)


def decode(impl, q, cache, table, lens, scale=1.0):
    metadata = types.SimpleNamespace(
        causal=True, decode=types.SimpleNamespace(seq_lens=lens, block_table=table, query_start_loc=None)
    )
    return impl.forward_mqa(q, cache, metadata, types.SimpleNamespace(_k_scale=torch.tensor(scale)))[0]


def reference(q, rows, kv_lens, scale=192**-0.5):
    out, first = [], 0
    for i, length in enumerate(kv_lens):
        keys = rows[first : first + length].double()
        first += length
        out.append(torch.softmax(q[i].double() @ keys.T * scale, -1) @ keys[:, :LATENT])
    return torch.stack(out)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 5e-6), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("block", [16, 64, 1056])
def test_decode_against_float64_and_vllms_kernel(dtype, bound, block):
    """Differences are compared with float64 over the elements as they are in the cache; vLLM's kernel knows pages of 16."""
    from vllm import _custom_ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    kv_lens = [1, 16, 17, 500, 1055]
    q, rows, slots, cache, table, lens = case(dtype, kv_lens, block)
    impl = implementation()
    padding = torch.tensor([-1, -1])  # slots of padding are skipped
    padded = torch.cat([rows, rows[:2] + 1])
    impl.do_kv_cache_update(padded[:, :LATENT], padded[:, None, LATENT:], cache, torch.cat([slots, padding]), "auto", torch.ones(()))
    assert torch.equal(cache.view(-1, LATENT + ROTATED)[slots], rows)
    assert int((cache != 0).any(-1).sum()) == len(rows)
    want = reference(q, rows, kv_lens)
    ours = decode(impl, q, cache, table, lens)
    assert (ours.double() - want).abs().max() <= bound
    if block == 16:
        theirs = torch.zeros_like(ours)
        _custom_ops.mla_decode_kvcache_cpu(theirs, q, cache, impl.scale, table, lens)
        assert (theirs.double() - want).abs().max() <= bound
        if dtype != torch.float32:  # there vLLM's kernel is nearer still, 9e-7
            assert (ours.double() - want).abs().max() <= 1.5 * (theirs.double() - want).abs().max()


@pytest.mark.parametrize("kind", ["fp8", "fp8_e4m3", "fp8_e5m2"])
def test_decode_over_a_cache_of_float8(kind):
    """Rows are rounded to float8 with the layer's scale; attention over them is exact."""
    impl = implementation(kind)
    q, rows, slots, _, table, lens = case(torch.bfloat16, [33, 700], 64)
    scale = 0.25
    cache = torch.zeros(int(table.max()) + 4, 64, LATENT + ROTATED, dtype=torch.uint8)
    impl.do_kv_cache_update(rows[:, :LATENT], rows[:, None, LATENT:], cache, slots, kind, torch.tensor(scale))
    stored = cache.view(impl.float8).view(-1, LATENT + ROTATED)[slots].double() * scale
    steps = {torch.float8_e4m3fn: 2**-4, torch.float8_e5m2: 2**-3}[impl.float8]
    assert ((stored - rows.double()).abs() <= steps * rows.double().abs() + 2**-10).all()
    ours = decode(impl, q, cache, table, lens, scale)
    assert (ours.double() - reference(q, stored, [33, 700])).abs().max() <= 3e-2
    assert not math.isclose(float(ours.abs().max()), 0)

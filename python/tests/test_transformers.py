"""riffle.transformers: the same tokens as Transformers' own attention, on small random models of every kind of layer."""

import functools
import gc
import json
import os
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="Transformers 5 is not installed")

import riffle  # noqa: E402
import riffle.transformers  # noqa: E402
from riffle import _transformers_paged  # noqa: E402
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList  # noqa: E402

SIZES = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=512,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
LAYERS = ["sliding_attention", "full_attention"] * 2


def config(kind):
    if kind == "llama":  # full attention alone
        return transformers.LlamaConfig(**SIZES)
    if kind == "gemma3":
        return transformers.Gemma3TextConfig(**SIZES, sliding_window=16, layer_types=LAYERS)
    if kind == "gemma2":  # a soft cap
        return transformers.Gemma2Config(**SIZES, sliding_window=16, layer_types=LAYERS, attn_logit_softcapping=3.0)
    if kind == "gpt_oss":  # sinks
        moe = dict(num_local_experts=2, num_experts_per_tok=1)
        return transformers.GptOssConfig(**SIZES, sliding_window=16, layer_types=LAYERS, **moe)
    raise AssertionError(kind)


@pytest.fixture(scope="module", autouse=True)
def registered():
    """With threads of both libraries as they were, after the tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are so small that PyTorch's threads would only wait for each other
    riffle.transformers.register()
    riffle.set_num_threads(2)
    gc.freeze()  # continuous batching collects garbage several times a run; what the imports made is none
    yield
    gc.unfreeze()
    riffle.torch.use_torch_threads(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["llama", "gemma3", "gemma2", "gpt_oss"])
def model(request):
    torch.manual_seed(4)
    model = transformers.AutoModelForCausalLM.from_config(config(request.param)).eval()
    with torch.no_grad():  # attention that matters, and sinks that do
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
            elif "sinks" in name:
                parameter.normal_(0, 1)
    model.generation_config.eos_token_id = None
    return model


# sdpa has neither soft cap nor sinks.
def reference(model):
    return "sdpa" if model.config.model_type in ("llama", "gemma3_text") else "eager"


def prompts(*lengths):
    rng = np.random.default_rng(5)
    return [[1, *rng.integers(3, 97, length - 1).tolist()] for length in lengths]


def left_padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return dict(input_ids=ids, attention_mask=mask)


def generate(model, implementation, inputs, **arguments):
    model.set_attn_implementation(implementation)
    arguments = {"max_new_tokens": 24, "do_sample": False, **arguments}
    return model.generate(**inputs, **arguments)


def logits(model, implementation, inputs):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("name", ["riffle", "paged|riffle"])
@pytest.mark.filterwarnings("ignore:The `paged")
@pytest.mark.parametrize("lengths", [[1], [9], [60], [5, 30, 1], [17, 17]], ids=str)
def test_generate(model, lengths, name):
    inputs = left_padded(prompts(*lengths))
    expected = generate(model, reference(model), inputs)
    assert generate(model, name, inputs).tolist() == expected.tolist()


def test_logits(model):
    inputs = left_padded(prompts(40, 7))
    real = inputs["attention_mask"].bool()
    expected = logits(model, reference(model), inputs)[real]
    torch.testing.assert_close(logits(model, "riffle", inputs)[real], expected, rtol=2e-4, atol=2e-4)


def test_padding_on_the_right(model):
    """Prompts longer than the window, and then tokens behind the padding, which stays a hole in the cache."""
    rows = prompts(40, 7)
    ids = torch.tensor([row + [0] * (40 - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (40 - len(row)) for row in rows])
    after, both = torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.cat([mask, torch.ones(2, 3, dtype=mask.dtype)], 1)
    answers = []
    for name in (reference(model), "riffle"):
        model.set_attn_implementation(name)
        with torch.no_grad():
            out = model(input_ids=ids, attention_mask=mask)
            more = model(input_ids=after, attention_mask=both, past_key_values=out.past_key_values)
        answers.append(torch.cat([out.logits[mask.bool()], more.logits.flatten(0, 1)]))
    torch.testing.assert_close(answers[1], answers[0], rtol=2e-4, atol=2e-4)


def test_static_cache(model):
    inputs = left_padded(prompts(11, 4))
    arguments = dict(cache_implementation="static", disable_compile=True)
    expected = generate(model, reference(model), inputs, **arguments)
    assert generate(model, "riffle", inputs, **arguments).tolist() == expected.tolist()


def test_static_cache_without_a_mask(model):
    """Tokens past the window of 16 too, in chunks and one by one."""
    ids = torch.tensor([row[:30] for row in prompts(30, 30)])
    answers = []
    for name in (reference(model), "riffle"):
        model.set_attn_implementation(name)
        cache = transformers.StaticCache(config=model.config, max_cache_len=40)
        with torch.no_grad():
            chunks = [model(input_ids=chunk, past_key_values=cache).logits for chunk in ids.split([5, 1, 3, 14, 1, 4, 1, 1], 1)]
        answers.append(torch.cat(chunks, 1))
    torch.testing.assert_close(answers[1], answers[0], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("lengths", [[9], [5, 30, 1]], ids=str)
def test_growing_cache(model, lengths, beams, monkeypatch):
    """With memory that is full every few tokens; beams reorder it."""
    monkeypatch.setattr(riffle._transformers_cache, "_MIN_GROWTH", 5)
    inputs = left_padded(prompts(*lengths))
    expected = generate(model, reference(model), inputs, num_beams=beams)
    for name in (reference(model), "riffle"):
        cache = riffle.transformers.GrowingCache(config=model.config)
        assert generate(model, name, inputs, num_beams=beams, past_key_values=cache).tolist() == expected.tolist()


def test_growing_cache_is_a_cat(monkeypatch):
    """Also after what callers do to keys: cut at either end, chosen, repeated, copied, replaced."""
    monkeypatch.setattr(riffle._transformers_cache, "_MIN_GROWTH", 3)
    memory, rng = riffle._transformers_cache._Memory(), np.random.default_rng(3)
    changes = [
        lambda x: x, lambda x: x, lambda x: x[:, :, 2:], lambda x: x[:, :, :-1], lambda x: x[1:], lambda x: x[:, :1],
        lambda x: x.repeat_interleave(2, 0), lambda x: x.flip(0), lambda x: x[:, :, ::2], lambda x: x.clone(), lambda x: x[:, :, :0],
        lambda x: x.to(torch.float64) if x.dtype == torch.float32 else x.float(), lambda x: x[..., :-1] if x.shape[3] > 4 else x,
    ]  # fmt: skip
    ours = theirs = torch.zeros(2, 2, 0, 8)
    places = set()
    for step in range(600):
        new = torch.randn(ours.shape[0], ours.shape[1], int(rng.integers(1, 4)), ours.shape[3], dtype=ours.dtype)
        ours, theirs = memory.append(ours, new), torch.cat([theirs, new], 2)
        assert torch.equal(ours, theirs)
        places.add(ours.data_ptr())
        change = changes[rng.integers(len(changes))] if step % 4 == 0 else changes[0]
        ours, theirs = change(ours), change(theirs)
        if ours.shape[0] > 4 or 0 in ours.shape[:2]:
            ours = theirs = torch.zeros(2, 2, 0, 8)
    assert len(places) < 500  # most were in place


def batched(model, implementation, rows, max_new_tokens=24, **arguments):
    model.set_attn_implementation(implementation)
    generation = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=64, max_requests_per_batch=8, **arguments)
    outputs = model.generate_batch(rows, generation_config=generation, continuous_batching_config=batching)
    return [output.generated_tokens for _, output in sorted(outputs.items(), key=lambda item: int(item[0].split("_")[-1]))]


# Pages that divide the window, that do not, and ones that are longer than it; chunks of a prompt, and all of it at once.
@pytest.mark.parametrize("page_size,max_batch_tokens", [(8, 512), (8, 24), (12, 24), (512, 64)])
def test_continuous_batching(model, page_size, max_batch_tokens, monkeypatch):
    plans, plan = [], _transformers_paged._plan
    monkeypatch.setattr(_transformers_paged, "_plan", lambda *args: plans.append(plan(*args)) or plans[-1])
    rows = prompts(3, 50, 17, 1, 9)
    expected = [generate(model, reference(model), left_padded([row]))[0, len(row) :].tolist() for row in rows]
    actual = batched(model, "riffle", rows, page_size=page_size, max_batch_tokens=max_batch_tokens)
    assert actual == expected
    assert {"packed", "in place"} == {how for how, *_ in plans}


def test_refused(model):
    model.set_attn_implementation("riffle")
    ids = torch.tensor([[3, 4, 5]])
    with pytest.raises(ValueError, match="no gradient"):
        model(input_ids=ids)


def test_sampler_follows_top_p():
    torch.manual_seed(1)
    scores = 3 * torch.randn(4, 1000)
    sampler = riffle.transformers.Sampler(top_k=50, top_p=0.8, temperature=0.9, seed=4)
    warpers = LogitsProcessorList(
        [
            transformers.TemperatureLogitsWarper(0.9),
            transformers.TopKLogitsWarper(50),
            transformers.TopPLogitsWarper(0.8),
        ]
    )
    kept = warpers(None, scores.clone()).isfinite()
    for step in range(200):
        drawn = sampler(torch.zeros(4, step + 1, dtype=torch.int64), scores.clone()).argmax(-1)
        assert kept[torch.arange(4), drawn].all()
        assert drawn.tolist() == riffle.sample(
            scores, top_k=50, top_p=0.8, temperature=0.9, seed=4, position=step + 1
        ).tolist()


def test_sampler_in_generate(model):
    inputs = left_padded(prompts(9, 4))
    sampler = LogitsProcessorList([riffle.transformers.Sampler(temperature=5.0, seed=1)])
    first = generate(model, "riffle", inputs, logits_processor=sampler)
    assert generate(model, "riffle", inputs, logits_processor=sampler).tolist() == first.tolist()
    other = LogitsProcessorList([riffle.transformers.Sampler(temperature=5.0, seed=2)])
    assert generate(model, "riffle", inputs, logits_processor=other).tolist() != first.tolist()
    greedy = LogitsProcessorList([riffle.transformers.Sampler(temperature=0.0)])
    expected = generate(model, "riffle", inputs)
    assert generate(model, "riffle", inputs, logits_processor=greedy).tolist() == expected.tolist()


@pytest.fixture
def top_k_head(model):
    """use_top_k_head of the model, whose own head comes back."""
    if model.config.model_type == "gemma2":
        pytest.skip("its logits are capped; test_top_k_head_refuses_soft_caps")
    weight = model.lm_head.weight
    yield functools.partial(riffle.transformers.use_top_k_head, model)
    riffle.transformers.use_top_k_head(model, 0)
    assert type(model.lm_head) is torch.nn.Linear and model.lm_head.weight is weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_top_k_head_keeps_the_largest(dtype):
    head = torch.nn.Linear(48, 97, bias=True).to(dtype).requires_grad_(False)
    x = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = head(x)
    for k in (1, 5, 97):
        logits = riffle.transformers.TopKHead(head, k)(x)
        kept = logits.isfinite()
        assert logits.dtype == dtype and logits.shape == expected.shape and bool((kept.sum(-1) == k).all())
        torch.testing.assert_close(logits[kept], expected[kept])
        least = torch.where(kept, expected, torch.inf).amin(-1, keepdim=True)
        slack = 1e-5 if dtype == torch.float32 else 0.02
        assert bool((expected.masked_fill(kept, -torch.inf) <= least + slack).all())


def test_top_k_head_refuses_soft_caps():
    model = transformers.AutoModelForCausalLM.from_config(config("gemma2"))
    with pytest.raises(ValueError, match="caps its logits"):
        riffle.transformers.use_top_k_head(model, 5)


def test_top_k_head_in_generate(model, top_k_head):
    inputs, rows = left_padded(prompts(9, 4)), prompts(9, 4)
    sampling = dict(do_sample=True, top_k=5, temperature=3.0)
    expected = []
    for k in (0, 5, 1, 5):
        top_k_head(k)
        torch.manual_seed(2)
        expected.append(generate(model, "riffle", inputs).tolist())
        if k != 1:
            expected.append(generate(model, "riffle", inputs, **sampling).tolist())
            expected.append(batched(model, "riffle", rows, page_size=8, max_batch_tokens=24))
    greedy, drawn, paged = expected[:3]
    assert expected[3:] == [greedy, drawn, paged, greedy, greedy, drawn, paged]
    assert greedy != drawn


def test_top_k_head_refuses(model, top_k_head):
    for k in (-1, 98):
        with pytest.raises(ValueError, match=f"k = {k} is not in 1..97"):
            top_k_head(k)
    top_k_head(3)
    with pytest.raises(ValueError, match="no gradient"):
        model.lm_head(torch.zeros(1, 48, requires_grad=True))
    with pytest.raises(ValueError, match="not torch.nn.Linear"):
        riffle.transformers.TopKHead(torch.nn.Identity(), 3)


CACHE = os.environ.get("RIFFLE_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "riffle")
GGUF = pathlib.Path(CACHE, "models", "gemma-3-270m-q4_k_m.gguf")
GREEDY = pathlib.Path(__file__).parents[2] / "tests" / "data" / "gemma3_greedy.json"


@pytest.fixture
def gemma3_270m(monkeypatch):
    """The model in float32. Transformers reads the file twice, and in it the vocabulary element by element."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    memmap, reader = np.memmap, functools.cache(gguf.GGUFReader)

    def without_scores(path):
        model = reader(path)
        for name in ("scores", "token_type"):  # a number for each token, which the model does without
            model.fields.pop(f"tokenizer.ggml.{name}", None)
        return model

    with monkeypatch.context() as patch:
        patch.setattr(np, "memmap", lambda *args, **named: memmap(*args, **named).view(np.ndarray))  # quick to index
        patch.setattr(gguf, "GGUFReader", without_scores)
        patch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        gc.disable()  # millions of objects that all stay
        try:
            load = transformers.AutoModelForCausalLM.from_pretrained
            yield load(GGUF.parent, gguf_file=GGUF.name, dtype=torch.float32).eval()
        finally:
            gc.enable()


@pytest.mark.skipif(not GGUF.exists(), reason="the model is absent; scripts/model.sh fetches it")
def test_gemma3_270m(gemma3_270m):
    """The greedy tokens of sdpa on the real model, up to a step whose two best logits are closer than 0.01."""
    torch.set_num_threads(2)
    model = gemma3_270m
    texts = {entry["name"]: entry["tokens"] for entry in json.loads(GREEDY.read_text())}
    # Text that the model wrote itself; the second is longer than the window of the local layers.
    everything = [token for tokens in texts.values() for token in tokens]
    assert len(everything) >= 520 > model.config.sliding_window
    rows = [[2, *texts["story"][:12]], [2, *everything[-520:]]]
    arguments = dict(max_new_tokens=5, eos_token_id=-1, pad_token_id=0)
    compared, expected = [], []
    for row in rows:
        inputs = dict(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.int64))
        out = generate(model, "sdpa", inputs, output_logits=True, return_dict_in_generate=True, **arguments)
        best = torch.cat(out.logits).topk(2).values
        close = (best[:, 0] - best[:, 1] < 0.01).tolist()
        compared.append(close.index(True) if True in close else len(close))
        expected.append(out.sequences[0, len(row) :].tolist()[: compared[-1]])
        actual = generate(model, "riffle", inputs, **arguments)[0, len(row) :].tolist()
        assert actual[: compared[-1]] == expected[-1]
    assert sum(compared) >= 6, compared
    riffle.transformers.use_top_k_head(model, 64)
    actual = batched(model, "riffle", rows, max_new_tokens=5, page_size=32, max_batch_tokens=256)
    assert [tokens[:n] for tokens, n in zip(actual, compared)] == expected

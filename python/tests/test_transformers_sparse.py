"""riffle.transformers.use_sparse_attention: the tokens of eager attention on small random models."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")

import riffle  # noqa: E402
import riffle.transformers as rt  # noqa: E402
from tiny_models import tiny_config  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

DSA = [name for name in ("deepseek_v32", "glm_moe_dsa") if name in CONFIG_MAPPING]


def make(model_type, implementation="eager", **sizes):
    config = tiny_config(CONFIG_MAPPING[model_type])
    for name, value in sizes.items():
        setattr(config, name, value)
    config._attn_implementation = implementation
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # attention that matters
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return model


def tokens(model, prompts, mask, count=12):
    return model.generate(prompts, attention_mask=mask, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0)


@pytest.fixture
def prompts():
    return torch.randint(3, 99, (3, 17), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model_type", DSA)
@pytest.mark.parametrize("implementation", ["eager", "riffle"])
@pytest.mark.parametrize("padded", [False, True])
def test_tokens_are_those_of_eager(model_type, implementation, padded, prompts, monkeypatch):
    rt.register()
    mask = torch.ones_like(prompts)
    if padded:  # on the left, by 0, 5 and 12 tokens: fewer than index_topk are left of the last
        for row, count in enumerate((0, 5, 12)):
            mask[row, :count] = 0
    prompts = prompts.masked_fill(mask == 0, 0)
    sizes = {"indexer_types": ["full", "shared", "full", "shared"]} if model_type == "glm_moe_dsa" else {}
    want = tokens(make(model_type, **sizes), prompts, mask)
    model = make(model_type, implementation, **sizes)
    calls = []
    for name in ("indexer_top_k", "sparse_attention"):
        call = getattr(riffle, name)
        monkeypatch.setattr(riffle, name, lambda *a, call=call, name=name, **k: (calls.append(name), call(*a, **k))[1])
    rt.use_sparse_attention(model)
    assert torch.equal(tokens(model, prompts, mask), want)
    layers = 4
    full = 2 if sizes else 4
    assert calls.count("indexer_top_k") == 12 * full and calls.count("sparse_attention") == 12 * layers


@pytest.mark.parametrize("model_type", DSA)
def test_logits_of_a_prefill(model_type, prompts):
    with torch.no_grad():
        want = make(model_type)(prompts).logits
        model = make(model_type)
        rt.use_sparse_attention(model)
        torch.testing.assert_close(model(prompts).logits, want, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(model(prompts, use_cache=False).logits, want, rtol=1e-3, atol=1e-4)


def test_what_is_refused(prompts):
    config = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=9)
    llama = transformers.LlamaForCausalLM(config)
    with pytest.raises(ValueError, match="does not compute llama: it is none of deepseek_v32, glm_moe_dsa"):
        rt.use_sparse_attention(llama)
    if "deepseek_v4" in CONFIG_MAPPING:
        with pytest.raises(ValueError, match="does not compute deepseek_v4: its layers attend to compressed entries"):
            rt.use_sparse_attention(make("deepseek_v4"))
    for model_type in DSA:
        with pytest.raises(ValueError, match="kv_lora_rank = 40 .* multiples of 16"):
            rt.use_sparse_attention(make(model_type, kv_lora_rank=40))
        model = make(model_type)
        rt.use_sparse_attention(model)
        with pytest.raises(ValueError, match="no gradient"):
            model(prompts)

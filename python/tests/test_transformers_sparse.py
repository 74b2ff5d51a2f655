"""riffle.transformers.use_sparse_attention: the tokens of eager attention on small random models.

Eager attention chooses by torch.topk, which leaves open which of equal scores it takes. So models here have either as many
index heads as leave no ties, which is asserted, or eager attention gets a top-k by a stable sort.
"""

import collections

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="Transformers 5 is not installed")

import riffle  # noqa: E402
import riffle.torch  # noqa: E402
import riffle.transformers as rt  # noqa: E402
from tiny_models import tiny_config  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

DSA = [name for name in ("deepseek_v32", "glm_moe_dsa", "deepseek_v4") if name in CONFIG_MAPPING]
LAYERS, LENGTH, STEPS = 4, 29, 8
# What the layers of a model run on, in a forward of many tokens or of one that completes a window of each kind.
CALLS = {
    "deepseek_v32": {"indexer_top_k": LAYERS, "sparse_attention": LAYERS},
    "glm_moe_dsa": {"indexer_top_k": 2, "sparse_attention": LAYERS},
    "deepseek_v4": {"indexer_top_k": 2, "sparse_attention": LAYERS, "compress_kv": 5},
}
PLAIN_TOPK = torch.Tensor.topk


def make(model_type, implementation="eager", **sizes):
    config = tiny_config(CONFIG_MAPPING[model_type])
    if model_type == "glm_moe_dsa":
        sizes = dict(indexer_types=["full", "shared"] * 2, **sizes)
    if model_type == "deepseek_v4":
        csa, hca = "compressed_sparse_attention", "heavily_compressed_attention"
        sizes = dict(layer_types=[csa, hca, csa, "sliding_attention"], compress_rates={csa: 2, hca: 7}, **sizes)
    for name, value in sizes.items():
        setattr(config, name, value)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # attention that matters
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 or "sink" in name:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return model


def sparse(model_type, implementation="eager", **sizes):
    model = make(model_type, implementation, **sizes)
    rt.use_sparse_attention(model)
    return model


def tokens(model, prompts, mask, **options):
    return model.generate(
        prompts, attention_mask=mask, max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0, **options
    )


def stable_topk(scores, k, dim=-1, **options):
    """torch.topk, which for scores of an indexer, [batch, queries, keys], takes the lower position of equal scores."""
    if scores.ndim != 3:
        return PLAIN_TOPK(scores, k, dim=dim, **options)
    values, indices = scores.sort(dim=dim, descending=True, stable=True)
    return torch.return_types.topk((values[..., :k], indices[..., :k]))


class Ties:
    """torch.Tensor.topk that counts the queries of an indexer with equal scores on both sides of the threshold."""

    def __init__(self):
        self.ties = self.queries = 0

    def __call__(self, scores, k, dim=-1, **options):
        if scores.ndim == 3 and k < scores.shape[-1]:
            values = scores.sort(dim=-1, descending=True).values
            chosen = values[..., k] > torch.finfo(scores.dtype).min / 2  # that many are seen, and one more
            self.ties += int((chosen & (values[..., k - 1] == values[..., k])).sum())
            self.queries += int(chosen.sum())
        return PLAIN_TOPK(scores, k, dim=dim, **options)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are so small that threads would only wait for each other."""
    threads, ours = torch.get_num_threads(), riffle.info()["threads"]
    torch.set_num_threads(1)
    rt.register()
    transformers.utils.logging.set_verbosity_error()
    yield
    riffle.torch.use_torch_threads(False)
    riffle.set_num_threads(ours)
    torch.set_num_threads(threads)


@pytest.fixture
def prompts():
    return torch.randint(3, 99, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def left_padding(prompts):
    """Padding of 0, 5 and 24 tokens: fewer than index_topk are left of the last row."""
    mask = torch.ones_like(prompts)
    for row, count in enumerate((0, 5, LENGTH - 5)):
        mask[row, :count] = 0
    return prompts.masked_fill(mask == 0, 0), mask


@pytest.mark.parametrize("model_type", DSA)
@pytest.mark.parametrize("implementation", ["eager", "riffle"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_tokens_are_those_of_eager(model_type, implementation, padded, ties, prompts, monkeypatch):
    mask = torch.ones_like(prompts)
    if padded:
        prompts, mask = left_padding(prompts)
    sizes = dict(index_n_heads=2 if ties else 24)
    count = Ties()
    monkeypatch.setattr(torch.Tensor, "topk", lambda *args, **options: count(*args, **options))
    want = tokens(make(model_type, **sizes), prompts, mask)
    monkeypatch.setattr(torch.Tensor, "topk", stable_topk)
    assert (count.ties > 0) == ties and count.queries > 50
    if ties:
        want = tokens(make(model_type, **sizes), prompts, mask)
    monkeypatch.setattr(torch.Tensor, "topk", PLAIN_TOPK)
    assert torch.equal(tokens(sparse(model_type, implementation, **sizes), prompts, mask), want)


@pytest.mark.parametrize("model_type", [name for name in DSA if name != "deepseek_v4"])  # which has no static cache
def test_static_cache(model_type, prompts, monkeypatch):
    prompts, mask = left_padding(prompts)
    monkeypatch.setattr(torch.Tensor, "topk", stable_topk)
    want = tokens(make(model_type), prompts, mask)
    out = tokens(sparse(model_type), prompts, mask, cache_implementation="static", disable_compile=True)
    assert torch.equal(out, want)


@pytest.mark.parametrize("model_type", DSA)
def test_layers_run_on_riffle(model_type, prompts, monkeypatch):
    calls = collections.Counter()
    for name in CALLS[model_type]:
        call = getattr(riffle, name)
        monkeypatch.setattr(riffle, name, lambda *a, _call=call, _name=name, **k: (calls.update([_name]), _call(*a, **k))[1])
    with torch.no_grad():
        sparse(model_type)(prompts[:, :28])
    assert calls == CALLS[model_type]


def chunks(model, prompts, mask):
    """The prompt in pieces, the last tokens one by one."""
    cache, logits, seen = None, [], 0
    for chunk in prompts.split([9, 13, 1, 1, 1, 4], 1):
        seen += chunk.shape[1]
        out = model(input_ids=chunk, attention_mask=mask[:, :seen], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, 1)


def of_a_matrix(model, prompts, mask):
    """A mask [batch, 1, queries, keys] of a caller: some earlier keys are hidden from each query."""
    generator = torch.Generator().manual_seed(2)
    shown = torch.rand(len(prompts), 1, LENGTH, LENGTH, generator=generator) < 0.7
    shown = (shown | torch.eye(LENGTH, dtype=torch.bool)) & mask[:, None, None].bool()
    hidden = ~(shown & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())
    return model(prompts, attention_mask=torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)).logits


WAYS = {
    "with a cache": lambda model, prompts, mask: model(prompts, attention_mask=mask).logits,
    "without a cache": lambda model, prompts, mask: model(prompts, attention_mask=mask, use_cache=False).logits,
    "chunks": chunks,
    "matrix": of_a_matrix,
}


@pytest.mark.parametrize("model_type", DSA)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_logits(model_type, way, side, prompts, monkeypatch):
    mask = torch.ones_like(prompts)
    if side == "left":
        prompts, mask = left_padding(prompts)
    elif side == "right":
        prompts, mask = (x.flip(1) for x in left_padding(prompts.flip(1)))
    with torch.no_grad():
        monkeypatch.setattr(torch.Tensor, "topk", stable_topk)
        want = WAYS[way](make(model_type), prompts, mask)
        monkeypatch.setattr(torch.Tensor, "topk", PLAIN_TOPK)
        for implementation in ("eager", "riffle"):
            out = WAYS[way](sparse(model_type, implementation), prompts, mask)
            torch.testing.assert_close(out[mask.bool()], want[mask.bool()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", DSA)
def test_equal_scores_choose_lower_positions(model_type, prompts, monkeypatch):
    """All scores are equal: what is chosen is known."""
    models = make(model_type), sparse(model_type)
    for model in models:
        for name, parameter in model.named_parameters():
            if "weights_proj" in name:
                torch.nn.init.zeros_(parameter)
    monkeypatch.setattr(torch.Tensor, "topk", stable_topk)
    with torch.no_grad():
        want, out = (model(prompts).logits for model in models)
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", DSA)
def test_bfloat16_is_as_close_to_float32_as_eager(model_type, prompts, monkeypatch):
    sizes = dict(index_topk=LENGTH)  # all keys: rounding would choose others
    monkeypatch.setattr(torch.Tensor, "topk", stable_topk)
    with torch.no_grad():
        want = make(model_type, **sizes)(prompts).logits
        eager, ours = (m(prompts).logits.float() for m in (make(model_type, **sizes).bfloat16(), sparse(model_type, **sizes).bfloat16()))
    assert (ours - want).square().mean() <= 2 * (eager - want).square().mean()


def test_what_is_refused(prompts):
    config = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=9)
    llama = transformers.LlamaForCausalLM(config)
    with pytest.raises(ValueError, match="does not compute llama: it is none of deepseek_v32, glm_moe_dsa, deepseek_v4"):
        rt.use_sparse_attention(llama)
    for model_type in DSA:
        wrong, text = (dict(head_dim=40, qk_rope_head_dim=8), "head_dim = 40") if model_type == "deepseek_v4" else (
            dict(kv_lora_rank=40), "kv_lora_rank = 40 .* multiples of 16")
        with pytest.raises(ValueError, match=f"does not compute {model_type}: {text}"):
            rt.use_sparse_attention(make(model_type, **wrong))
        with pytest.raises(ValueError, match="index_head_dim = 300"):
            rt.use_sparse_attention(make(model_type, index_head_dim=300))
        model = sparse(model_type)
        with pytest.raises(ValueError, match=f"does not compute {model_type}: it has no gradient"):
            model(prompts)
        with torch.no_grad():
            with pytest.raises(ValueError, match=f"does not compute {model_type}: its layers get output_attentions"):
                model(prompts, output_attentions=True)
            bias = torch.zeros(3, 1, LENGTH, LENGTH)
            bias[..., 3] = 0.5
            with pytest.raises(ValueError, match=f"does not compute {model_type}: its mask does not only hide keys"):
                model(prompts, attention_mask=bias)
            with pytest.raises(ValueError, match="attention_dropout = 0.5"):
                layers = [module for module in model.modules() if hasattr(module, "attention_dropout")]
                for layer in layers:
                    layer.attention_dropout = 0.5
                model.train()(prompts)

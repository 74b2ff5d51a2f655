"""riffle.transformers and padding: the matrix of Transformers' common tests, which hold sdpa against eager attention.

For each type of model: padding on either side, masks of every form, dtypes, and caches. The logits of all tokens that are not
padding are those of eager attention, or riffle raises a ValueError of its own. In float16 and bfloat16 both are held against eager
attention in float32 on the same rounded weights: riffle's may not be farther off.

RIFFLE_TEST_ALL_MODELS=1 (`make test-transformers`) runs all of TYPES; otherwise those of FAST.
"""

import copy
import os

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="Transformers 5 is not installed")

import riffle  # noqa: E402
import riffle.transformers  # noqa: E402
import tiny_models  # noqa: E402

# Full attention, windows, soft caps, sinks, chunks, position biases (refused), learned positions, odd head_dims, latent attention.
TYPES = (
    "llama gemma3_text gemma2 mistral qwen2 qwen3 phi3 olmo2 opt gpt2 gpt_neox bart starcoder2 cohere2 granite stablelm smollm3 "
    "gpt_oss llama4_text deepseek_v3 glm4 exaone4 doge"
).split()
FAST = "llama gemma3_text gpt_oss opt".split()

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIDES = ["left", "right"]
FORMS = ["none", "int64", "bool", "float", "4d", "4d bool"]
# Lengths of the steps; with "none" the cache is off.
CACHES = {"none": [26], "decode": [23, 1, 1, 1], "chunks": [13, 6, 1, 1, 5]}
LENGTHS = (26, 11)  # longer than windows (8) and chunks (5)


@pytest.fixture(scope="module", autouse=True)
def registered():
    """With one thread: the models are so small that threads would only wait for each other."""
    threads, ours = torch.get_num_threads(), riffle.info()["threads"]
    torch.set_num_threads(1)
    riffle.transformers.register()
    transformers.utils.logging.set_verbosity_error()
    yield
    riffle.torch.use_torch_threads(False)
    riffle.set_num_threads(ours)
    torch.set_num_threads(threads)


def batch(side):
    """Token ids, and which are real: bool [2, 26]."""
    generator = torch.Generator().manual_seed(5)
    ids, real = torch.zeros(2, max(LENGTHS), dtype=torch.int64), torch.zeros(2, max(LENGTHS), dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        place = slice(0, length) if side == "right" else slice(max(LENGTHS) - length, None)
        ids[row, place] = torch.randint(3, 97, (length,), generator=generator)
        real[row, place] = True
    return ids, real


def mask_of(form, real, begin, end, dtype):
    """The mask that a model is given for the queries [begin, end), whose keys are those before `end`."""
    if form == "none":
        return None
    if form in ("int64", "bool", "float"):
        return real[:, :end].to(dict(int64=torch.int64, bool=torch.bool, float=torch.float32)[form])
    visible = torch.arange(end) <= torch.arange(begin, end)[:, None]
    visible = (visible & real[:, None, :end])[:, None]
    return visible if form == "4d bool" else torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def logits(model, side, form, cache, **options):
    """The logits of the real tokens, in float32."""
    ids, real = batch(side)
    past, out, begin = None, [], 0
    for length in CACHES[cache]:
        end = begin + length
        mask = mask_of(form, real, begin, end, model.dtype)
        with torch.no_grad():
            step = model(input_ids=ids[:, begin:end], attention_mask=mask, past_key_values=past, use_cache=cache != "none", **options)
        past, begin = step.past_key_values if cache != "none" else None, end
        out.append(step.logits)
    chosen = torch.ones_like(real) if form == "none" else real
    return torch.cat(out, 1)[chosen].float()


class Models:
    """A tiny model by eager attention and by riffle's, and the former in float32, all with the same weights."""

    def __init__(self, model_type, dtype):
        self.eager = tiny_models.build(model_type, "eager").to(dtype)
        self.riffle = tiny_models.build(model_type, "riffle").to(dtype)
        self.exact = copy.deepcopy(self.eager).float()
        self.has_experts = any("experts" in name for name, _ in self.eager.named_modules())


def fault(models, side, form, cache):
    """Empty where riffle is right; None where eager attention fails."""
    # Eager attention adds masks, so it has no form for bool ones.
    try:
        expected = logits(models.exact, side, "4d" if form == "4d bool" else form, cache)
    except (RuntimeError, IndexError):
        # Masks [batch, 1, queries, keys] do not fit a cache that drops what is before a window, nor learned positions,
        # which are counted in the mask.
        return None if form.startswith("4d") else "eager attention fails"
    try:
        actual = logits(models.riffle, side, form, cache)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    size = expected.abs().max().clamp(min=1)
    # Most tokens only: where the best experts are nearly as good as others, rounding chooses.
    most = 0.9 if models.eager.dtype is not torch.float32 and models.has_experts else 1.0

    def distance(logits):
        return float((logits - expected).abs().amax(-1).quantile(most) / size)

    off = distance(actual)
    if models.eager.dtype is torch.float32:
        return "" if off <= 1e-4 else f"off by {off:.2g}"
    eager = logits(models.eager, side, "4d" if form == "4d bool" else form, cache)
    own = distance(eager)
    return "" if off <= 2 * own + 1e-3 else f"off by {off:.2g}, eager attention by {own:.2g}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model_type", TYPES if os.environ.get("RIFFLE_TEST_ALL_MODELS") else FAST)
def test_padding(model_type, dtype):
    models = Models(model_type, dtype)
    faults, cases = {}, 0
    for side in SIDES:
        for form in FORMS:
            for cache in CACHES:
                what = fault(models, side, form, cache)
                cases += what is not None
                if what:
                    faults[side, form, cache] = what
    assert not faults, "\n".join(f"{case}: {what}" for case, what in faults.items())
    assert cases >= 24  # all but those of masks [batch, 1, queries, keys], which are 12


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("cache", CACHES)
def test_attention_weights_are_refused_or_none(side, cache):
    """output_attentions: Riffle never has the weights. It says so, or the model says that there are none."""
    model = tiny_models.build("llama", "riffle")
    try:
        with_weights = logits(model, side, "int64", cache, output_attentions=True)
    except ValueError as error:
        assert "output_attentions" in str(error)
    else:
        torch.testing.assert_close(with_weights, logits(model, side, "int64", cache))

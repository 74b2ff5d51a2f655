"""Every type of causal language model that the installed Transformers has: equal to its own attention, or refused by riffle.

A tiny random model of each type runs in each way of SCENARIOS, with eager attention and with riffle's. The outcome is "equal";
"refused", a ValueError of riffle's that names the reason; or "eager fails", where there is nothing to compare with. Types and
ways whose outcome is not "equal" are listed here with their reasons, so that none falls away in silence.

RIFFLE_TEST_ALL_MODELS=1 (`make test-transformers`) runs all types; otherwise those of FAST.
"""

import collections
import gc
import os

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="Transformers 5 is not installed")

import riffle  # noqa: E402
import riffle.transformers  # noqa: E402
import tiny_models  # noqa: E402
from transformers import ContinuousBatchingConfig, GenerationConfig  # noqa: E402

TOLERANCE = 1e-4
LENGTHS = (26, 11)  # longer than windows (8) and chunks (5)


def prompts():
    generator = torch.Generator().manual_seed(5)
    return [[1, *torch.randint(3, 97, (n - 1,), generator=generator).tolist()] for n in LENGTHS]


def batch(side):
    """Token ids and mask [2, 26], the shorter prompt padded on the given side."""
    rows = prompts()
    ids = torch.zeros(len(rows), max(LENGTHS), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(max(LENGTHS) - len(row), None)
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return ids, mask


def one(model):
    return model(input_ids=torch.tensor(prompts()[:1])).logits


def padded(side):
    def run(model):
        ids, mask = batch(side)
        return model(input_ids=ids, attention_mask=mask).logits[mask.bool()]

    return run


def cached(model):
    """Left padding; the prompt in chunks, the last tokens one by one."""
    ids, mask = batch("left")
    cache, logits, seen = None, [], 0
    for chunk in ids.split([13, 6, 1, 1, 5], 1):
        seen += chunk.shape[1]
        out = model(input_ids=chunk, attention_mask=mask[:, :seen], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, 1)[mask.bool()]


def generate(model):
    ids, mask = batch("left")
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return torch.stack(out.logits, 1)


def generate_batch(model):
    generation = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=32, max_requests_per_batch=4, page_size=8, max_batch_tokens=16)
    rows = prompts()
    outputs = model.generate_batch(
        rows, generation_config=generation, continuous_batching_config=batching, progress_bar=False
    )
    outputs = sorted(outputs.values(), key=lambda output: int(output.request_id.split("_")[-1]))
    # Errors are texts there.
    for output in outputs:
        if output.error is not None:
            raise (ValueError if output.error.startswith("riffle attention") else RuntimeError)(output.error)
    assert len(outputs) == len(rows), "requests are missing from the results"
    return torch.tensor([output.generated_tokens for output in outputs])


SCENARIOS = dict(one=one, left=padded("left"), right=padded("right"), cached=cached, generate=generate, batch=generate_batch)


def attempt(scenario, model):
    """The result of a scenario, or the error that it ended with."""
    if isinstance(model, Exception):  # it could not be made
        return model
    try:
        with torch.no_grad():
            result = SCENARIOS[scenario](model)
    except Exception as error:  # whatever the model raises is its outcome
        return error
    return result


def is_ours(error):
    return type(error) is ValueError and str(error).startswith("riffle attention")


def outcome(expected, actual):
    if isinstance(expected, Exception) or not bool(expected.isfinite().all()):
        return f"eager fails: {expected!r}"[:150]
    if isinstance(actual, Exception):
        return f"refused: {actual}" if is_ours(actual) else f"raises {type(actual).__name__}: {actual}"
    if expected.dtype == torch.int64:
        return "equal" if expected.tolist() == actual.tolist() else f"other tokens: {expected.tolist()} {actual.tolist()}"
    error = float((expected - actual).abs().max() / expected.abs().max().clamp(min=1))
    return "equal" if error <= TOLERANCE else f"off by {error:.2g}"


def models(model_type):
    eager = tiny_models.build(model_type, "eager")
    try:
        return eager, tiny_models.build(model_type, "riffle")
    except Exception as error:
        return eager, error


def compare(model_type):
    """The outcome of each scenario, and how often riffle's attention was called."""
    eager, model = models(model_type)
    calls, attend = collections.Counter(), riffle.paged_attention
    outcomes = {}

    def counted(*args, **named):
        calls[model_type] += 1
        return attend(*args, **named)

    for scenario in SCENARIOS:
        expected = attempt(scenario, eager)
        riffle.paged_attention = counted
        try:
            actual = attempt(scenario, model)
        finally:
            riffle.paged_attention = attend
        outcomes[scenario] = outcome(expected, actual)
    return outcomes, calls[model_type]


# What runs without RIFFLE_TEST_ALL_MODELS: windows, chunks, sinks, latent attention, indexers, recurrent layers, refusals.
FAST = (
    "bart bert bloom deepseek_v3 deepseek_v32 deepseek_v4 doge falcon gemma3_text git gpt_oss granite_swa inkling_text "
    "llama4_text mistral moshi opt phimoe qwen3_next recurrent_gemma"
)

# Reason, scenarios ("" for all), types: a part of the text of riffle's ValueError.
REFUSED = [
    ("has no effect", "",
     "big_bird bloom codegen falcon git gpt_neo gpt_neox_japanese gptj megatron-bert mpt mvp rembert roformer trocr xglm"),
    ("has no effect", "batch", "cpmant openai-gpt prophetnet reformer xlnet"),
    ("it passes sinks", "", "inkling2_text"),
    ("its mask has the window None, its paged cache 8", "batch", "moshi"),
]  # fmt: skip

# The same of Transformers' own errors with eager attention; some models have no cache, or one that continuous batching lacks.
EAGER_FAILS = [
    ("Invalid layer type", "batch",
     "axk2 bailing_hybrid bamba deepseek_v32 deepseek_v4 falcon_h1 falcon_mamba glm_moe_dsa granitemoehybrid hy_v4 "
     "inkling2_text inkling_text jamba kimi_linear lfm2_moe lfm3 llama4 llama4_text mamba mamba2 minimax nemotron_h "
     "olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma zamba zaya"),
    ("index_copy_", "batch",
     "axk1 deepseek_v2 deepseek_v3 glm4_moe_lite gpt_bigcode jetmoe longcat_flash mimo_v2_flash minicpm3 whisper youtu"),
    ("`paged|eager` was called without", "batch", "nemotron stablelm"),
    ("AmbiguousGlobalPerLayerAttributeError", "batch", "gemma4 gemma4_text gemma4_unified gemma4_unified_text"),
    ("num_key_value_heads or num_att", "batch", "rwkv xlstm"),
    ("PagedAttentionCache", "batch", "xlm"),
    ("at non-singleton dimension", "batch", "doge git"),
    ("at non-singleton dimension", "cached", "cpmant"),
    ("AttributeError", "cached", "falcon_mamba mamba mamba2 openai-gpt recurrent_gemma reformer rwkv xlm xlnet xlstm"),
    ("use_cache", "cached", "prophetnet"),
]  # fmt: skip

# No tiny model of it that runs with eager attention.
NOT_BUILT = [
    ("its parts need more libraries; gemma3n_text is here", "gemma3n"),
    ("AutoModelForCausalLM does not build it from the configuration of the whole", "musicgen musicgen_melody"),
    ("its configuration has no number of layers, which its cache asks for", "blt"),
    ("its forward looks up hybrid layers that its configuration does not have (KeyError)", "zamba2"),
    ("its configuration checks sizes of each layer against each other, which SMALL does not fulfil",
     "dots3_note dots3_note_text gemma4_assistant gemma4_unified_assistant qwen4_exp qwen4_exp_text"),
]  # fmt: skip

# Models without attention, or whose attention is their own and needs no mask: equal because nothing is changed.
WITHOUT_RIFFLE = "cpmant falcon_mamba mamba mamba2 openai-gpt prophetnet reformer rwkv xlm xlnet xlstm"
# Types that riffle computes, equal to eager attention.
COMPARED = 149


def listed(table):
    """{(type, scenario): reason} of a table."""
    return {
        (model_type, scenario): reason
        for reason, scenarios, types in table
        for model_type in types.split()
        for scenario in (scenarios.split() if scenarios else SCENARIOS)
    }


REFUSALS, FAILURES = listed(REFUSED), listed(EAGER_FAILS)
LEFT_OUT = {model_type: reason for reason, types in NOT_BUILT for model_type in types.split()}


@pytest.fixture(scope="module", autouse=True)
def registered():
    """With one thread: the models are so small that threads would only wait for each other."""
    threads, ours = torch.get_num_threads(), riffle.info()["threads"]
    torch.set_num_threads(1)
    riffle.transformers.register()
    transformers.utils.logging.set_verbosity_error()
    gc.freeze()  # continuous batching collects garbage several times a run; what the imports made is none
    yield
    gc.unfreeze()
    riffle.torch.use_torch_threads(False)
    riffle.set_num_threads(ours)
    torch.set_num_threads(threads)


def chosen():
    everything = tiny_models.types() if os.environ.get("RIFFLE_TEST_ALL_MODELS") else FAST.split()
    return [model_type for model_type in everything if model_type not in LEFT_OUT]


compared = set()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", chosen())
def test_equal_or_refused(model_type):
    outcomes, calls = compare(model_type)
    for scenario, actual in outcomes.items():
        kind, reason = "equal", ""
        if (model_type, scenario) in FAILURES:
            kind, reason = "eager fails", FAILURES[model_type, scenario]
        elif (model_type, scenario) in REFUSALS:
            kind, reason = "refused", REFUSALS[model_type, scenario]
        assert actual.startswith(kind) and reason in actual, f"{scenario}: {actual}, not {kind} {reason}"
    if "equal" in outcomes.values():
        assert (calls == 0) == (model_type in WITHOUT_RIFFLE.split()), f"{calls} calls of riffle"
        if calls:
            compared.add(model_type)


def test_lists_are_of_types_that_exist():
    names = {model_type for model_type, _ in (*REFUSALS, *FAILURES)} | {*LEFT_OUT, *WITHOUT_RIFFLE.split(), *FAST.split()}
    assert names <= set(tiny_models.types()), names - set(tiny_models.types())
    assert not set(FAST.split()) & set(LEFT_OUT)


@pytest.mark.skipif(not os.environ.get("RIFFLE_TEST_ALL_MODELS"), reason="set RIFFLE_TEST_ALL_MODELS=1 for all types")
def test_most_types_are_compared():
    """After all of test_equal_or_refused: types that riffle computed, equal to eager attention in one scenario or more."""
    assert len(compared) >= COMPARED, sorted(compared)

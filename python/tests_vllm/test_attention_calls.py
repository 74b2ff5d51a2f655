"""A layer's calls of Riffle's backend against those of vLLM's own on the same inputs."""

import gc
import weakref

import pytest
import torch
from attention_case import Case
from riffle.vllm import _attention_backend
from riffle.vllm._attention_backend import RiffleAttentionBackend, RiffleAttentionImpl
from riffle.vllm._attention_cache import CacheFormat
from vllm.v1.attention.backend import AttentionType

pytestmark = pytest.mark.quick

# Chunks of prompts, decoding sequences, drafts of several queries; lengths around pages and blocks of 64 keys.
MIXED = dict(q_lens=[40, 1, 5, 1, 64], kv_lens=[40, 90, 129, 1, 200])
SLOPES = [0.5, 0.25, 0.0625, 0.01]
SINKS = torch.tensor([1.0, -2.0, 0.5, 3.0])

FEATURES = {
    "plain": {},
    "window": dict(window=16),
    "window of one": dict(window=1),
    "cap": dict(cap=3.0),
    "sinks": dict(sinks=SINKS),
    "sinks and window": dict(sinks=SINKS, window=20),
    "alibi": dict(alibi=SLOPES),
    "alibi and cap": dict(alibi=SLOPES, cap=5.0),
    "not causal": dict(causal=False),
    "not causal, window": dict(causal=False, window=16),
    "causal by sequence": dict(causal=[0, 1, 1, 0, 0]),
    "causal by sequence, window": dict(causal=[0, 1, 1, 0, 0], window=16),
}


def close(ours, theirs, dtype, exact=1.0):
    """In float32 up to its rounding; with bfloat16, which rounds probabilities and results, up to two of its units."""
    tolerance = dict(rtol=1e-5, atol=1e-5) if dtype == torch.float32 else dict(rtol=2**-7, atol=2**-7 if dtype == torch.bfloat16 else 2**-9)
    torch.testing.assert_close(ours.float(), theirs.float(), **{name: value * exact for name, value in tolerance.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", FEATURES)
def test_features(name, dtype):
    case = Case(**MIXED, dtype=dtype, **FEATURES[name])
    close(case.by_riffle(), case.by_vllm(), dtype)
    close(case.by_riffle(), case.by_arithmetic(), dtype)


@pytest.mark.parametrize("block_size", [16, 32, 64, 96, 128, 512])
def test_block_sizes(block_size):
    """The same bits, whatever the size of pages."""
    case = Case(**MIXED, block_size=block_size)
    close(case.by_riffle(), case.by_vllm(), torch.float32)
    assert torch.equal(case.by_riffle(), Case(**MIXED, block_size=64).by_riffle()) or block_size == 64


@pytest.mark.parametrize("head_size", [32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512])
def test_head_sizes_of_vllm(head_size):
    case = Case(**MIXED, head_size=head_size)
    close(case.by_riffle(), case.by_vllm(), torch.float32)


@pytest.mark.parametrize("head_size", [8, 24, 40, 72, 104, 320, 576, 1024])
def test_other_head_sizes(head_size):
    assert RiffleAttentionBackend.supports_head_size(head_size)
    case = Case(**MIXED, head_size=head_size)
    close(case.by_riffle(), case.by_arithmetic(), torch.float32)


@pytest.mark.parametrize("heads", [(4, 4), (8, 1), (12, 4), (14, 2)], ids=str)
def test_heads(heads):
    case = Case(**MIXED, q_heads=heads[0], kv_heads=heads[1], window=50)
    close(case.by_riffle(), case.by_vllm(), torch.float32)


def test_rows_without_queries_and_padding():
    case = Case(q_lens=[0, 3, 0, 1], kv_lens=[33, 40, 1, 7], padding=5)
    close(case.by_riffle(), case.by_arithmetic(), torch.float32)


def test_cross_attention_has_more_queries_than_keys():
    case = Case(q_lens=[40, 3], kv_lens=[7, 90], causal=False, attn_type=AttentionType.ENCODER_DECODER)
    close(case.by_riffle(), case.by_vllm(), torch.float32)


@pytest.mark.parametrize("kind", [AttentionType.ENCODER, AttentionType.ENCODER_ONLY])
@pytest.mark.parametrize("options", [{}, dict(window=9), dict(cap=2.0), dict(alibi=SLOPES), dict(causal=True)], ids=str)
def test_encoders(kind, options):
    lens = [40, 1, 5, 130, 64]
    case = Case(q_lens=lens, kv_lens=lens, attn_type=AttentionType.ENCODER_ONLY, **{"causal": False, **options})
    close(case.by_riffle(), case.by_arithmetic(), torch.float32)


EIGHT_BITS = {"fp8": torch.float8_e4m3fn, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


@pytest.mark.parametrize("options", [{}, dict(window=20), dict(sinks=SINKS), dict(causal=False)], ids=["plain", "window", "sinks", "not causal"])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.0625, 0.03125)], ids=str)
@pytest.mark.parametrize("kind", EIGHT_BITS)
def test_caches_of_8_bit_floats(kind, scales, options):
    """Keys and values that such a cache holds exactly, because vLLM's own kernels truncate all others."""
    case = Case(**MIXED, dtype=torch.bfloat16, kv_cache_dtype=kind, k_scale=scales[0], v_scale=scales[1], **options)
    case.keys, case.values = ([x.to(EIGHT_BITS[kind]).to(x.dtype) * scale for x in side] for side, scale in zip((case.keys, case.values), scales))
    case.q = case.q / scales[0]
    close(case.by_riffle(), case.by_vllm(), torch.bfloat16)
    close(case.by_riffle(), case.by_arithmetic(), torch.bfloat16)


@pytest.mark.parametrize("kind", EIGHT_BITS)
def test_8_bit_floats_are_rounded_to_the_nearest(kind):
    """Rounding loses less than truncation."""
    case = Case(**MIXED, kv_cache_dtype=kind, dtype=torch.bfloat16)
    ours, theirs = ((out.double() - case.by_arithmetic()).square().mean() for out in (case.by_riffle(), case.by_vllm()))
    assert ours < 0.6 * theirs


@pytest.mark.parametrize("kind, error", [("int8_per_token_head", 0.02), ("fp8_per_token_head", 0.05), ("float16", 2e-3), ("bfloat16", 0.01)])
def test_caches_that_vllm_has_not_on_cpus(kind, error):
    case = Case(**MIXED, kv_cache_dtype=kind)
    gap = (case.by_riffle() - case.by_arithmetic()).abs()
    assert 1e-4 < gap.max() < 4 * error
    assert gap.mean() < error / 4


def test_int8_rows_have_scales_of_their_own():
    """Rows of very different sizes lose nothing to each other, which one scale for all could not do."""
    case = Case(**MIXED, kv_cache_dtype="int8_per_token_head")
    for b, values in enumerate(case.values):
        values *= 1000.0 ** ((torch.arange(values.shape[0]) % 2)[:, None, None] - 1) if b % 2 else 1
    gap = (case.by_riffle() - case.by_arithmetic()).abs()
    assert gap.max() < 0.08


def test_strided_queries_keys_and_values():
    """As a projection to all three leaves them."""
    case = Case(**MIXED)
    fused = torch.cat([case.q, torch.zeros(case.q.shape[0], 3, case.head_size)], 1)
    expected = case.by_riffle()
    case.q = fused[:, :4]
    case.keys = [torch.cat([x, x], 1)[:, : case.kv_heads] for x in case.keys]
    assert torch.equal(case.by_riffle(), expected)


def test_layers_left_to_vllm_are_written_and_read_by_vllm(monkeypatch, caplog):
    monkeypatch.setattr(_attention_backend, "_reason", lambda *args: "a test")
    _attention_backend._warned.clear()
    case = Case(**MIXED)
    with caplog.at_level("WARNING", logger="vllm.riffle"):
        ours = case.by_vllm(RiffleAttentionImpl), case.by_vllm(RiffleAttentionImpl)
    assert torch.equal(ours[0], case.by_vllm()) and torch.equal(*ours)
    assert [record.getMessage() for record in caplog.records] == ["riffle: attention of a layer is left to vLLM: a test"]


@pytest.mark.parametrize("head_size, kind, reason", [
    (20, "auto", "head_size = 20"), (1032, "auto", "head_size = 1032"), (64, "int4_per_token_head", "int4_per_token_head"), (64, "auto", None),
])  # fmt: skip
def test_reasons(head_size, kind, reason):
    said = _attention_backend._reason(head_size, kind)
    assert said is None if reason is None else reason in said


def test_a_cache_is_freed_when_vllm_drops_it():
    cache = torch.zeros(3, 2, 32, 128)
    form = CacheFormat("auto", 64)
    pages = form.pages(cache)
    assert form.pages(cache) is pages
    assert pages.keys.data_ptr() == cache.data_ptr()
    dead = weakref.ref(cache)
    storage = weakref.ref(cache.untyped_storage())
    del cache, pages
    gc.collect()
    assert dead() is None and form._pages is None
    assert storage() is None
    other = torch.ones(3, 2, 32, 128)
    assert form.pages(other).keys.data_ptr() == other.data_ptr()


@pytest.mark.parametrize("kind", ["auto", "fp8", "int8_per_token_head"])
def test_views_cover_a_cache_without_overlap(kind):
    """Padded pages, too: a page may be followed by bytes that are not its own."""
    case = Case(**MIXED, kv_cache_dtype=kind)
    whole = case.cache()
    padded = torch.empty(whole.shape[0], whole[0].numel() + 64, dtype=whole.dtype)[:, : whole[0].numel()].unflatten(1, whole.shape[1:])
    padded.view(torch.uint8).zero_()
    pages = CacheFormat(kind, case.head_size).pages(padded)
    views = [view for view in (pages.keys, pages.values, pages.key_scales, pages.value_scales) if view is not None]
    for view in views:
        view.copy_(torch.ones(view.element_size(), dtype=torch.uint8).view(view.dtype))
    assert (padded.view(torch.uint8) == 1).all()
    assert sum(view.numel() * view.element_size() for view in views) == padded.numel() * padded.element_size()

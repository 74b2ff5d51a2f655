"""The masks of riffle.transformers: any mask is computed exactly, whether it hides keys or adds to the logits; anything that is not a mask is refused."""

import types

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="Transformers 5 is not installed")

import riffle.transformers  # noqa: E402
from riffle._transformers_masks import Mask, keys_seen, structure_of  # noqa: E402
from transformers import masking_utils  # noqa: E402

BATCH, HEADS, KV_HEADS, DIM = 2, 4, 2, 32


@pytest.fixture(autouse=True, scope="module")
def registered():
    riffle.transformers.register()
    yield
    riffle.torch.use_torch_threads(False)


def layer(**attributes):
    return types.SimpleNamespace(config=types.SimpleNamespace(model_type="made_up"), training=False, **attributes)


def tensors(q_len, kv_len, batch=BATCH, seed=1, key_dim=DIM, value_dim=DIM):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, HEADS, q_len, key_dim), (batch, KV_HEADS, kv_len, key_dim), (batch, KV_HEADS, kv_len, value_dim)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def reference(q, k, v, visible, scale, bias=0.0):
    """In double; the mean of all values for queries that see nothing, as in eager attention."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
    visible = visible.expand(q.shape[0], HEADS, q.shape[2], k.shape[2])
    weights = (scale * q @ k.transpose(2, 3) + bias).masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(1 / k.shape[2])
    return (weights @ v).transpose(1, 2)


def check(mask, visible, q_len, kv_len, **dims):
    q, k, v = tensors(q_len, kv_len, batch=visible.shape[0], **dims)
    out, weights = riffle.transformers.attention(layer(), q, k, v, mask, scaling=0.2)
    assert weights is None
    torch.testing.assert_close(out.double(), reference(q, k, v, visible, 0.2), rtol=1e-5, atol=1e-5)


def named_masks():
    """bool [2, 1, queries, keys], each of one kind."""
    generator = torch.Generator().manual_seed(2)
    i, j = torch.arange(12)[:, None], torch.arange(12)
    causal = (j <= i).expand(BATCH, 1, 12, 12)
    real = torch.tensor([[0] * 5 + [1] * 7, [1] * 12]).bool()[:, None, None]
    yield "causal", causal
    yield "window", causal & (j > i - 4)
    yield "window of one", causal & (j > i - 1)
    yield "chunks", causal & (i // 5 == j // 5)
    yield "left padding", causal & real
    yield "right padding", causal & real.flip(-1)
    yield "hole", causal & torch.tensor([1, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1]).bool()
    yield "window and left padding", causal & (j > i - 4) & real
    yield "window and right padding", causal & (j > i - 4) & real.flip(-1)
    yield "packed", causal & ((i < 4) == (j < 4))
    yield "image block", causal | ((i >= 3) & (i < 7) & (j >= 3) & (j < 7))
    yield "prefix", causal | (j < 5)
    yield "all", torch.ones(BATCH, 1, 12, 12, dtype=torch.bool)
    yield "all but padding", real.expand(BATCH, 1, 12, 12)
    yield "fewer keys that all see", torch.tensor([1, 1, 0]).bool().expand(BATCH, 1, 12, 3)
    yield "one key", torch.ones(BATCH, 1, 12, 1, dtype=torch.bool)
    yield "none", torch.zeros(BATCH, 1, 12, 12, dtype=torch.bool)
    yield "anti-causal", ~causal
    yield "both sides", ((i - j).abs() < 3).expand(BATCH, 1, 12, 12)
    yield "window that grows", causal & (j >= i // 2)
    yield "one query", causal[:, :, 7:8]
    yield "last queries", (causal & real)[:, :, 9:]
    yield "fewer keys", causal[:, :, :, :5]
    for density in (0.1, 0.5, 0.9):
        yield f"random {density}", torch.rand(BATCH, 1, 12, 12, generator=generator) < density
        yield f"random {density} for each head", torch.rand(BATCH, HEADS, 12, 12, generator=generator) < density


@pytest.mark.parametrize("visible", [pytest.param(mask, id=name) for name, mask in named_masks()])
@pytest.mark.parametrize("form", ["bool", "lowest", "-inf"])
def test_masks_that_a_model_made_itself(visible, form):
    lowest = torch.finfo(torch.float32).min
    mask = visible if form == "bool" else torch.zeros(visible.shape).masked_fill(~visible, lowest if form == "lowest" else -torch.inf)
    check(mask, visible, *visible.shape[2:])


@pytest.mark.parametrize("seed", range(40))
def test_runs_of_any_mask(seed):
    """Masks whose queries mostly follow from each other, with jumps: page tables give back the same sets."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n):
        return int(torch.randint(n, (1,), generator=generator))

    batch, q_len, kv_len, row = 1 + draw(3), 1 + draw(9), 2 + draw(11), 40
    visible = torch.zeros(batch, q_len, kv_len, dtype=torch.bool)
    for b in range(batch):
        low, high = 0, draw(kv_len)
        for i in range(q_len):
            visible[b, i, low:high] = True
            if draw(4) == 0:
                visible[b, i, draw(kv_len)] ^= True
            high = min(high + (draw(5) > 0), kv_len)
            low = min(low + draw(2), high) if seed % 2 else low
    keys = keys_seen(visible, row)
    if keys.mask is not None:  # too many sets of keys for page tables
        assert torch.equal(keys.mask.view(batch, q_len, kv_len), visible) and not keys.causal and keys.window is None
        assert int(keys.kv_lens.min()) == kv_len
        return
    offsets = keys.cu_q_lens.tolist() if keys.cu_q_lens is not None else list(range(batch * q_len + 1))
    assert offsets[-1] == batch * q_len and len(offsets) == len(keys.kv_lens) + 1
    actual = torch.zeros(batch * q_len, batch * row, dtype=torch.bool)
    for s, n in enumerate(keys.kv_lens.tolist()):
        for query in range(offsets[s], offsets[s + 1]):
            end = n - (offsets[s + 1] - query - 1) if keys.causal else n
            begin = 0 if keys.window is None else max(end - keys.window, 0)
            actual[query, keys.page_table[s, begin : max(end, 0)].long()] = True
    expected = torch.zeros_like(actual).view(batch, q_len, batch, row)
    for b in range(batch):
        expected[b, :, b, :kv_len] = visible[b]
    assert torch.equal(actual.view(expected.shape), expected)


def test_long_causal_masks_are_few_sequences():
    causal = torch.ones(2, 300, 300).tril().bool()
    assert len(keys_seen(causal, 300).kv_lens) == 2
    windowed = keys_seen(causal & ~causal.tril(-20), 300)
    assert len(windowed.kv_lens) == 2 and windowed.window == 20


FUNCTIONS = {
    "causal": masking_utils.causal_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(4),
    "chunk": masking_utils.chunked_causal_mask_function(5, torch.tensor([3, 0])),
    "bidirectional": masking_utils.bidirectional_mask_function,
    "both sides": masking_utils.sliding_window_bidirectional_mask_function(3),
    "block": masking_utils.or_masks(
        masking_utils.causal_mask_function,
        masking_utils.blockwise_overlay(torch.tensor([[-1] * 4 + [0] * 4 + [-1] * 12] * 2)),
    ),
    "wrapped": lambda *indices: masking_utils.causal_mask_function(*indices) & (indices[3] != 2),
}
KNOWN = {"causal", "window", "chunk", "bidirectional"}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("padding", ["none", "left", "right", "short"])
@pytest.mark.parametrize("q_len,kv_len,q_offset,kv_offset", [(12, 12, 0, 0), (1, 9, 8, 0), (4, 16, 6, 0), (3, 7, 9, 5), (5, 14, 0, 0)])
def test_masks_that_transformers_asks_for(name, padding, q_len, kv_len, q_offset, kv_offset):
    """Also of static caches, which hold more keys than were seen, and sliding ones, whose first key is a later one."""
    function = FUNCTIONS[name]
    assert (structure_of(function) is not None) == (name in KNOWN)
    mask2d = {
        "none": None,
        "left": torch.tensor([[0] * 3 + [1] * 17, [1] * 20]).bool(),
        "right": torch.tensor([[1] * 6 + [0] * 14, [1] * 20]).bool(),
        "short": torch.ones(2, q_offset + q_len).bool(),
    }[padding]
    request = dict(batch_size=2, q_length=q_len, kv_length=kv_len, q_offset=q_offset, kv_offset=kv_offset,
                   mask_function=function, attention_mask=mask2d)  # fmt: skip
    visible = masking_utils.sdpa_mask(**request, allow_is_causal_skip=False)
    mask = riffle.transformers.attention_mask(**request)
    assert isinstance(mask, Mask) and mask.shape == (2, 1, q_len, kv_len)
    check(mask, visible, q_len, kv_len)
    # What a layer does with it is done with eager attention's mask.
    eager = masking_utils.eager_mask(**request)
    assert torch.equal(mask[:, :, :, :2] + 1, eager[:, :, :, :2] + 1) and torch.equal(torch.zeros(1) + mask, eager)
    assert type(mask[..., :3]) is torch.Tensor
    check(mask[:, :, -1:] + 0, visible[:, :, -1:], 1, kv_len)


@pytest.mark.parametrize("key_dim,value_dim", [(32, 32), (16, 16), (8, 1024), (48, 32), (24, 40), (36, 20), (576, 512)])
def test_head_dims(key_dim, value_dim):
    visible = torch.ones(BATCH, 1, 6, 6).tril().bool()
    check(visible, visible, 6, 6, key_dim=key_dim, value_dim=value_dim)


def test_long_head_dims_are_refused():
    mask = torch.ones(1, 1, 3, 3).tril().bool()
    for dims in (dict(key_dim=1032), dict(value_dim=1025)):
        with pytest.raises(ValueError, match="made_up .*the limit is 1024"):
            riffle.transformers.attention(layer(), *tensors(3, 3, **dims), mask)


@pytest.mark.parametrize("key_dim,value_dim", [(32, 32), (192, 128), (8, 16)])
def test_caches_are_read_in_place(key_dim, value_dim, monkeypatch):
    """The first tokens of longer buffers, as a growing cache has them: neither keys nor values are copied."""
    q, k, v = tensors(1, 40, key_dim=key_dim, value_dim=value_dim)
    k, v = k[:, :, :9], v[:, :, :9]
    read, attend = [], riffle.paged_attention
    monkeypatch.setattr(riffle, "paged_attention", lambda *args, **options: read.append(args[1:3]) or attend(*args, **options))
    out, _ = riffle.transformers.attention(layer(), q, k, v, None)
    assert [[x.data_ptr() for x in pools] for pools in read] == [[k.data_ptr(), v.data_ptr()]]
    expected = reference(q, k, v, torch.ones(1, 1, 1, 9, dtype=torch.bool), key_dim**-0.5)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_no_mask():
    """All keys for one query and for layers that are not causal; a causal layer has to say what its queries see."""
    for q_len, attributes in ((1, {}), (5, dict(is_causal=False)), (23, dict(is_causal=False))):
        q, k, v = tensors(q_len, 9)
        out, _ = riffle.transformers.attention(layer(**attributes), q, k, v, None)
        expected = reference(q, k, v, torch.ones(1, 1, q_len, 9, dtype=torch.bool), DIM**-0.5)
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="made_up .*comes without a mask"):
        riffle.transformers.attention(layer(), *tensors(5, 9), None)
    with pytest.raises(ValueError, match="sliding window of 4 comes without a mask"):
        riffle.transformers.attention(layer(), *tensors(1, 9), None, sliding_window=4)


@pytest.mark.parametrize("name", ["head_mask", "output_attentions", "never_heard_of"])
def test_unknown_keywords(name):
    mask = torch.ones(1, 1, 3, 3).tril().bool()
    q, k, v = tensors(3, 3)
    for nothing in (None, False):
        riffle.transformers.attention(layer(), q, k, v, mask, **{name: nothing})
    for argument in (True, torch.zeros(1, HEADS, 3, 3)):
        with pytest.raises(ValueError, match=f"made_up .*it passes {name}"):
            riffle.transformers.attention(layer(), q, k, v, mask, **{name: argument})


@pytest.mark.parametrize(
    "mask,reason",
    [
        (torch.ones(1, 1, 3, 3, dtype=torch.int64), "not of torch.int64"),
        (torch.ones(2, 3, dtype=torch.bool), "its mask is of shape"),
        (torch.ones(1, 1, 3, 4, dtype=torch.bool), "its mask is of shape"),
        (torch.ones(3, 1, 3, 3, dtype=torch.bool), "its mask is of shape"),
        ({"full_attention": None}, "its mask is of type dict"),
    ],
)
def test_refused_masks(mask, reason):
    with pytest.raises(ValueError, match=f"made_up .*{reason}"):
        riffle.transformers.attention(layer(), *tensors(3, 3), mask)


@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("q_len", [1, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_masks_that_add(heads, rows, q_len, dtype):
    """Position biases, beside lowest numbers that hide, as eager attention adds them."""
    q, k, v = tensors(q_len, 9)
    bias = torch.randn(rows, heads, q_len, 9, generator=torch.Generator().manual_seed(1)).to(dtype)
    hidden = torch.ones(q_len, 9).tril(9 - q_len - 1) == 0
    bias = bias.masked_fill(hidden, torch.finfo(dtype).min if dtype == torch.float32 else -torch.inf)
    visible = torch.ones(2, 1, q_len, 9, dtype=torch.bool)
    out, _ = riffle.transformers.attention(layer(), q, k, v, bias, scaling=0.2)
    expected = reference(q, k, v, visible, 0.2, bias.double())
    blind = (bias == -torch.inf).all(-1).expand(2, HEADS, q_len).transpose(1, 2)  # eager attention makes NaNs of these
    assert (out[blind] == 0).all()
    torch.testing.assert_close(out.double()[~blind], expected[~blind], rtol=1e-5, atol=1e-5)


def test_position_bias():
    """The keyword of layers that add to their logits beside the mask."""
    q, k, v = tensors(7, 7)
    bias = torch.randn(1, HEADS, 7, 7, generator=torch.Generator().manual_seed(1))
    causal = torch.ones(2, 1, 7, 7).tril().bool()
    for mask in (causal, torch.zeros(2, 1, 7, 7).masked_fill(~causal, -torch.inf)):
        out, _ = riffle.transformers.attention(layer(), q, k, v, mask, scaling=0.2, position_bias=bias)
        torch.testing.assert_close(out.double(), reference(q, k, v, causal, 0.2, bias.double()), rtol=1e-5, atol=1e-5)
    out, _ = riffle.transformers.attention(layer(is_causal=False), q, k, v, None, scaling=0.2, position_bias=bias)
    torch.testing.assert_close(out.double(), reference(q, k, v, causal | True, 0.2, bias.double()), rtol=1e-5, atol=1e-5)
    for wrong in (True, bias[0], bias[:, :3], bias[..., :6]):
        with pytest.raises(ValueError, match="made_up .*its position_bias is"):
            riffle.transformers.attention(layer(), q, k, v, causal, position_bias=wrong)


ADDED_DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("q_len", [1, 9])
@pytest.mark.parametrize("dtype", ADDED_DTYPES, ids=str)
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.float16], ids=str)
def test_queries_that_see_nothing_in_masks_that_add(model_dtype, dtype, q_len):
    """The mean of the values whatever the dtype, though a logit and float16's lowest number have a sum of their own in float32."""
    q, k, v = (x.to(model_dtype) for x in tensors(q_len, 9))
    added = torch.randn(2, HEADS, q_len, 9, generator=torch.Generator().manual_seed(1)).to(dtype)
    visible = torch.ones(2, HEADS, q_len, 9).tril(9 - q_len).bool()
    visible[0, :2, 0] = False
    mask = added.masked_fill(~visible, torch.finfo(dtype).min)
    out, _ = riffle.transformers.attention(layer(), q, k, v, mask, scaling=0.2)
    tolerance = 1e-5 if model_dtype == torch.float32 else 2e-3
    torch.testing.assert_close(out.double(), reference(q, k, v, visible, 0.2, added.double()), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ADDED_DTYPES, ids=str)
def test_queries_that_see_nothing_beside_a_position_bias(dtype):
    """The lowest numbers of a mask hide keys, and so do those of the bias."""
    q, k, v = tensors(7, 7)
    bias = torch.randn(1, HEADS, 7, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    padding = torch.tensor([[0] * 3 + [1] * 4, [1] * 7])
    visible = torch.ones(7, 7).tril().bool() & padding[:, None, None].bool()
    described = riffle.transformers.attention_mask(2, 7, 7, attention_mask=padding.bool(), dtype=dtype)
    lowest = torch.finfo(dtype).min
    hides = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, lowest)
    all_shown = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    hiding_bias = bias.masked_fill(~visible, lowest)
    for mask, position_bias in ((described, bias), (visible, bias), (hides, bias), (hides + bias, bias), (all_shown, hiding_bias)):
        twice = 2 if mask.shape[1] == HEADS else 1  # the bias is in the mask too
        out, _ = riffle.transformers.attention(layer(), q, k, v, mask, scaling=0.2, position_bias=position_bias)
        expected = reference(q, k, v, visible, 0.2, twice * bias.double())
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_many_sets_of_keys():
    """A mask of bools that page tables would make a sequence of for each query, some of which see nothing."""
    q, k, v = tensors(40, 40)
    visible = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(1)) < 0.5
    visible[0, 0, 3] = False
    assert keys_seen(visible[:, 0], 40).mask is not None
    for mask in (visible, visible.expand(2, HEADS, 40, 40), torch.zeros(2, 1, 40, 40).masked_fill(~visible, torch.finfo().min)):
        out, _ = riffle.transformers.attention(layer(), q, k, v, mask, scaling=0.2)
        torch.testing.assert_close(out.double(), reference(q, k, v, visible, 0.2), rtol=1e-5, atol=1e-5)


def test_indices_beside_a_mask_that_adds():
    q, k, v = tensors(7, 7)
    indices = torch.stack([torch.randperm(7, generator=torch.Generator().manual_seed(i))[:3] for i in range(14)]).view(2, 7, 3)
    chosen = torch.zeros(2, 7, 7, dtype=torch.bool).scatter_(2, indices, True)[:, None]
    bias = torch.randn(2, 1, 7, 7, generator=torch.Generator().manual_seed(2))
    out, _ = riffle.transformers.attention(layer(), q, k, v, bias, scaling=0.2, indices=indices)
    torch.testing.assert_close(out.double(), reference(q, k, v, chosen, 0.2, bias.double()), rtol=1e-5, atol=1e-5)


def test_models_without_the_interface():
    """They are refused at the first forward, or when they are made if they look up their attention in a table."""
    config = transformers.BloomConfig(vocab_size=99, hidden_size=64, n_layer=1, n_head=4)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.config._attn_implementation = "riffle"
    with pytest.raises(ValueError, match="riffle attention has no effect on bloom"), torch.no_grad():
        model(input_ids=torch.arange(3, 9)[None])
    config = transformers.FalconConfig(vocab_size=99, hidden_size=64, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ValueError, match="riffle attention has no effect on falcon"):
        transformers.AutoModelForCausalLM.from_config(config, attn_implementation="riffle")


def test_indices():
    """The keys that an indexer chose, of which causality still hides some."""
    q, k, v = tensors(7, 7)
    indices = torch.stack([torch.randperm(7, generator=torch.Generator().manual_seed(i))[:3] for i in range(14)]).view(2, 7, 3)
    causal = torch.ones(2, 1, 7, 7).tril().bool()
    visible = causal & torch.zeros(2, 7, 7, dtype=torch.bool).scatter_(2, indices, True)[:, None]
    out, _ = riffle.transformers.attention(layer(), q, k, v, causal, scaling=0.2, indices=indices)
    torch.testing.assert_close(out.double(), reference(q, k, v, visible, 0.2), rtol=1e-5, atol=1e-5)
    for wrong in (indices - 4, indices + 4, indices[:, :6], indices[0]):
        with pytest.raises(ValueError, match="made_up .*indices of keys"):
            riffle.transformers.attention(layer(), q, k, v, causal, indices=wrong)


def test_packed_sequences():
    """Positions that begin anew are sequences of their own."""
    config = transformers.LlamaConfig(vocab_size=99, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                                      num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    inputs = dict(input_ids=torch.arange(3, 15)[None], position_ids=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]]))
    answers = []
    for name in ("eager", "riffle"):
        model.set_attn_implementation(name)
        with torch.no_grad():
            answers.append(model(**inputs, use_cache=False).logits)
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-4, atol=1e-4)


def test_compiled():
    """torch.compile around a model: the mask goes through graphs that are cut at riffle's calls."""
    config = transformers.LlamaConfig(vocab_size=99, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                                      num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    ids, mask = torch.arange(3, 15).view(2, 6), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        model.set_attn_implementation("riffle")
        actual = torch.compile(model, backend="eager")(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)

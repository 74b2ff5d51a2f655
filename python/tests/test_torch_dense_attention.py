"""riffle.torch.scaled_dot_product_attention against torch's own, in float64 and in the dtype given."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import riffle.torch  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention as torchs  # noqa: E402

ours = riffle.torch.scaled_dot_product_attention
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EPSILON = {torch.float32: 0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def exact(query, key, value, mask=None, causal=False, scale=None, gqa=False):
    """(results, sums of weight * |value|) in float64, from the definition."""
    q, k, v = (x.double() for x in (query, key, value))
    if gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    logits = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if causal:
        logits = logits.masked_fill(~torch.ones(logits.shape[-2:], dtype=torch.bool).tril(), -math.inf)
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask.double()
    weights = torch.softmax(logits, -1).nan_to_num(0.0) if logits.shape[-1] else logits
    return weights @ v, weights @ v.abs()


def check(out, query, key, value, **options):
    expected, magnitude = exact(query, key, value, **options)
    assert out.shape == expected.shape and out.dtype == query.dtype
    bound = 2e-5 * (1 + magnitude) + EPSILON[query.dtype] * expected.abs()
    if query.dtype == torch.bfloat16:  # weights are rounded too
        bound += 2.0**-8 * magnitude
    error = (out.double() - expected).abs()
    assert not out.isnan().any() and bool((error <= bound).all()), f"{(error / bound).max()} of the bound"


def strides(x):
    """The strides of the axes that have more than one element."""
    return [stride for size, stride in zip(x.shape, x.stride()) if size > 1]


class Sampler:
    """Random calls, by a seed."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        torch.manual_seed(seed)

    def pick(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def tensor(self, *shape, dtype):
        """A tensor of some layout: contiguous, tokens outside of heads, with gaps, with a strided last axis, or expanded."""
        kind = self.pick("plain", "plain", "token major", "gaps", "column", "expanded")
        rank = len(shape)
        if kind == "token major" and rank >= 3:
            return torch.randn(*shape[:-3], shape[-2], shape[-3], shape[-1]).to(dtype).transpose(-3, -2)
        if kind == "gaps":
            return torch.randn(*shape[:-2], shape[-2] * 2 + 1, shape[-1] + 5).to(dtype)[..., 1::2, 3 : 3 + shape[-1]]
        if kind == "column":
            return torch.randn(*shape[:-2], shape[-1], shape[-2]).to(dtype).transpose(-1, -2)
        if kind == "expanded" and rank > 2:
            return torch.randn(1, *shape[1:]).to(dtype).expand(shape)
        return torch.randn(shape).to(dtype)

    def mask(self, outer, queries, keys, dtype):
        kept = [n if self.rng.random() < 0.6 else 1 for n in (*outer, queries, keys)]
        shape = kept[self.rng.integers(len(kept) - 1) :]
        if self.rng.random() < 0.4:
            mask = torch.rand(shape) < self.pick(0.0, 0.1, 0.7, 1.0)
        else:
            mask = torch.randn(shape).masked_fill(torch.rand(shape) < self.pick(0.0, 0.5, 1.0), -math.inf)
            mask = mask.to(self.pick(dtype, torch.float32))
        return mask.transpose(-1, -2).contiguous().transpose(-1, -2) if self.rng.random() < 0.3 else mask

    def call(self):
        dtype = self.pick(*DTYPES.values())
        queries = self.pick(1, 1, 2, 5, 17, 70)
        keys = self.pick(0, 1, 3, 16, 64, 65, 200, 600)
        dim = self.pick(8, 32, 40, 64, 128, 20, 3)
        value_dim = self.pick(dim, dim, 16, 7)
        gqa = self.rng.random() < 0.3
        kv_heads = self.pick(1, 2, 3)
        heads = kv_heads * self.pick(1, 2, 4) if gqa else kv_heads
        batch = self.pick((), (1,), (2,), (5,), (2, 3)) if gqa or self.rng.random() < 0.8 else None
        q_outer, k_outer = ((), ()) if batch is None else ((*batch, heads), (*batch, kv_heads))
        if not gqa and batch and self.rng.random() < 0.2:
            k_outer = tuple(self.pick(1, n) for n in k_outer)
        query = self.tensor(*q_outer, queries, dim, dtype=dtype)
        key = self.tensor(*k_outer, keys, dim, dtype=dtype)
        value = self.tensor(*k_outer, keys, value_dim, dtype=dtype)
        options = {"gqa": gqa, "causal": self.rng.random() < 0.3, "scale": self.pick(None, None, 0.3)}
        if not options["causal"] and self.rng.random() < 0.6:
            options["mask"] = self.mask(q_outer, queries, keys, dtype)
        return (query, key, value), options


@pytest.mark.parametrize("seed", range(12))
def test_sampled_calls_are_torchs(seed):
    sampler = Sampler(seed)
    for _ in range(50):
        tensors, options = sampler.call()
        named = dict(attn_mask=options.get("mask"), is_causal=options["causal"], scale=options["scale"], enable_gqa=options["gqa"])
        out = ours(*tensors, **named)
        check(out, *tensors, **options)
        through_operator = torch.ops.riffle.scaled_dot_product_attention(
            *tensors, named["attn_mask"], 0.0, named["is_causal"], named["scale"], named["enable_gqa"])  # fmt: skip
        assert torch.equal(out, through_operator) and strides(out) == strides(through_operator)
        if options.get("mask") is None or options["mask"].dtype in (torch.bool, torch.float32, tensors[0].dtype):
            if tensors[1].shape[-2] and (options.get("mask") is None or options["mask"].dim() > 1):
                theirs = torchs(*tensors, **named)
                tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}[out.dtype]
                torch.testing.assert_close(out, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("queries, keys", [(1, 9), (9, 9), (9, 1), (70, 64), (64, 70), (600, 65), (3, 0)])
def test_causal_is_aligned_at_the_first_key(queries, keys):
    query, key = torch.randn(2, 4, queries, 32), torch.randn(2, 2, keys, 32)
    check(ours(query, key, key, is_causal=True, enable_gqa=True), query, key, key, causal=True, gqa=True)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_query_that_sees_nothing_gets_zeros(dtype):
    x = torch.randn(2, 3, 5, 32, dtype=dtype)
    hidden = torch.ones(5, 5, dtype=torch.bool)
    hidden[2] = False
    for mask in (hidden, torch.zeros(5, 5).masked_fill(~hidden, -math.inf)):
        out = ours(x, x, x, attn_mask=mask)
        assert (out[:, :, 2] == 0).all() and (out[:, :, [0, 1, 3, 4]] != 0).any()
        check(out, x, x, x, mask=mask)
    assert (ours(x, x[:, :, :0], x[:, :, :0]) == 0).all()


def test_a_query_has_the_same_bits_alone_and_in_a_batch():
    q, k, v = torch.randn(3, 4, 70, 64).bfloat16(), *torch.randn(2, 3, 2, 300, 64).bfloat16()
    mask = torch.rand(3, 1, 70, 300) < 0.5
    whole = ours(q, k, v, attn_mask=mask, enable_gqa=True)
    token_major = ours(q.transpose(1, 2).contiguous().transpose(1, 2), k, v, attn_mask=mask, enable_gqa=True)
    assert torch.equal(whole, token_major)
    for b in range(3):
        assert torch.equal(ours(q[b], k[b], v[b], attn_mask=mask[b], enable_gqa=True), whole[b])
        one = ours(q[b, :, 7:8], k[b], v[b], attn_mask=mask[b, :, 7:8], enable_gqa=True)
        assert torch.equal(one, whole[b, :, 7:8])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("token_major", [False, True])
@pytest.mark.parametrize("keys", [1, 2, 3, 6, 17, 2100])
def test_a_batch_has_the_bits_of_its_rows_whatever_the_masks_strides(keys, token_major, dtype):
    """Small masks may be copied so that one call serves the batch; those of 2100 keys are too large."""
    torch.manual_seed(keys)
    q, k, v = (torch.randn(3, 4, n, 80).to(DTYPES[dtype]) for n in (5, keys, keys))
    if token_major:
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    masks = [
        torch.rand(3, 1, 1, keys) < 0.7,
        torch.rand(3, 4, 1, 1) < 0.7,
        torch.rand(5, keys) < 0.7,
        torch.randn(1, 4, 5, keys),
        torch.randn(3, 1, 5, keys).masked_fill(torch.rand(3, 1, 5, keys) < 0.5, -math.inf),
        torch.randn(3, 4, 5, 2 * keys)[..., ::2],
        torch.randn(keys, 5, 4, 3).permute(3, 2, 1, 0),
        torch.randn(3, 4, 1, keys).expand(3, 4, 5, keys),
    ]
    for mask in masks:
        whole = ours(q, k, v, attn_mask=mask)
        check(whole, q, k, v, mask=mask)
        full = mask.expand(3, 4, 5, keys)
        for b in range(3):
            assert torch.equal(ours(q[b], k[b], v[b], attn_mask=full[b].clone()), whole[b]), mask.shape
            one = ours(q[b, 1:3, 2:3], k[b, 1:3], v[b, 1:3], attn_mask=full[b, 1:3, 2:3].clone())
            assert torch.equal(one, whole[b, 1:3, 2:3]), mask.shape


def test_results_of_many_bytes():
    """Results of 32 MiB and more ask for huge pages."""
    q, k = torch.randn(2, 4, 8200, 160), torch.randn(2, 4, 2, 160)
    out = ours(q, k, k)
    check(out[:, :, ::777], q[:, :, ::777], k, k)
    assert torch.equal(out[:, :, -1:], ours(q[:, :, -1:], k, k))


def test_results_are_laid_out_as_queries():
    x = torch.randn(2, 3, 5, 32)
    assert ours(x, x, x).is_contiguous()
    by_token = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert ours(by_token, x, x).stride() == by_token.stride() == torchs(by_token, x, x).stride()


def test_nothing_is_copied():
    row = torch.randn(1, 1, 1, 128)
    huge = row.expand(4, 8, 1 << 22, 128)  # 64 GB, were it copied
    mask = torch.zeros(1 << 22, dtype=torch.bool)
    mask[5] = True
    query = torch.randn(4, 8, 1, 128)
    out = ours(query, huge, huge, attn_mask=mask.expand(1, 1 << 22))
    torch.testing.assert_close(out, row.expand(4, 8, 1, 128))


def calls_of_torch_compile():
    x = torch.randn(2, 3, 5, 32)
    by_token = torch.randn(2, 7, 3, 32).transpose(1, 2)
    yield (x, x, x), {}
    yield (by_token, x, x), {"attn_mask": torch.rand(1, 1, 7, 5) < 0.5, "scale": 0.2}
    yield (x, x[:, :1], x[:, :1]), {"is_causal": True, "enable_gqa": True}
    yield (x[..., :20], x[..., :20], x), {}


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    def step(*tensors, **options):
        return ours(*tensors, **options) * 2

    for tensors, options in calls_of_torch_compile():
        compiled = torch.compile(step, fullgraph=True, dynamic=dynamic)
        expected = step(*tensors, **options)
        out = compiled(*tensors, **options)
        assert torch.equal(out, expected) and out.stride() == expected.stride()
        torch._dynamo.reset()


@pytest.mark.parametrize("number", range(4))
def test_opcheck(number):
    tensors, options = list(calls_of_torch_compile())[number]
    torch.library.opcheck(torch.ops.riffle.scaled_dot_product_attention.default, tensors, options)


def test_gradients_are_refused():
    x = torch.randn(1, 2, 3, 32, requires_grad=True)
    out = ours(x, x, x)
    with pytest.raises(NotImplementedError, match="derivative for riffle::scaled_dot_product_attention"):
        out.sum().backward()
    with torch.no_grad():
        assert torch.equal(ours(x, x, x), out)


def test_errors():
    x = torch.randn(2, 4, 5, 32)
    mask = torch.zeros(5, 5)
    cases = [
        (RuntimeError, "dropout_p = 0.5; riffle has no dropout", dict(dropout_p=0.5)),
        (RuntimeError, "attn_mask is given and is_causal is set", dict(attn_mask=mask, is_causal=True)),
        (RuntimeError, r"attn_mask has shape \(5, 4\); it must broadcast to \(2, 4, 5, 5\)", dict(attn_mask=mask[:, :4])),
        (RuntimeError, "attn_mask has shape", dict(attn_mask=torch.zeros(3, 1, 5, 5))),
        (RuntimeError, "attn_mask has shape", dict(attn_mask=torch.zeros(1, 2, 4, 5, 5))),
        (RuntimeError, "attn_mask has dtype torch.float64", dict(attn_mask=mask.double())),
        (RuntimeError, "attn_mask has dtype torch.int32", dict(attn_mask=mask.int())),
        (RuntimeError, "key has dtype torch.bfloat16 but query torch.float32", dict(key=x.bfloat16())),
        (RuntimeError, "query has dtype torch.float64; float32", dict(query=x.double(), key=x.double(), value=x.double())),
        (RuntimeError, "differ in head_dim of query and key", dict(query=x[..., :16])),
        (RuntimeError, "differ in the number of keys and values", dict(value=x[:, :, :4])),
        (RuntimeError, "cannot be broadcast to each other; is enable_gqa", dict(key=x[:, :2], value=x[:, :2])),
        (RuntimeError, "heads are no multiple", dict(key=x[:, :3], value=x[:, :3], enable_gqa=True)),
        (RuntimeError, r"query has shape \(32,\); it must be", dict(query=x[0, 0, 0])),
        (RuntimeError, "a head_dim of at most 1024", dict(query=torch.zeros(1, 1, 1032), key=torch.zeros(1, 1, 1032))),
        (RuntimeError, "scale = nan is not finite", dict(scale=math.nan)),
        (RuntimeError, "scale must be a number or None, not 'x'", dict(scale="x")),
        (RuntimeError, "is_causal must be a bool, not 1", dict(is_causal=1)),
        (TypeError, "argument 'key' must be Tensor, not numpy.ndarray", dict(key=x.numpy())),
        (TypeError, "argument 'attn_mask' must be Tensor, not list", dict(attn_mask=[1])),
    ]
    for error, text, change in cases:
        with pytest.raises(error, match=text):
            ours(**dict(query=x, key=x, value=x) | change)
    meta = x.to("meta")
    assert ours(meta, meta, meta).shape == x.shape

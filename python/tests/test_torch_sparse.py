"""DeepGEMM's and FlashMLA's calls of riffle.torch against their formulas in float64."""

import math

import pytest

torch = pytest.importorskip("torch")

import riffle.torch as rt  # noqa: E402

F8 = torch.float8_e4m3fn


def scores(q, keys, weights):
    dots = torch.einsum("thd,nd->thn", q.double(), keys.double()).clamp(min=0)
    return torch.einsum("th,thn->tn", weights.double(), dots)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


def test_fp8_mqa_logits():
    q, keys = torch.randn(6, 8, 64).to(F8), torch.randn(90, 64).to(F8)
    scales, weights = torch.rand(90) + 0.1, torch.randn(6, 8)
    starts, ends = torch.tensor([0, 0, 10, 40, 50, 9]), torch.tensor([30, 90, 50, 90, 50, 10])
    got = rt.fp8_mqa_logits(q, (keys, scales), weights, starts, ends)
    want = scores(q, keys, weights) * scales
    columns = torch.arange(90)
    seen = (columns >= starts[:, None]) & (columns < ends[:, None])
    torch.testing.assert_close(got[seen].double(), want[seen], rtol=1e-4, atol=1e-3)
    assert (got[~seen] == -math.inf).all()
    packed = rt.fp8_mqa_logits(q, (keys, scales), weights, starts, ends, max_seqlen_k=90)
    assert torch.equal(packed[2, :40], got[2, 10:50]) and (packed[2, 40:] == -math.inf).all()


def test_fp8_paged_mqa_logits():
    pages, size, dim, heads, batch, next_n = 7, 16, 32, 4, 2, 2
    keys, scales = torch.randn(pages, size, dim).to(F8), torch.rand(pages, size) + 0.1
    fused = torch.cat([keys.view(torch.uint8).flatten(1), scales.view(torch.uint8).flatten(1)], 1).view(pages, size, 1, dim + 4)
    q, weights = torch.randn(batch, next_n, heads, dim).to(F8), torch.randn(batch * next_n, heads)
    table, lens = torch.tensor([[3, 0, 6], [5, 1, -1]], dtype=torch.int32), torch.tensor([40, 17], dtype=torch.int32)
    got = rt.fp8_paged_mqa_logits(q, fused, weights, lens, table, None, 48)
    for b in range(batch):
        of = [p for p in table[b].tolist() if p >= 0]
        own, scale = keys[of].float().flatten(0, 1), scales[of].flatten()
        for i in range(next_n):
            n = int(lens[b]) - next_n + i + 1
            row = got[b * next_n + i]
            want = scores(q[b, i : i + 1], own[:n], weights[b * next_n + i][None])[0] * scale[:n]
            torch.testing.assert_close(row[:n].double(), want, rtol=1e-4, atol=1e-3)
            assert (row[n:] == -math.inf).all()


def attend(q, rows, scale, d_v, sink):
    logits = scale * (q.double() @ rows.double().T)
    lse = torch.logsumexp(logits, -1)
    out = torch.softmax(logits, -1) @ rows.double()[:, :d_v]
    return out / (1 + torch.exp(sink.double() - lse))[:, None], lse, logits.amax(-1)


def test_flash_mla_sparse_fwd():
    q, kv = torch.randn(4, 6, 576), torch.randn(50, 1, 576)
    indices = torch.randint(-1, 53, (4, 1, 30), dtype=torch.int32)
    indices[3] = -1
    sink, length = torch.tensor([0.5, -math.inf, math.inf, 0, 1, 2]), torch.tensor([30, 12, 1, 30])
    out, largest, lse = rt.flash_mla_sparse_fwd(q, kv, indices, 0.04, 512, sink, length)
    for t in range(3):
        named = indices[t, 0, : length[t]].long()
        named = named[(named >= 0) & (named < 50)]
        if len(named) == 0:
            continue
        want, want_lse, want_max = attend(q[t], kv[named, 0], 0.04, 512, sink)
        torch.testing.assert_close(out[t].double(), want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(lse[t].double(), want_lse, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(largest[t].double(), want_max, rtol=1e-5, atol=1e-4)
    assert (out[3] == 0).all() and (lse[3] == math.inf).all() and (largest[3] == -math.inf).all()


def test_flash_mla_with_kvcache():
    pages, size = 5, 8
    cache = torch.zeros(pages, size, 1, 656, dtype=torch.uint8)
    nope, scale, rope = torch.randn(pages, size, 512).to(F8), 2.0 ** torch.randint(-3, 1, (pages, size, 4)), torch.randn(pages, size, 64).bfloat16()
    cache[..., 0, :512], cache[..., 0, 512:528], cache[..., 0, 528:] = nope.view(torch.uint8), scale.view(torch.uint8), rope.view(torch.uint8)
    rows = torch.cat([(nope.float().unflatten(-1, (4, 128)) * scale[..., None]).flatten(-2), rope.float()], -1).flatten(0, 1)
    q, sink = torch.randn(2, 2, 5, 576), torch.randn(5)
    indices = torch.randint(0, pages * size, (2, 2, 12), dtype=torch.int32)
    more = torch.randint(-1, pages * size, (2, 2, 6), dtype=torch.int32)
    out, lse = rt.flash_mla_with_kvcache(q, cache, None, None, 512, is_fp8_kvcache=True, indices=indices, attn_sink=sink,
                                         extra_k_cache=cache, extra_indices_in_kvcache=more, topk_length=torch.tensor([12, 5]))
    assert out.shape == (2, 2, 5, 512) and lse.shape == (2, 5, 2)
    for b in range(2):
        for i in range(2):
            named = torch.cat([indices[b, i, : (12, 5)[b]], more[b, i][more[b, i] >= 0]]).long()
            want, want_lse, _ = attend(q[b, i], rows[named], 576**-0.5, 512, sink)
            torch.testing.assert_close(out[b, i].double(), want, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(lse[b, :, i].double(), want_lse, rtol=1e-5, atol=1e-4)


def test_operators():
    q, keys = torch.randn(3, 2, 32), torch.randn(20, 32)
    ends = torch.tensor([5, 20, 3])
    torch.library.opcheck(torch.ops.riffle.fp8_mqa_logits.default,
                          (q, keys, torch.ones(20), torch.randn(3, 2), torch.zeros_like(ends), ends))
    torch.library.opcheck(torch.ops.riffle.flash_mla_sparse_fwd.default,
                          (q, keys[:, None], torch.zeros(3, 1, 4, dtype=torch.int32), 0.1, 32, None, None))
    torch.library.opcheck(torch.ops.riffle.flash_mla_sparse_decode.default,
                          (q[None], [keys.view(1, 20, 1, 32)], [torch.zeros(1, 3, 4, dtype=torch.int32)], [None], "plain", 0.1, 32, None))
    fused = torch.zeros(2, 4, 1, 36, dtype=torch.uint8)
    torch.library.opcheck(torch.ops.riffle.fp8_paged_mqa_logits.default,
                          (q[:2, None], fused, torch.randn(2, 2), torch.tensor([3, 8]), torch.tensor([[0, 1], [1, 0]]), 8))

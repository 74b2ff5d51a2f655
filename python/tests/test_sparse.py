"""The indexer and sparse attention of the package against NumPy in float64."""

import numpy
import pytest
import riffle

RNG = numpy.random.default_rng(0)
E4M3 = numpy.array(
    [
        (-1.0 if c >> 7 else 1.0)
        * (numpy.nan if c & 127 == 127 else (c & 7) * 2.0**-9 if c >> 3 & 15 == 0 else (1 + (c & 7) / 8) * 2.0 ** ((c >> 3 & 15) - 7))
        for c in range(256)
    ]
)


def codes(*shape):
    """Random float8_e4m3fn codes, all finite."""
    x = RNG.integers(0, 256, shape, dtype=numpy.uint8)
    return numpy.where(x & 127 == 127, 0, x).astype(numpy.uint8)


def normal(*shape):
    return RNG.standard_normal(shape).astype(numpy.float32)


def scores(q, weights, keys, relu=True):
    """[tokens, n] of one sequence, without what is not seen."""
    dots = numpy.einsum("thd,nd->thn", q.astype(numpy.float64), keys.astype(numpy.float64))
    return numpy.einsum("th,thn->tn", weights.astype(numpy.float64), numpy.maximum(dots, 0) if relu else dots)


def best(row, k):
    return numpy.lexsort((numpy.arange(len(row)), -row))[:k]


def attend(q, rows, scale, value_dim, sink=None):
    """One query [heads, d] over rows [n, d]: out, lse."""
    logits = scale * (q.astype(numpy.float64) @ rows.T)
    sink = numpy.full(len(q), -numpy.inf) if sink is None else sink
    largest = numpy.maximum(logits.max(-1), sink)
    p = numpy.exp(logits - largest[:, None])
    weight = p.sum(-1) + numpy.exp(sink - largest)
    return p @ rows[:, :value_dim] / weight[:, None], largest + numpy.log(weight)


@pytest.mark.parametrize("relu", [True, False])
def test_logits_of_ragged_batches(relu):
    keys, table = normal(6, 4, 64), numpy.array([[2, 0, 5], [4, 1, -1]])
    q, weights = normal(5, 3, 64), normal(5, 3)
    out = riffle.indexer_logits(q, weights, keys, numpy.array([11, 8]), table, cu_q_lens=numpy.array([0, 3, 5]),
                                activation="relu" if relu else "none")
    assert out.shape == (5, 11) and out.dtype == numpy.float32
    for t, (b, seen) in enumerate([(0, 9), (0, 10), (0, 11), (1, 7), (1, 8)]):
        rows = keys[table[b, : 3 - b]].reshape(-1, 64)[:seen]
        numpy.testing.assert_allclose(out[t, :seen], scores(q[t : t + 1], weights[t : t + 1], rows, relu)[0], rtol=1e-4, atol=1e-3)
        assert (out[t, seen:] == -numpy.inf).all()


def test_top_k_is_that_of_the_logits():
    keys, table = RNG.integers(-2, 3, (40, 16, 32)).astype(numpy.float32), RNG.permutation(40)[None].astype(numpy.int32)
    q, lens, cu = RNG.integers(-1, 2, (7, 2, 32)).astype(numpy.float32), numpy.array([600]), numpy.array([0, 7])
    for ratio in (1, 4):
        logits = riffle.indexer_logits(q, None, keys, lens, table, cu_q_lens=cu, ratio=ratio)
        ends = numpy.array([(600 - 7 + i + 1) // ratio for i in range(7)], numpy.int32)
        want = riffle.top_k_per_row(logits, numpy.zeros(7, numpy.int32), ends, 50)
        top = riffle.indexer_top_k(q, None, keys, lens, table, 50, cu_q_lens=cu, ratio=ratio)
        numpy.testing.assert_array_equal(top, want)
        slots = riffle.indexer_top_k(q, None, keys, lens, table, 50, cu_q_lens=cu, ratio=ratio, slots=True)
        numpy.testing.assert_array_equal(slots, riffle.positions_to_slots(top, table, 16, cu_q_lens=cu))
    # Everything fits: nothing is scored.
    assert riffle.indexer_top_k(q[:1], None, keys, numpy.array([3]), table, 5).tolist() == [[0, 1, 2, -1, -1]]


def test_blocks_and_candidates():
    keys, table = normal(1, 100, 32), numpy.array([[0]])
    q = normal(1, 2, 32)
    x = scores(q, numpy.ones((1, 2)), keys[0])[0]
    means = numpy.array([x[i : i + 8].mean() for i in range(0, 100, 8)])
    call = lambda k, **options: riffle.indexer_top_k(q, None, keys, numpy.array([100]), table, k, **options)[0].tolist()  # noqa: E731
    assert call(3, block=8, reduce="mean") == best(means, 3).tolist()
    assert call(5, block=8, reduce="mean", first_blocks=1, incomplete_tail=True) == [0, 12, *(best(means[1:12], 3) + 1)]
    named = numpy.array([[3, -1, 9, 3, 400]], numpy.int32)
    keys_of = numpy.r_[24:32, 72:80]
    assert call(4, candidates=named, candidate_span=8) == keys_of[best(x[keys_of], 4)].tolist()


def test_int8_keys_after_hadamard_and_e4m3():
    keys, q, weights = normal(64, 128), normal(2, 8, 128), normal(2, 8)
    want = scores(q, weights, keys)
    args = numpy.array([64, 64]), numpy.zeros((2, 1), numpy.int32)
    turned, slots = riffle.hadamard(q), numpy.arange(64)
    error = {}
    pages, scales = numpy.zeros((1, 64, 128), numpy.int8), numpy.zeros((1, 64), numpy.float32)
    riffle.write_index_keys(keys, slots, pages, scales, format="int8")
    error["int8"] = riffle.indexer_logits(turned, weights, pages, *args, key_scales=scales) - want
    fused = numpy.zeros((1, 64 * 132), numpy.uint8)
    riffle.write_index_keys(keys, slots, fused, format="deepgemm")
    error["deepgemm"] = riffle.indexer_logits(turned, weights, fused, *args, key_format="deepgemm") - want
    plain = E4M3[fused[0, : 64 * 128]].reshape(64, 128) * fused[0, 64 * 128 :].view(numpy.float32)[:, None]
    numpy.testing.assert_allclose(error["deepgemm"] + want, scores(turned, weights, plain), rtol=1e-4, atol=1e-2)
    rms = {name: float(numpy.sqrt((x**2).mean())) for name, x in error.items()}
    assert rms["int8"] * 1.5 < rms["deepgemm"] < 0.1 * want.std()


def test_mxfp4_keys_and_expanded_blocks():
    keys, q = normal(50, 64), normal(1, 4, 64)
    slots = RNG.permutation(64)[:50]
    pages = numpy.full((4, 16 * 36), 0xEE, numpy.uint8)
    riffle.write_index_keys(keys, slots, pages, format="mxfp4", hadamard=False)
    body = pages[:, : 16 * 32].reshape(64, 32)
    e2m1 = numpy.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    plain = e2m1[numpy.stack([body & 15, body >> 4], -1)].reshape(64, 2, 32)
    plain = (plain * 2.0 ** (pages[:, 16 * 32 :].reshape(64, 4)[:, :2, None].astype(float) - 127)).reshape(64, 64)
    assert numpy.abs(plain[slots] - keys).max() < 1
    table = numpy.arange(4, dtype=numpy.int32)[None]
    got = riffle.indexer_logits(q, None, pages[numpy.argsort([0, 1, 2, 3])], numpy.array([64]), table, key_format="mxfp4")
    used = numpy.isin(numpy.arange(64), slots)
    numpy.testing.assert_allclose(got[0, used], scores(q, numpy.ones((1, 4)), plain[used])[0], rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match=r"a page is a multiple of head_dim / 2 \+ 4 = 36 bytes"):
        riffle.indexer_logits(q, None, pages[:, :-1], numpy.array([64]), table, key_format="mxfp4")
    with pytest.raises(ValueError, match="key_scales is given; the format 'mxfp4' has its own"):
        riffle.indexer_logits(q, None, pages, numpy.array([64]), table, key_format="mxfp4", key_scales=numpy.ones(1, numpy.float32))
    # Selected blocks of 16 as positions, then slots.
    blocks = riffle.indexer_top_k(q, None, pages, numpy.array([50]), table, 2, key_format="mxfp4", block=16, incomplete_tail=True)
    positions = riffle.expand_blocks(blocks, 16, numpy.array([50]))
    assert positions[0, :16].tolist() == [48, 49] + [-1] * 14
    assert positions[0, 16:].tolist() == list(range(16 * blocks[0, 1], 16 * blocks[0, 1] + 16))
    for bad, text in ((dict(block=0), "block = 0"), (dict(ends=[-1]), r"ends\[0\] = -1 is negative"), (dict(ends=[1, 2]), "number of ends = 2")):
        with pytest.raises(ValueError, match=text):
            riffle.expand_blocks(blocks, bad.get("block", 16), numpy.array(bad.get("ends", [50])))


def compressed(kv, gates, ratio, overlap, bias, weight, cos_sin, first=0):
    """Entries from number `first` on of one sequence."""
    dim = kv.shape[1] // (2 if overlap else 1)
    windows, entries = len(kv) // ratio, []
    for w in range(int(overlap and first > 0), windows):
        own = slice(w * ratio, (w + 1) * ratio)
        values, logits = kv[own, -dim:], gates[own, -dim:] + bias[:, -dim:]
        number = first + w - int(overlap and first > 0)
        if overlap and number > 0:
            before = slice((w - 1) * ratio, w * ratio)
            values = numpy.concatenate([kv[before, :dim], values])
            logits = numpy.concatenate([gates[before, :dim] + bias[:, :dim], logits])
        p = numpy.exp(logits - logits.max(0))
        entry = (p * values).sum(0) / p.sum(0)
        entry = entry / numpy.sqrt((entry**2).mean() + 1e-6) * weight
        cosine, sine = numpy.split(cos_sin[number * ratio], 2)
        a, b = entry[-len(cosine) * 2 :: 2].copy(), entry[-len(cosine) * 2 + 1 :: 2].copy()
        entry[-len(cosine) * 2 :: 2], entry[-len(cosine) * 2 + 1 :: 2] = a * cosine - b * sine, a * sine + b * cosine
        entries.append(entry)
    return numpy.array(entries).reshape(-1, dim)


@pytest.mark.parametrize("overlap", [False, True])
def test_compress_kv(overlap):
    dim, ratio = 64, 4
    kv, gates = normal(31, dim * (1 + overlap)), normal(31, dim * (1 + overlap))
    bias, weight, cos_sin = normal(ratio, kv.shape[1]), normal(dim), normal(200, 16)
    options = dict(ratio=ratio, overlap=overlap, gate_bias=bias, norm_weight=weight, cos_sin=cos_sin)
    got = riffle.compress_kv(kv, gates, **options)
    numpy.testing.assert_allclose(got, compressed(kv.astype(float), gates.astype(float), ratio, overlap, bias, weight, cos_sin), rtol=2e-5, atol=2e-5)
    both = riffle.compress_kv(kv, gates, cu_lens=numpy.array([0, 10, 31]), first_entries=numpy.array([0, 9]), **options)
    parts = ((0, 10, 0), (10, 31, 9))
    want = [compressed(kv[a:b].astype(float), gates[a:b].astype(float), ratio, overlap, bias, weight, cos_sin, n) for a, b, n in parts]
    numpy.testing.assert_allclose(both, numpy.concatenate(want), rtol=2e-5, atol=2e-5)
    out = numpy.zeros_like(got)
    assert riffle.compress_kv(kv, gates, out=out, **options) is out
    numpy.testing.assert_array_equal(out, got)
    for bad, text in (
        ({"ratio": 0}, "ratio = 0"), ({"norm_weight": weight[:3]}, "norm_weight has shape"), ({"cos_sin": cos_sin[:9]}, "rope.positions = 9"),
        ({"gate_bias": bias[:2]}, "gate_bias has shape"), ({"cu_lens": numpy.array([0, 40])}, "cu_lens runs from 0 to 40"),
    ):
        with pytest.raises(ValueError, match=text):
            riffle.compress_kv(kv, gates, **{**options, **bad})
    with pytest.raises(TypeError, match="kv"):
        riffle.compress_kv(kv.astype(numpy.int32), gates, ratio=4)


@pytest.mark.parametrize("row_format", ["plain", "mla656", "mla584"])
def test_sparse_attention(row_format):
    d, value_dim = (512, 512) if row_format == "mla584" else (576, 512)
    pages, size, heads = 5, 8, 6
    if row_format == "plain":
        pool = normal(pages, size, d)
        rows = pool.reshape(-1, d).astype(numpy.float64)
    elif row_format == "mla656":
        pool = numpy.zeros((pages, size, 656), numpy.uint8)
        pool[..., :512] = codes(pages, size, 512)
        pool[..., 512:528] = (2.0 ** RNG.integers(-9, -6, (pages, size, 4))).astype(numpy.float32).view(numpy.uint8)
        rope = normal(pages, size, 64).view(numpy.uint32) >> 16
        pool[..., 528:] = rope.astype(numpy.uint16).view(numpy.uint8)
        scale = pool[..., 512:528].copy().view(numpy.float32)
        rows = numpy.concatenate([(E4M3[pool[..., :512]].reshape(pages, size, 4, 128) * scale[..., None]).reshape(pages, size, 512),
                                  (rope << 16).astype(numpy.uint32).view(numpy.float32)], -1).reshape(-1, d)
    else:
        pool = numpy.zeros((pages, size, 584), numpy.uint8)
        flat = pool.reshape(pages, -1)
        body, tail = flat[:, : size * 576].reshape(pages, size, 576), flat[:, size * 576 :].reshape(pages, size, 8)
        body[..., :448] = codes(pages, size, 448)
        rope = normal(pages, size, 64).view(numpy.uint32) >> 16
        body[..., 448:] = rope.astype(numpy.uint16).view(numpy.uint8)
        tail[..., :7] = RNG.integers(118, 121, (pages, size, 7))
        scale = 2.0 ** (tail[..., :7].astype(numpy.float64) - 127)
        rows = numpy.concatenate([(E4M3[body[..., :448]].reshape(pages, size, 7, 64) * scale[..., None]).reshape(pages, size, 448),
                                  (rope << 16).astype(numpy.uint32).view(numpy.float32)], -1).reshape(-1, d)
    q, sinks = normal(3, heads, d), normal(heads)
    slots = RNG.integers(-1, pages * size, (3, 20)).astype(numpy.int32)
    out, lse = riffle.sparse_attention(q, pool, slots, row_format=row_format, value_dim=value_dim, sinks=sinks, return_lse=True,
                                       scale=0.05)
    for t in range(3):
        want, want_lse = attend(q[t], rows[slots[t][slots[t] >= 0]], 0.05, value_dim, sinks)
        numpy.testing.assert_allclose(out[t], want, rtol=1e-4, atol=1e-4)
        numpy.testing.assert_allclose(lse[t], want_lse, rtol=1e-5, atol=1e-4)
    # Two scopes are their union.
    lengths = numpy.array([7, 0, 20], numpy.int32)
    both = riffle.sparse_attention(q, pool, slots[:, :9], row_format=row_format, value_dim=value_dim, scale=0.05,
                                   extra=[(pool, slots, lengths, row_format)])
    named = numpy.concatenate([slots[0, :9], slots[0, :7]])
    want, _ = attend(q[0], rows[named[named >= 0]], 0.05, value_dim)
    numpy.testing.assert_allclose(both[0], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("row_format", ["mla656", "mla584"])
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_write_sparse_rows(row_format, framework):
    """What is written is read, within half of a last place; x / scale, to the nearest, is what the codes are."""
    d, codes_of_row, group = (512, 448, 64) if row_format == "mla584" else (576, 512, 128)
    width, pages, size = (584 if row_format == "mla584" else 656), 3, 8
    x, rows = 3 * normal(10, d), numpy.zeros((pages, size, width), numpy.uint8)
    slots = numpy.array([0, 7, 8, -1, 23, 5, 5, 11, 2, 3])
    given = (x, slots, rows)
    if framework == "torch":
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        given = (torch.from_numpy(x), torch.from_numpy(slots), torch.from_numpy(rows))
    riffle.write_sparse_rows(*given, row_format=row_format)
    q = numpy.zeros((len(x), 1, d), numpy.float32)
    read = riffle.sparse_attention(q, rows, slots[:, None].astype(numpy.int32), row_format=row_format)[:, 0]
    written = slots >= 0
    written[5] = False  # the later of equal slots stays
    scale = numpy.abs(x[:, :codes_of_row].reshape(10, -1, group)).max(-1) / 448
    scale = numpy.exp2(numpy.ceil(numpy.log2(scale))).repeat(group, 1)
    codes_read = read[:, :codes_of_row] / scale
    places = numpy.exp2(numpy.floor(numpy.log2(numpy.maximum(numpy.abs(codes_read), 2.0**-6))) - 3)
    assert (numpy.abs(codes_read - x[:, :codes_of_row] / scale)[written] <= places[written] / 2).all()
    numpy.testing.assert_allclose(read[written, codes_of_row:], x[written, codes_of_row:], rtol=2**-8)
    assert (read[5] == read[6]).all() and (read[3] == 0).all()
    free = numpy.setdiff1d(numpy.arange(pages * size), slots)
    body = rows.reshape(pages, -1)[:, : size * 576].reshape(-1, 576) if row_format == "mla584" else rows.reshape(-1, 656)
    assert (body[free] == 0).all()


# Formats of rows, and the bytes that 32 elements take in them.
ROW_FORMATS = {"float32": 0, "bfloat16": 0, "int8": 0, "float8_e4m3fn": 0, "float8_e5m2": 0, "q8_0": 34, "q4_0": 18, "q4_1": 20,
               "q5_0": 22, "q5_1": 24, "iq4_nl": 18}  # fmt: skip


SCALED = ("int8", "float8_e4m3fn", "float8_e5m2")


@pytest.mark.parametrize("kind, grouped", [*((kind, False) for kind in ROW_FORMATS), *((kind, True) for kind in SCALED)])
def test_rows_in_every_format(kind, grouped):
    """The bits of paged_attention over the same rows, of one scope and of two."""
    import ml_dtypes

    d, pages, size, block = 128, 6, 16, ROW_FORMATS[kind]
    scaled = kind in SCALED
    dtype = numpy.uint8 if block else getattr(ml_dtypes, kind, None) or getattr(numpy, kind)
    pool = numpy.zeros((pages, size, d // 32 * block if block else d), dtype)
    scales = numpy.zeros((pages, size, d // 32) if grouped else (pages, size), numpy.float32) if scaled else None
    x, given = normal(pages * size, 1, d), kind if block else None
    unread = numpy.zeros((pages, size, 1, 32), numpy.float32)
    own = None if scales is None else scales[:, :, None]
    riffle.write_kv(x, x[..., :32], numpy.arange(pages * size), pool[:, :, None], unread, layout="NHD", key_format=given,
                    key_scales=own, compute_scales=scaled)  # fmt: skip
    q, lens = normal(1, 4, d), numpy.array([pages * size])
    keys = pool[:, :, None]
    values = keys if block else keys[..., :96]
    want = riffle.paged_attention(q, keys, values, lens, numpy.arange(pages)[None], layout="NHD", key_format=given, value_format=given,
                                  key_scales=own, value_scales=own[..., :3] if grouped else own)  # fmt: skip
    names = dict(row_format=given or "plain", value_dim=None if block else 96)
    slots = numpy.arange(pages * size, dtype=numpy.int32)[None]
    out = riffle.sparse_attention(q, pool, slots[:, ::-1].copy(), row_scales=scales, **names)
    numpy.testing.assert_array_equal(out, want)
    extra = [(pool, slots[:, 40:].copy(), None, names["row_format"], scales)]
    out = riffle.sparse_attention(q, pool, slots[:, :40].copy(), row_scales=scales, extra=extra, **names)
    numpy.testing.assert_array_equal(out, want)
    if kind.startswith("float8"):  # codes in uint8
        out = riffle.sparse_attention(q, pool.view(numpy.uint8), slots, row_scales=scales, row_format=kind, value_dim=96)
        numpy.testing.assert_array_equal(out, want)


def test_errors():
    q, keys, lens, table = normal(1, 2, 32), normal(2, 4, 32), numpy.array([8]), numpy.array([[0, 1]])
    for text, kind, call in [
        ("ratio = 0", ValueError, lambda: riffle.indexer_logits(q, None, keys, lens, table, ratio=0)),
        ("activation = 'gelu'", ValueError, lambda: riffle.indexer_logits(q, None, keys, lens, table, activation="gelu")),
        ("k = 0", ValueError, lambda: riffle.indexer_top_k(q, None, keys, lens, table, 0)),
        ("page_table\\[0,1\\] = 7", ValueError, lambda: riffle.indexer_logits(q, None, keys, lens, numpy.array([[0, 7]]))),
        ("weights has shape", ValueError, lambda: riffle.indexer_logits(q, normal(2, 2), keys, lens, table)),
        ("key_format = 'gguf'", ValueError, lambda: riffle.indexer_logits(q, None, keys, lens, table, key_format="gguf")),
        ("keys has dtype", TypeError, lambda: riffle.indexer_logits(q, None, keys.astype(numpy.float64), lens, table)),
        ("invalid = 'drop'", ValueError, lambda: riffle.sparse_attention(q, keys[0], table, invalid="drop")),
        ("slots\\[0,1\\] = 9", ValueError, lambda: riffle.sparse_attention(q, keys[0], numpy.array([[0, 9]]))),
        ("value_dim = 48", ValueError, lambda: riffle.sparse_attention(q, keys[0], table, value_dim=48)),
        ("row_scales has shape \\(3,\\)", ValueError,
         lambda: riffle.sparse_attention(q, keys[0].astype(numpy.int8), table, row_scales=numpy.ones(3, numpy.float32))),
        ("rows has dtype float32; with row_scales", TypeError, lambda: riffle.sparse_attention(q, keys[0], table, row_scales=2.0)),
        ("no whole blocks of q8_0", ValueError,
         lambda: riffle.sparse_attention(q, numpy.zeros((4, 33), numpy.uint8), table, row_format="q8_0")),
        ("row_format = 'q3'", ValueError, lambda: riffle.sparse_attention(q, keys[0], table, row_format="q3")),
        ("x.cols = 32", ValueError,
         lambda: riffle.write_sparse_rows(keys[0], numpy.arange(4), numpy.zeros((4, 656), numpy.uint8), row_format="mla656")),
        ("the last axis is 656", ValueError,
         lambda: riffle.write_sparse_rows(keys[0], numpy.arange(4), numpy.zeros((4, 655), numpy.uint8), row_format="mla656")),
        ("format = 'fp4'", ValueError, lambda: riffle.write_index_keys(keys[0], [0], keys, format="fp4")),
    ]:
        with pytest.raises(kind, match=text):
            call()
    assert riffle.sparse_attention(q, keys[0], numpy.array([[0, 9]]), invalid="ignore").shape == (1, 2, 32)

"""torch.ops.riffle.*: opcheck, torch.compile, gradients and transforms; the per-row calls and attention."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import riffle.torch  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402

topk = riffle.torch.topk
INT = torch.int32


def int32(*numbers):
    return torch.tensor(numbers, dtype=INT)


def spread(*shape):
    """Numbers far enough apart that a finite difference does not change their order."""
    count = int(np.prod(shape))
    return torch.tensor(np.random.default_rng(5).permutation(count) / 4.0, dtype=torch.float32).reshape(shape)


def attention_arguments(dtype=torch.float32):
    torch.manual_seed(2)
    keys, values = torch.randn(2, 6, 2, 16, 64, dtype=dtype).unbind()
    q = torch.randn(2, 4, 64, dtype=dtype)
    return q, keys.clone(), values.clone(), int32(20, 5), torch.tensor([[0, 1], [2, 3]], dtype=INT)


def write_arguments(dtype=torch.float32):
    torch.manual_seed(3)
    pages = torch.zeros(2, 3, 2, 4, 32, dtype=dtype)
    return torch.randn(3, 2, 32), torch.randn(3, 2, 32), torch.tensor([7, -1, 2]), pages[0].clone(), pages[1].clone()


LOGITS = torch.randn(4, 33, generator=torch.Generator().manual_seed(1))
OPERATORS = {
    "topk": (torch.ops.riffle.topk.default, (spread(3, 40), 3)),
    "topk-smallest": (torch.ops.riffle.topk.default, (spread(3, 40), 3, 0, False)),
    "topk-grad": (torch.ops.riffle.topk.default, (spread(3, 40, 2).requires_grad_(), 2, 1)),
    "topk-scalar": (torch.ops.riffle.topk.default, (torch.tensor(1.0, requires_grad=True), 1)),
    "prefill": (
        torch.ops.riffle.top_k_per_row_prefill.default,
        (LOGITS, int32(0, 1, 2, 30), int32(33, 20, 100, 31), torch.zeros(4, 5, dtype=INT), 4, 33, 1, 5),
    ),
    "decode": (
        torch.ops.riffle.top_k_per_row_decode.default,
        (LOGITS, 2, int32(30, 99), torch.zeros(4, 5, dtype=INT), 4, 33, 1, 5),
    ),
    "paged_attention": (torch.ops.riffle.paged_attention.default, attention_arguments()),
    "paged_attention-options": (
        torch.ops.riffle.paged_attention.default,
        (*attention_arguments(torch.bfloat16), int32(0, 1, 2), "HND", 0.1, True, 7, None, 20.0, torch.zeros(4)),
    ),
    "paged_attention-tensors": (
        torch.ops.riffle.paged_attention.default,
        (*attention_arguments(), None, "HND", None, True, 7, None, None, None, None, torch.ones(1), torch.ones(1)),
    ),
    "paged_attention-both sides": (
        torch.ops.riffle.paged_attention.default,
        (*attention_arguments()[:3], torch.tensor([20, 5]), torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 1, 2]), "HND", None, False, 7, 2),
    ),
    "paged_attention-masks": (
        torch.ops.riffle.paged_attention.default,
        (*attention_arguments(), None, "HND", None, False, *[None] * 11, torch.randn(2, 1, 20), torch.ones(4), torch.tensor([True, False])),
    ),
    "write_kv": (torch.ops.riffle.write_kv.default, write_arguments()),
    "write_kv-scales": (
        torch.ops.riffle.write_kv.default,
        (*write_arguments(torch.int8), "HND", torch.zeros(3, 2, 4), torch.zeros(3, 2, 4), None, None, True),
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name):
    torch.library.opcheck(*OPERATORS[name])


class Recorder:
    """A backend of torch.compile that runs what it is given and remembers which operators it had."""

    def __init__(self):
        self.targets = []

    def __call__(self, module, example_inputs):
        self.targets += [node.target for node in module.graph.nodes if node.op == "call_function"]
        return module


def step(x, q, keys, values, kv_lens, table, indices):
    values_k, columns = topk(x, 3, dim=0, largest=False)
    riffle.torch.top_k_per_row_prefill(x, kv_lens, kv_lens + 9, indices, 2, x.stride(0), x.stride(1), 4)
    attention, lse = riffle.torch.paged_attention(q, keys, values, kv_lens, table, return_lse=True)
    return values_k * 2, columns, indices + 1, attention, lse


@pytest.mark.parametrize("backend", ["recorder", "inductor"])
def test_compile_keeps_the_operators(backend):
    recorder = Recorder()
    compiled = torch.compile(step, fullgraph=True, backend=recorder if backend == "recorder" else backend)
    for rows in (5, 6):
        x = spread(rows, 40)
        indices = torch.zeros(2, 4, dtype=INT)
        expected = step(x, *attention_arguments(), torch.zeros(2, 4, dtype=INT))
        for made, wanted in zip(compiled(x, *attention_arguments(), indices), expected, strict=True):
            assert torch.equal(made, wanted)
        assert torch.equal(indices + 1, expected[2])
    if backend == "recorder":
        assert {f"{target}" for target in recorder.targets} >= {
            "riffle.topk", "riffle.top_k_per_row_prefill", "riffle.paged_attention"
        }  # fmt: skip


def test_compile_with_gradients_and_dynamic_shapes():
    compiled = torch.compile(lambda x, k: (topk(x, k).values ** 2).sum(), fullgraph=True, dynamic=True)
    for rows, k in ((3, 4), (5, 7), (8, 9)):
        x = spread(rows, 50).requires_grad_()
        ours = torch.autograd.grad(compiled(x, k), x)
        assert torch.equal(*ours, *torch.autograd.grad((torch.topk(x, k).values ** 2).sum(), x))


def test_export_and_trace():
    class Top(torch.nn.Module):
        def forward(self, x):
            return topk(x, 3).values

    assert "riffle.topk" in str(torch.export.export(Top(), (spread(3, 40),)).graph)
    assert "riffle::topk" in str(torch.jit.trace(Top(), (spread(3, 40),)).graph)


@pytest.mark.parametrize("dim, largest", [(-1, True), (0, False)])
def test_gradients_by_finite_differences(dim, largest):
    def in_float32(x):
        return topk(x.float(), 2, dim, largest).values.double()

    x = spread(3, 7).double().requires_grad_()
    assert torch.autograd.gradcheck(in_float32, (x,), eps=1e-2, atol=1e-3)
    assert torch.autograd.gradgradcheck(in_float32, (x,), eps=1e-2, atol=1e-3)


def test_transforms():
    x = spread(5, 40)

    def squares(function):
        return lambda row: (function(row, 3).values ** 2).sum()

    for transform in (
        lambda f: torch.func.grad(squares(f))(x),
        lambda f: torch.func.vmap(torch.func.grad(squares(f)))(x),
        lambda f: torch.func.hessian(squares(f))(x[0]),
        lambda f: torch.func.vmap(lambda row: f(row, 3).indices)(x),
        lambda f: torch.func.vmap(lambda column: f(column, 2, 0, False).values, in_dims=1)(x),
        lambda f: torch.func.vmap(lambda scalar: f(scalar, 1).values)(x[0]),
        lambda f: torch.func.jvp(lambda y: f(y, 3).values, (x,), (x * 2,))[1],
    ):
        assert torch.equal(transform(topk), transform(torch.topk))


def test_forward_differentiation():
    x = spread(3, 40)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x * 3)
        ours, theirs = (forward_ad.unpack_dual(f(dual, 3).values).tangent for f in (topk, torch.topk))
        assert torch.equal(ours, theirs)
        with pytest.raises(NotImplementedError, match="forward AD"):
            torch.ops.riffle.topk(dual, 3)


def test_a_mode_sees_the_call():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Log(TorchDispatchMode):
        seen = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen.append(function)
            return function(*args, **(kwargs or {}))

    with Log():
        topk(spread(3, 40), 3)
    assert torch.ops.riffle.topk.default in Log.seen


def expected_rows(logits, starts, ends, k):
    """Per row a stable sort of the range, relative to its start, padded with -1."""
    rows = []
    for row, start, end in zip(logits.float(), starts, ends):
        part = row[start : max(start, end)]
        best = part.sort(descending=True, stable=True).indices[:k].tolist()
        rows.append(best + [-1] * (k - len(best)))
    return torch.tensor(rows, dtype=INT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 5, 64, 300])
def test_prefill(dtype, k):
    logits = torch.randn(5, 200, generator=torch.Generator().manual_seed(k)).to(dtype)
    before = logits.clone()
    starts, ends = int32(0, 10, 199, 50, 7), int32(200, 20, 10000, 50, 3)
    expected = expected_rows(logits, starts, ends.clamp(max=200), k)
    # The logits as they are, every second column of a wider matrix, transposed, and overlapping rows.
    wide = torch.empty(5, 400, dtype=dtype)
    wide[:, ::2] = logits
    turned = logits.t().contiguous()
    for view, stride0, stride1 in ((logits, 200, 1), (wide[:, ::2], 400, 2), (turned.t(), 1, 5)):
        indices = torch.full((6, k + 2), 77, dtype=INT)
        riffle.torch.top_k_per_row_prefill(view, starts, ends, indices, 5, stride0, stride1, k)
        assert torch.equal(indices[:5, :k], expected)
        assert (indices[5] == 77).all() and (indices[:, k:] == 77).all()
    assert torch.equal(logits, before)
    repeated = torch.zeros(3, k, dtype=INT)  # stride0 is respected also where it is not the tensor's
    riffle.torch.top_k_per_row_prefill(logits, int32(0, 0, 0), int32(9, 9, 9), repeated, 3, 0, 1, k)
    assert torch.equal(repeated, expected_rows(logits[:1].expand(3, 200), (0,) * 3, (9,) * 3, k))


def test_decode():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(4))
    seq_lens = int32(1, 30, 51)
    ends = [min(50, max(0, int(seq_lens[r // 2]) - 2 + r % 2 + 1)) for r in range(6)]
    assert ends == [0, 1, 29, 30, 50, 50]
    for layout in (torch.zeros(6, 8, dtype=INT), torch.zeros(8, 6, dtype=INT).t()):
        riffle.torch.top_k_per_row_decode(logits, 2, seq_lens, layout, 6, 50, 1, 8)
        assert torch.equal(layout, expected_rows(logits, [0] * 6, ends, 8))


def test_decode_with_a_length_for_each_row():
    x = torch.tensor([[3.0, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
    indices = torch.zeros(2, 2, dtype=INT)
    riffle.torch.top_k_per_row_decode(x, 2, torch.tensor([[3, 5]], dtype=INT), indices, 2, 5, 1, 2)
    assert indices.tolist() == [[2, 0], [3, 1]]
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(4))
    lengths = torch.tensor([[1, 30], [0, 51], [-3, 49]], dtype=INT)
    ends = lengths.clamp(0, 50).flatten().tolist()
    for given in (lengths, lengths.t().contiguous().t(), torch.cat([lengths, lengths])):  # more than num_rows are allowed
        for rows in (6, 5):
            for run in (riffle.torch.top_k_per_row_decode, torch.ops.riffle.top_k_per_row_decode):
                made = torch.full((6, 8), 77, dtype=INT)
                run(logits, 2, given, made, rows, 50, 1, 8)
                assert torch.equal(made[:rows], expected_rows(logits[:rows], [0] * rows, ends, 8))
                assert (made[rows:] == 77).all()
    made = torch.full((3, 8), 77, dtype=INT)  # next_n = 1: both forms mean the same
    riffle.torch.top_k_per_row_decode(logits[:3], 1, lengths[:, 1:], made, 3, 50, 1, 8)
    assert torch.equal(made, expected_rows(logits[:3], [0] * 3, [30, 50, 49], 8))


@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (1, 2), (0, 2), (2, 2, 1)])
def test_decode_with_lengths_of_a_wrong_shape(shape):
    indices = torch.full((4, 5), 77, dtype=INT)
    with pytest.raises(RuntimeError, match="seq_lens has shape"):
        riffle.torch.top_k_per_row_decode(LOGITS, 2, torch.ones(shape, dtype=INT), indices, 4, 33, 1, 5)
    with pytest.raises(RuntimeError, match="seq_lens has dtype torch.int64"):
        riffle.torch.top_k_per_row_decode(LOGITS, 2, torch.ones(2, 2, dtype=torch.int64), indices, 4, 33, 1, 5)
    assert (indices == 77).all()


def test_logits_without_columns():
    indices = torch.zeros(2, 3, dtype=INT)
    riffle.torch.top_k_per_row_prefill(torch.empty(2, 0), int32(0, 0), int32(0, 5), indices, 2, 0, 1, 3)
    assert (indices == -1).all()


GOOD = dict(
    logits=LOGITS, row_starts=int32(0, 0, 0, 0), row_ends=int32(9, 9, 9, 9), indices=None, num_rows=4, stride0=33,
    stride1=1, top_k=5,
)  # fmt: skip


@pytest.mark.parametrize(
    "bad",
    [
        dict(top_k=0), dict(top_k=-1), dict(num_rows=5), dict(num_rows=-1), dict(stride0=34), dict(stride0=1 << 62),
        dict(stride0=-33), dict(stride1=2), dict(stride1=-1), dict(row_starts=int32(0, 0, -1, 0)), dict(top_k=6),
        dict(row_starts=int32(0)), dict(row_ends=int32(0)), dict(row_starts=torch.zeros(4, dtype=torch.int64)),
        dict(logits=LOGITS.to(torch.complex64)), dict(logits=LOGITS[0]), dict(logits=LOGITS.to(torch.float8_e4m3fn)), dict(num_rows=1 << 40),
        dict(indices=torch.zeros(4, 5, dtype=torch.int64)), dict(indices=torch.zeros(20, dtype=INT)),
        dict(row_ends=torch.zeros(4, 1, dtype=INT)),
    ],
    ids=lambda bad: next(f"{name}={str(value)[:12]}" for name, value in bad.items()),
)  # fmt: skip
def test_per_row_errors(bad):
    arguments = GOOD | dict(indices=torch.full((4, 5), 77, dtype=INT)) | bad
    with pytest.raises(RuntimeError):
        riffle.torch.top_k_per_row_prefill(*arguments.values())
    assert (arguments["indices"] == 77).all() or "indices" in bad


def test_decode_errors():
    for next_n, seq_lens in ((0, int32(9, 9)), (-1, int32(9, 9)), (2, int32(9)), (1, int32(9, 9))):
        with pytest.raises(RuntimeError):
            riffle.torch.top_k_per_row_decode(LOGITS, next_n, seq_lens, torch.zeros(4, 5, dtype=INT), 4, 33, 1, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_riffles(dtype):
    arguments = attention_arguments(dtype)
    options = dict(cu_q_lens=int32(0, 1, 2), scale=0.2, window=9, soft_cap=30.0, sinks=torch.zeros(4), return_lse=True)
    expected = riffle.paged_attention(*arguments, **options)
    made = riffle.torch.paged_attention(*arguments, **options)
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    out = torch.empty_like(arguments[0])
    assert riffle.torch.paged_attention(*arguments, **(options | dict(out=out, return_lse=False))) is out
    assert torch.equal(out, expected[0])
    q, keys, values, *rest = arguments
    turned = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (q, keys, values)]
    assert torch.equal(riffle.torch.paged_attention(*turned, *rest, **options)[0], expected[0])


def test_attention_has_no_gradient():
    q, *rest = attention_arguments()
    out = riffle.torch.paged_attention(q.requires_grad_(), *rest)
    with pytest.raises(NotImplementedError, match="derivative for riffle::paged_attention"):
        out.sum().backward()
    with torch.no_grad():
        assert not riffle.torch.paged_attention(q, *rest).requires_grad


def test_attention_errors():
    q, keys, values, kv_lens, table = attention_arguments()
    for arguments in (
        (q.double(), keys, values, kv_lens, table), (q[0], keys, values, kv_lens, table),
        (q, keys, values, kv_lens.float(), table), (q, keys, values, kv_lens, table + 100),
        (q, keys, values, kv_lens + 1000, table), (q, keys.to_sparse(), values, kv_lens, table),
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            riffle.torch.paged_attention(*arguments)
    with pytest.raises(RuntimeError, match="layout"):
        riffle.torch.paged_attention(q, keys, values, kv_lens, table, layout="KV")
    shapes = riffle.torch.paged_attention(
        *(x.to("meta") for x in (q, keys, values, kv_lens, table)), return_lse=True
    )
    assert [tuple(x.shape) for x in shapes] == [(2, 4, 64), (2, 4)]


def test_attention_with_masks():
    q, keys, values, kv_lens, table = attention_arguments()
    options = dict(mask=torch.randn(2, 1, 20), alibi_slopes=torch.tensor([0.5, 0.25, 0.1, 0.0]), causal=torch.tensor([True, False]))
    expected = riffle.paged_attention(q, keys, values, kv_lens, table, **options)
    assert torch.equal(riffle.torch.paged_attention(q, keys, values, kv_lens, table, **options), expected)
    compiled = torch.compile(lambda *tensors: riffle.torch.paged_attention(*tensors, **options), fullgraph=True)
    assert torch.equal(compiled(q, keys, values, kv_lens, table), expected)
    hidden = riffle.torch.paged_attention(q, keys, values, kv_lens, table, mask=torch.zeros(1, 1, 20, dtype=torch.bool))
    assert (hidden == 0).all()
    for text, change in [("mask.keys = 4", dict(mask=torch.zeros(1, 1, 4))), ("causal must be a bool", dict(causal=1))]:
        with pytest.raises(RuntimeError, match=text):
            riffle.torch.paged_attention(q, keys, values, kv_lens, table, **change)
    with pytest.raises(TypeError, match="argument 'mask' must be Tensor, not numpy.ndarray"):
        riffle.torch.paged_attention(q, keys, values, kv_lens, table, mask=np.zeros((1, 1, 20), bool))

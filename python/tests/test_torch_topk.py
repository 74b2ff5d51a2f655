"""riffle.torch.topk held against torch.topk: its own OpInfo samples, and what those leave out."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import riffle.torch  # noqa: E402

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAMES = ["float32", "float16", "bfloat16"]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)


def check(input, *args, **kwargs):
    """Values as torch.topk's, in its order; indices that lead to them, each once; the same layout."""
    ours = riffle.torch.topk(input, *args, **kwargs)
    theirs = torch.topk(input, *args, **kwargs)
    assert type(ours) is type(theirs) is torch.return_types.topk
    assert ours.indices.dtype == torch.int64 and ours.values.dtype == input.dtype
    dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
    unsorted = not (args[3] if len(args) > 3 else kwargs.get("sorted", True))
    descending = args[2] if len(args) > 2 else kwargs.get("largest", True)
    values, expected = ours.values, theirs.values
    if unsorted and input.dim():
        values, expected = (v.sort(dim, descending).values for v in (values, expected))
    torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
    for made, model in zip(ours, theirs):
        assert made.stride() == model.stride() and made.shape == model.shape
    if input.dim():
        torch.testing.assert_close(input.gather(dim, ours.indices), ours.values, rtol=0, atol=0, equal_nan=True)
        apart = ours.indices.sort(dim).values.diff(dim=dim)
        assert (apart > 0).all()
    return ours


@dtypes
def test_opinfo_samples(dtype):
    internal = pytest.importorskip(
        "torch.testing._internal.common_methods_invocations", reason="PyTorch's own tests are not installed"
    )
    info = next(op for op in internal.op_db if op.name == "topk")
    count = 0
    for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
        count += 1
        check(sample.input.detach(), *sample.args, **sample.kwargs)
        if dtype == torch.bfloat16:  # ties, whose gradient goes to either
            continue
        grads = []
        for topk in riffle.torch.topk, torch.topk:
            values = topk(sample.input, *sample.args, **sample.kwargs).values
            weight = torch.arange(1, values.numel() + 1, dtype=dtype).reshape(values.shape)
            grads += torch.autograd.grad((values * weight).sum(), sample.input)
        assert torch.equal(*grads)
    assert count >= 14


@dtypes
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("n", [1, 2, 31, 100, 1000, 2500, 20000])
def test_every_length_and_k(dtype, largest, n):
    generator = torch.Generator().manual_seed(n)
    for rows in (1, 3):
        x = torch.randn(rows, n, generator=generator).to(dtype)
        for k in {0, 1, 2, 8, 64, n // 2, n - 1, n}:
            if k <= n:
                for sorted in (True, False):
                    check(x, k, -1, largest, sorted)


@dtypes
def test_every_axis_and_stride(dtype):
    x = torch.randn(6, 5, 40, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    views = [x, x.transpose(0, 2), x.permute(3, 1, 2, 0), x[::2, :, ::3], x[:, 1:2].expand(6, 7, 40, 4), x[0, 0], x[1, 2, :, 0]]
    for view in views:
        for dim in range(-view.dim(), view.dim()):
            for k, largest in itertools.product({1, 3, view.shape[dim]}, (True, False)):
                if k <= view.shape[dim]:
                    check(view, k, dim, largest)


def test_input_is_read_in_place():
    x = torch.randn(4, 3, 1000)
    before = x.clone()
    for view in (x[:, 1], x[::2], x.transpose(0, 1), x.flip(0).expand(4, 3, 1000)):
        check(view, 7)
    assert torch.equal(x, before)


@dtypes
def test_order_where_torch_leaves_it_open(dtype):
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([1.0, nan, -0.0, inf, 0.0, -nan, -inf, 1.0, nan, 0.0], dtype=dtype)
    assert riffle.torch.topk(x, 10).indices.tolist() == [1, 5, 8, 3, 0, 7, 2, 4, 9, 6]
    assert riffle.torch.topk(x, 10, largest=False).indices.tolist() == [6, 2, 4, 9, 0, 7, 3, 1, 5, 8]
    for k in (10, 4):
        check(x, k)
        check(x, k, largest=False)
    # The sign of a zero and the bits of a NaN come out as they went in.
    assert torch.equal(riffle.torch.topk(x, 10).values.isnan(), x[[1, 5, 8, 3, 0, 7, 2, 4, 9, 6]].isnan())
    assert riffle.torch.topk(x, 10).values[6].signbit() and not riffle.torch.topk(x, 10).values[7].signbit()


def test_ties_and_special_rows_are_as_a_stable_sort(target):
    rng = np.random.default_rng(3)
    rows = [rng.integers(-4, 4, 5000), np.zeros(5000), np.arange(5000), -np.arange(5000), rng.standard_normal(5000) - 9]
    x = torch.tensor(np.stack(rows), dtype=torch.float32)
    x[0, ::17] = float("nan")
    x[4, ::5] = -float("nan")
    for largest in (True, False):
        order = x.sort(dim=-1, descending=largest, stable=True).indices
        for k in (1, 10, 300, 2000, 5000):
            assert torch.equal(riffle.torch.topk(x, k, largest=largest).indices, order[:, :k]), (k, largest)


def test_empty_and_scalar():
    check(torch.empty(0, 3), 2)
    check(torch.empty(3, 0), 0)
    check(torch.empty(3, 0, 4), 0, 1)
    check(torch.empty(2, 0, 4), 3)
    for k, dim in itertools.product((0, 1), (0, -1)):
        check(torch.tensor(4.0), k, dim)


def test_out():
    x = torch.randn(3, 50)
    expected = torch.topk(x, 4, 0 - 1)
    for shape in ((0,), (3, 4)):
        out = torch.empty(shape), torch.empty(shape, dtype=torch.int64)
        result = riffle.torch.topk(x, 4, out=out)
        assert result.values is out[0] and result.indices is out[1]
        assert torch.equal(out[0], expected.values) and torch.equal(out[1], expected.indices)
    strided = torch.empty(4, 3).t()
    riffle.torch.topk(x, 4, out=(strided, torch.empty(3, 4, dtype=torch.int64)))
    assert torch.equal(strided, expected.values)
    with pytest.warns(UserWarning, match="resized"):
        riffle.torch.topk(x, 4, out=(torch.empty(7), torch.empty(0, dtype=torch.int64)))


def raised_by(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return error
    return None


X = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    "args",
    [
        (X, 5), (X, -1), (X, 1, 2), (X, 1, -3), (torch.tensor(1.0), 2), (torch.tensor(1.0), 1, 1), (torch.empty(3, 0), 1),
        ([1.0, 2.0], 1), (None, 1), (X, 2.0), (X, True), (X.to(torch.complex64), 2), (X > 0, 2), (X.to_sparse(), 2),
        (X.to_sparse_csr(), 2), (torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), 2),
    ],
)  # fmt: skip
def test_errors_are_of_the_kind_of_torchs(args):
    ours, theirs = raised_by(riffle.torch.topk, *args), raised_by(torch.topk, *args)
    if theirs is None:  # torch.topk takes quantized tensors
        assert isinstance(ours, NotImplementedError)
    else:
        assert type(ours) is type(theirs)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float8_e4m3fn])
def test_other_dtypes(dtype):
    with pytest.raises(NotImplementedError, match=str(dtype).split(".")[1]):
        riffle.torch.topk(torch.ones(3, 4).to(dtype), 2)


def test_out_errors():
    grad = X.clone().requires_grad_()
    out = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for args, given in [
        (X, (torch.empty(0), torch.empty(0, dtype=torch.int32))),
        (X, (torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64))),
        (grad, out),
    ]:
        ours = raised_by(riffle.torch.topk, args, 2, out=given)
        assert type(ours) is type(raised_by(torch.topk, args, 2, out=given)) is RuntimeError
    assert out[0].numel() == 0


def test_meta_tensors_have_shapes_only():
    values, indices = riffle.torch.topk(torch.empty(3, 40, 5, device="meta"), 7, 1)
    assert values.device.type == indices.device.type == "meta"
    assert values.shape == indices.shape == (3, 7, 5) and indices.dtype == torch.int64
    with pytest.raises(RuntimeError, match="out of range"):
        riffle.torch.topk(torch.empty(3, 4, device="meta"), 5)


def test_lazy_tensors():
    x = torch.randn(3, 40)
    assert torch.equal(riffle.torch.topk(torch._neg_view(x), 3).indices, torch.topk(-x, 3).indices)
    z = torch.randn(3, 40, dtype=torch.complex64).conj().imag
    assert z.is_neg()
    assert torch.equal(riffle.torch.topk(z, 3).values, torch.topk(z, 3).values)
    assert torch.equal(riffle.torch.topk(torch._efficientzerotensor(4), 2).values, torch.zeros(2))


def test_subclasses_and_parameters():
    parameter = torch.nn.Parameter(torch.randn(3, 40))
    assert riffle.torch.topk(parameter, 3).values.grad_fn is not None
    with torch.no_grad():
        assert torch.equal(riffle.torch.topk(parameter, 3).values, torch.topk(parameter, 3).values)

    class Named(torch.Tensor):
        pass

    assert type(riffle.torch.topk(torch.randn(3, 4).as_subclass(Named), 2).values) is Named


def test_inference_mode():
    with torch.inference_mode():
        x = torch.randn(3, 40)
        check(x, 3)
        assert riffle.torch.topk(x, 3).values.is_inference()


def test_without_pytorch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import riffle\n"
        "try:\n    import riffle.torch\nexcept ImportError as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert "needs PyTorch" in run.stdout

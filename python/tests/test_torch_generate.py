"""torch.ops.riffle.linear_top_k and sample: what riffle's own functions give, kept by torch.compile."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import riffle.torch  # noqa: E402

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(3, 64, generator=GENERATOR)
WEIGHT = torch.randn(500, 64, generator=GENERATOR)
BIAS = torch.randn(500, generator=GENERATOR)
LOGITS = torch.randn(4, 300, generator=GENERATOR)
FILTERS = dict(
    temperature=torch.tensor([0.0, 1.0, 0.5, 2.0]), top_k=torch.tensor([0, 5, 0, 50], dtype=torch.int32), top_p=0.9,
    min_p=0.01, seed=7, stream=torch.arange(4), position=torch.arange(4),
)  # fmt: skip


def test_opcheck():
    torch.library.opcheck(torch.ops.riffle.linear_top_k.default, (X, WEIGHT, 5, BIAS))
    one = torch.ones(1)
    torch.library.opcheck(
        torch.ops.riffle.sample.default, (LOGITS, one, torch.zeros(1, dtype=torch.int32), one, one * 0, 7, None, None)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [None, BIAS])
def test_linear_top_k(dtype, bias):
    x, weight = X.to(dtype), WEIGHT.to(dtype)
    expected = riffle.linear_top_k(x, weight, 7, bias=bias)
    turned = weight.t().contiguous().t()
    strided = torch.stack([x, x], 2)[:, :, 0]
    padded = torch.stack([weight, weight], 2)[:, :, 0]
    for made in (
        riffle.torch.linear_top_k(x, weight, 7, bias=bias),
        riffle.torch.linear_top_k(x, turned, 7, bias=bias),
        riffle.torch.linear_top_k(strided, padded, 7, bias=bias),
    ):
        assert torch.equal(made.values, expected.values) and torch.equal(made.indices, expected.indices)
    theirs = torch.topk(torch.nn.functional.linear(x.float(), weight.float(), bias), 7)
    torch.testing.assert_close(expected.values, theirs.values, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)


def test_sample_is_riffles():
    tokens, logprobs = riffle.sample(LOGITS, return_logprobs=True, **FILTERS)
    made = riffle.torch.sample(LOGITS, return_logprobs=True, **FILTERS)
    assert torch.equal(made[0], tokens) and torch.equal(made[1], logprobs)
    assert torch.equal(riffle.torch.sample(LOGITS, **FILTERS), tokens)
    strided = torch.stack([LOGITS, LOGITS], 2)[:, :, 0]
    assert torch.equal(riffle.torch.sample(strided, **FILTERS), tokens)
    assert torch.equal(riffle.torch.sample(LOGITS, temperature=0), LOGITS.argmax(1).int())


def test_compiled_code_calls_riffle_sample_for_what_the_operator_does_not_take():
    outside = torch.compiler.disable(riffle.sample)

    def step(x, **options):
        return outside(x * 2, **options) + 1

    compiled = torch.compile(step, backend="eager")
    for length in (1, 3):  # lists of tokens that grow
        tokens = torch.arange(LOGITS.shape[0] * length) % 7, torch.arange(LOGITS.shape[0] + 1) * length
        options = dict(output_tokens=tokens, presence_penalty=1.5, top_k=9, seed=4)
        assert torch.equal(compiled(LOGITS, **options), riffle.sample(LOGITS * 2, **options) + 1)


def test_compile():
    def step(x, weight):
        best = riffle.torch.linear_top_k(x, weight, 5)
        return best.values, best.indices, riffle.torch.sample(x @ weight.t(), top_k=9, top_p=0.8, seed=5)

    for made, wanted in zip(torch.compile(step, fullgraph=True)(X, WEIGHT), step(X, WEIGHT), strict=True):
        torch.testing.assert_close(made, wanted, rtol=0, atol=0)


def test_errors():
    for call in (
        lambda: riffle.torch.linear_top_k(X, WEIGHT, 0), lambda: riffle.torch.linear_top_k(X, WEIGHT, 501),
        lambda: riffle.torch.linear_top_k(X, WEIGHT[:, :3], 5), lambda: riffle.torch.linear_top_k(X.double(), WEIGHT, 5),
        lambda: riffle.torch.sample(LOGITS, temperature=-1.0), lambda: riffle.torch.sample(LOGITS.int()),
        lambda: riffle.torch.sample(LOGITS * float("nan")), lambda: riffle.torch.sample(LOGITS[0]),
        lambda: riffle.torch.sample(LOGITS.to_sparse()),
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            call()
    with pytest.raises(NotImplementedError, match="derivative"):
        riffle.torch.linear_top_k(X.clone().requires_grad_(), WEIGHT, 5).values.sum().backward()


def test_meta_tensors():
    made = riffle.torch.linear_top_k(X.to("meta"), WEIGHT.to("meta"), 5)
    assert made.values.shape == made.indices.shape == (3, 5) and made.indices.dtype == torch.int32
    assert riffle.torch.sample(LOGITS.to("meta")).shape == (4,)

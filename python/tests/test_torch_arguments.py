"""What riffle.torch makes of its arguments: numbers of any kind, default devices, and what it refuses as PyTorch does."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import riffle.torch  # noqa: E402

X = torch.arange(12.0).reshape(3, 4)
LOGITS = torch.randn(4, 300, generator=torch.Generator().manual_seed(3))
INT = torch.int32


def attention_arguments():
    generator = torch.Generator().manual_seed(2)
    keys, values = torch.randn(2, 6, 2, 16, 64, generator=generator).unbind()
    q = torch.randn(2, 4, 64, generator=generator)
    lens, table = torch.tensor([20, 5], dtype=INT), torch.tensor([[0, 1], [2, 3]], dtype=INT)
    return q, keys.clone(), values.clone(), lens, table


ATTENTION = attention_arguments()


def raised_by(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error)
    return None


def through_the_dispatcher(function):
    """function, called where a mode that only watches is active, so that the call goes through torch.ops.riffle."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    def watched(*args, **kwargs):
        with Watch():
            return function(*args, **kwargs)

    return watched


def results_of_every_call():
    """Calls of riffle.torch, and of riffle's own functions on tensors. All tensors are on the CPU, whatever the default device."""
    x = LOGITS[:3, :40].clone()
    indices = LOGITS.new_zeros((4, 5), dtype=INT)
    lens = LOGITS.new_full((4,), 30, dtype=INT)
    attention = [y.clone() for y in ATTENTION]
    yield riffle.torch.topk(x, 3)
    yield riffle.torch.topk(x, 3, 0, False)
    yield riffle.torch.topk(x[0, 0], 1)
    yield riffle.torch.topk(x[0, 0], 0)
    yield riffle.torch.topk(x, 0)
    yield riffle.torch.topk(x, 3, out=(x.new_empty(0), x.new_empty(0, dtype=torch.int64)))
    riffle.torch.top_k_per_row_prefill(LOGITS, lens - 20, lens, indices, 4, 300, 1, 5)
    yield (indices.clone(),)
    riffle.torch.top_k_per_row_decode(LOGITS, 2, lens.reshape(2, 2), indices, 4, 300, 1, 5)
    yield (indices.clone(),)
    riffle.torch.top_k_per_row_decode(LOGITS, 2, lens, indices, 4, 300, 1, 5)
    yield (indices,)
    yield riffle.torch.paged_attention(*attention, return_lse=True)
    yield riffle.torch.linear_top_k(x, x, 2)
    yield riffle.torch.sample(LOGITS, seed=1, return_logprobs=True)
    yield (riffle.torch.sample(LOGITS, temperature=0.5, top_k=7, top_p=0.9, min_p=0.01, seed=1, stream=3, position=5),)
    yield (riffle.sample(LOGITS, seed=1),)
    yield riffle.top_k(x, 3)
    yield (riffle.paged_attention(*attention),)


@pytest.mark.parametrize("how", ["with", "set_default_device"])
def test_a_default_device_changes_nothing(how):
    expected = list(results_of_every_call())
    if how == "with":
        with torch.device("meta"):
            made = list(results_of_every_call())
    else:
        torch.set_default_device("meta")
        try:
            made = list(results_of_every_call())
        finally:
            torch.set_default_device(None)
    for ours, wanted in zip(made, expected, strict=True):
        for a, b in zip(ours, wanted, strict=True):
            assert a.device.type == "cpu" and torch.equal(a, b)


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**63 - 1, 2**63, 2**64 - 1, np.int64(3), np.uint64(2**63 + 5), torch.tensor(9)])
def test_seeds(seed):
    expected = riffle.sample(LOGITS.numpy(), seed=int(seed)).tolist()
    assert riffle.torch.sample(LOGITS, seed=seed).tolist() == expected
    assert through_the_dispatcher(riffle.torch.sample)(LOGITS, seed=seed).tolist() == expected
    assert riffle.torch.sample(LOGITS.clone().requires_grad_(), seed=seed).tolist() == expected


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1"])
def test_wrong_seeds(seed):
    for sample in (riffle.torch.sample, through_the_dispatcher(riffle.torch.sample)):
        with pytest.raises(RuntimeError, match="seed"):
            sample(LOGITS, seed=seed)


def test_numbers_mean_every_row():
    numbers = dict(seed=1, temperature=np.float64(0.5), top_k=np.int64(9), top_p=np.float32(0.9), min_p=0, stream=7, position=np.int32(5))
    expected = riffle.sample(LOGITS.numpy(), **numbers).tolist()
    lists = {name: torch.tensor([value] * 4) for name, value in numbers.items() if name != "seed"} | dict(seed=1)
    scalars = {name: torch.tensor(value) for name, value in numbers.items()}
    for sample in (riffle.torch.sample, through_the_dispatcher(riffle.torch.sample)):
        for given in (numbers, lists, scalars):
            assert sample(LOGITS, **given).tolist() == expected
    assert expected != riffle.sample(LOGITS.numpy(), **numbers | dict(position=6)).tolist()


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64]


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
def test_parameters_of_every_dtype(dtype):
    whole = torch.tensor([1, 0, 2, 1])
    expected = riffle.sample(LOGITS, temperature=whole.float(), top_p=0.9, min_p=torch.tensor([0.0, 0, 1, 1]), seed=1)
    for sample in (riffle.torch.sample, through_the_dispatcher(riffle.torch.sample)):
        made = sample(LOGITS, temperature=whole.to(dtype), top_p=0.9, min_p=torch.tensor([0, 0, 1, 1]).to(dtype), seed=1)
        assert torch.equal(made, expected)
        if dtype in INTEGERS:
            expected_k = riffle.sample(LOGITS, top_k=whole + 2, stream=whole, position=whole * 3)
            made = sample(LOGITS, top_k=(whole + 2).to(dtype), stream=whole.to(dtype), position=(whole * 3).to(dtype))
            assert torch.equal(made, expected_k)
        else:
            for name in ("top_k", "stream", "position"):
                with pytest.raises(RuntimeError, match=name):
                    sample(LOGITS, **{name: whole.to(dtype)})


def test_a_top_k_beyond_int64_is_off():
    huge = torch.tensor([2**63 - 1, 5, 0, 3]).to(torch.uint64)
    huge[0] = 2**64 - 1
    assert torch.equal(riffle.torch.sample(LOGITS, top_k=huge), riffle.sample(LOGITS, top_k=torch.tensor([0, 5, 0, 3])))


def compiled(function):
    from torch._dynamo import config, testing

    torch._dynamo.reset()
    counter = testing.CompileCounterWithBackend("aot_eager")
    assert config.recompile_limit <= 8  # more values are tried below
    return torch.compile(function, fullgraph=True, backend=counter), counter


@pytest.mark.parametrize(
    "values",
    [
        dict(seed=range(12)), dict(seed=[2**63 + i for i in range(12)]), dict(seed=[torch.tensor(i) for i in range(12)]),
        dict(position=range(12)), dict(stream=range(12)), dict(top_k=range(3, 15)),
        dict(temperature=[0.5 + i / 8 for i in range(12)]), dict(top_p=[0.3 + i / 20 for i in range(12)]),
        dict(min_p=[i / 50 for i in range(12)]),
    ],
    ids=lambda values: "".join(values),
)  # fmt: skip
def test_a_parameter_may_change_in_compiled_code(values):
    ((name, numbers),) = values.items()
    run, counter = compiled(lambda x, number: riffle.torch.sample(x, **{"seed": 1, name: number}))
    for number in numbers:
        assert torch.equal(run(LOGITS, number), riffle.torch.sample(LOGITS, **{"seed": 1, name: number}))
    assert counter.frame_count <= 2  # PyTorch takes the first value it sees for a constant


@pytest.mark.parametrize("name", ["window", "window_right", "scale", "soft_cap"])
@pytest.mark.parametrize("kind", ["number", "tensor"])
def test_an_option_of_attention_may_change_in_compiled_code(name, kind):
    options = dict(causal=name != "window_right", cu_q_lens=torch.tensor([0, 2], dtype=INT), return_lse=True)
    q, keys, values, lens, table = attention_arguments()
    arguments = q, keys, values, lens[:1], table[:1]  # two queries of one sequence, so that there is something on the right
    run, counter = compiled(lambda number, *args: riffle.torch.paged_attention(*args, **options, **{name: number}))
    for i in range(12):
        number = i + 2 if "window" in name else (i + 1) / 8
        given = torch.tensor(number) if kind == "tensor" else number
        expected = riffle.paged_attention(*arguments, **options, **{name: number})
        for a, b in zip(run(given, *arguments), expected, strict=True):
            assert torch.equal(a, b)
    assert counter.frame_count <= 2


def test_inductor_takes_changing_numbers():
    @torch.compile(fullgraph=True)
    def step(logits, q, seed, temperature, scale, *rest):
        tokens = riffle.torch.sample(logits, seed=seed, temperature=temperature)
        return tokens, riffle.torch.paged_attention(q, *rest, scale=scale)

    q, *rest = attention_arguments()
    for i in range(10):
        tokens, out = step(LOGITS, q, i, 0.5 + i / 8, (i + 1) / 8, *rest)
        assert torch.equal(tokens, riffle.sample(LOGITS, seed=i, temperature=0.5 + i / 8))
        assert torch.equal(out, riffle.paged_attention(q, *rest, scale=(i + 1) / 8))


def test_options_of_attention_may_be_tensors():
    options = dict(scale=0.25, window=3, window_right=0, soft_cap=5.0)
    expected = riffle.paged_attention(*attention_arguments(), **options)
    tensors = {name: torch.tensor(value) for name, value in options.items()}
    for attend in (riffle.torch.paged_attention, through_the_dispatcher(riffle.torch.paged_attention)):
        assert torch.equal(attend(*attention_arguments(), **options), expected)
        assert torch.equal(attend(*attention_arguments(), **tensors), expected)


def test_logprobs_are_computed_on_request_only():
    operator = torch.ops.riffle.sample
    one, zero = torch.ones(1), torch.zeros(1, dtype=INT)
    tokens, logprobs = operator(LOGITS, one, zero, one, one * 0, 7, None, None, False)
    assert logprobs.shape == (0,) and torch.equal(tokens, riffle.sample(LOGITS, seed=7))
    tokens, logprobs = operator(LOGITS, one, zero, one, one * 0, 7)
    assert torch.equal(logprobs, riffle.sample(LOGITS, seed=7, return_logprobs=True)[1])
    torch.library.opcheck(operator.default, (LOGITS, one, zero, one, one * 0, 7, None, None, False))


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("route", [riffle.torch.sample, through_the_dispatcher(riffle.torch.sample), torch.compile(riffle.torch.sample, backend="aot_eager")],
                         ids=["direct", "dispatcher", "compiled"])  # fmt: skip
def test_no_route_asks_the_kernel_for_logprobs_of_its_own(monkeypatch, route, wanted):
    asked = []
    kernel = riffle._core.sample
    monkeypatch.setattr(riffle._core, "sample", lambda *arguments: asked.append(arguments[8]) or kernel(*arguments))
    route(LOGITS, temperature=0.5, top_k=64, top_p=0.95, seed=1, return_logprobs=wanted)
    assert asked == [wanted]


INT_ARRAY = np.zeros(4, np.int32)
CALLS = {
    "topk": (riffle.torch.topk, dict(input=X, k=2)),
    "linear_top_k": (riffle.torch.linear_top_k, dict(x=X, weight=X, k=2, bias=torch.ones(3))),
    "sample": (riffle.torch.sample, dict(logits=LOGITS, temperature=X[0], top_k=torch.ones(4, dtype=INT), top_p=X[0] * 0,
                                         min_p=X[0] * 0, stream=torch.arange(4), position=torch.arange(4))),
    "paged_attention": (
        riffle.torch.paged_attention,
        dict(zip(("q", "keys", "values", "kv_lens", "page_table"), attention_arguments()),
             cu_q_lens=torch.arange(3, dtype=INT), sinks=torch.zeros(4)),
    ),
    "top_k_per_row_prefill": (
        riffle.torch.top_k_per_row_prefill,
        dict(logits=X, row_starts=torch.zeros(3, dtype=INT), row_ends=torch.ones(3, dtype=INT),
             indices=torch.zeros(3, 2, dtype=INT), num_rows=3, stride0=4, stride1=1, top_k=2),
    ),
    "top_k_per_row_decode": (
        riffle.torch.top_k_per_row_decode,
        dict(logits=X, next_n=1, seq_lens=torch.ones(3, dtype=INT), indices=torch.zeros(3, 2, dtype=INT), num_rows=3,
             stride0=4, stride1=1, top_k=2),
    ),
}  # fmt: skip
TENSORS = [(call, name) for call, (_, given) in CALLS.items() for name, x in given.items() if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("call, name", TENSORS)
def test_arrays_that_are_no_tensors(call, name):
    function, given = CALLS[call]
    function(**given)
    for array in (given[name].numpy(), given[name].tolist()):
        for run in (function, through_the_dispatcher(function)):
            with pytest.raises(TypeError, match=rf"^{call}\(\): argument '{name}'.* must be .*Tensor, not (list|numpy.ndarray)$"):
                run(**given | {name: array})


@pytest.mark.parametrize("call", CALLS)
def test_none_is_no_tensor(call):
    function, given = CALLS[call]
    with pytest.raises(TypeError, match="must be Tensor, not NoneType"):
        function(**given | {next(iter(given)): None})


FLAGS = [True, False, None, 0, 1, "a", "", 1.0, np.bool_(True), np.int64(1), torch.tensor(True), []]


@pytest.mark.parametrize("flag", FLAGS, ids=repr)
@pytest.mark.parametrize("name", ["largest", "sorted"])
def test_flags_of_topk_are_as_strict_as_torchs(name, flag):
    assert raised_by(riffle.torch.topk, X, 2, **{name: flag}) is raised_by(torch.topk, X, 2, **{name: flag})


WHOLE = [0, 1, True, False, None, "1", 1.0, np.int64(1), np.int32(0), np.uint8(1), np.array(1), np.float32(1), [1],
         torch.tensor(1), torch.tensor([1]), torch.tensor(1.0), 5, -5]  # fmt: skip


@pytest.mark.parametrize("number", WHOLE, ids=repr)
@pytest.mark.parametrize("name", ["k", "dim"])
def test_ints_of_topk_are_as_strict_as_torchs(name, number):
    given = dict(k=2) | {name: number}
    assert raised_by(riffle.torch.topk, X, **given) is raised_by(torch.topk, X, **given)


def test_ints_of_topk_beyond_int64_are_out_of_range():
    for k in (2**63, 2**70, -(2**70)):
        with pytest.raises(RuntimeError, match="out of range"):
            riffle.torch.topk(X, k)
    with pytest.raises(IndexError, match="out of range"):
        riffle.torch.topk(X, 2, 2**70)


def out_pair():
    return torch.empty(0), torch.empty(0, dtype=torch.int64)


@pytest.mark.parametrize(
    "out, text",
    [
        (X, "must be tuple of Tensors, not Tensor"), ("ab", "must be tuple of Tensors, not str"), (5, "not int"),
        (out_pair()[:1], "has 1 elements"), ((*out_pair(), X), "has 3 elements"), ((), "has 0 elements"),
        ((X, None), "indices are NoneType"), ((np.empty(3), out_pair()[1]), "values are numpy.ndarray"),
    ],
)  # fmt: skip
def test_out_of_topk_is_a_pair(out, text):
    with pytest.raises(TypeError, match=text):
        riffle.torch.topk(X, 2, out=out)
    assert raised_by(torch.topk, X, 2, out=out) is TypeError


def test_out_of_topk_may_be_a_list():
    values, indices = riffle.torch.topk(X, 2, out=list(out_pair()))
    assert torch.equal(values, torch.topk(X, 2).values) and indices.shape == (3, 2)


@pytest.mark.parametrize("devices", [("meta", "cpu"), ("cpu", "meta"), ("meta", "meta")])
def test_out_of_topk_on_another_device(devices):
    out = tuple(x.to(device) for x, device in zip(out_pair(), devices))
    assert raised_by(torch.topk, X, 2, out=out) is RuntimeError
    with pytest.raises(RuntimeError, match="on device meta but input is on cpu"):
        riffle.torch.topk(X, 2, out=out)
    assert all(x.numel() == 0 for x in out)
    with pytest.raises(RuntimeError, match="on device cpu but input is on meta"):
        riffle.torch.topk(X.to("meta"), 2, out=out_pair())
    meta = tuple(x.to("meta") for x in out_pair())
    assert riffle.torch.topk(X.to("meta"), 2, out=meta).values.shape == (3, 2)


def test_a_sparse_out_of_topk():
    out = out_pair()[0].to_sparse(), out_pair()[1]
    assert raised_by(riffle.torch.topk, X, 2, out=out) is raised_by(torch.topk, X, 2, out=out) is NotImplementedError


def test_compiled_code_refuses_the_same():
    for given in (dict(largest=None), dict(dim=True), dict(k="2"), dict(out=X)):
        with pytest.raises(Exception, match="must be"):
            torch.compile(lambda x: riffle.torch.topk(x, **(dict(k=2) | given)), fullgraph=True, backend="eager")(X)


@pytest.mark.parametrize("causal", ["no", None, 0, 1, 0.5, [], "True"], ids=repr)
def test_causal_is_a_bool(causal):
    with pytest.raises(TypeError, match="causal must be a bool"):
        riffle.paged_attention(*attention_arguments(), causal=causal)
    for attend in (riffle.torch.paged_attention, through_the_dispatcher(riffle.torch.paged_attention)):
        with pytest.raises(RuntimeError, match="causal must be a bool"):
            attend(*attention_arguments(), causal=causal)


def test_causal_of_numpy():
    for causal in (True, False):
        expected = riffle.paged_attention(*attention_arguments(), causal=causal)
        for attend in (riffle.torch.paged_attention, through_the_dispatcher(riffle.torch.paged_attention)):
            assert torch.equal(attend(*attention_arguments(), causal=np.bool_(causal)), expected)

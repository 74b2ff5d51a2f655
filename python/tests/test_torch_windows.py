"""riffle.torch.paged_attention with windows on both sides: against NumPy in double, on every route that a call takes."""

import pytest
from attention_case import Case

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import riffle  # noqa: E402
import riffle.torch  # noqa: E402

WINDOWS = [
    dict(causal=False, window_right=0), dict(causal=False, window_right=1), dict(causal=False, window_right=1000),
    dict(causal=False, window=7, window_right=2), dict(causal=False, window=1, window_right=5), dict(causal=True, window=4, window_right=0),
]  # fmt: skip


def direct(case, **options):
    tensors = [torch.from_numpy(x) for x in (case.q, case.keys, case.values, case.kv_lens, case.page_table)]
    return riffle.torch.paged_attention(*tensors, cu_q_lens=torch.from_numpy(case.cu_q_lens), return_lse=True, **options)


def dispatched(case, **options):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with Watch():
        return direct(case, **options)


def compiled(case, **options):
    torch._dynamo.reset()
    return torch.compile(lambda: direct(case, **options), backend="aot_eager")()


@pytest.mark.parametrize("route", [direct, dispatched, compiled])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_windows(route, window):
    case = Case([40, 3, 9, 0], [12, 3, 1, 0], page_size=4)
    out, lse = (x.numpy() for x in route(case, **window))
    case.check(out, lse, **window)


def test_symbolic_window():
    """A window of the shapes that are traced is a SymInt in the graph."""
    case = Case([40], [12])

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def attend(q, keys, values, lens, table, cu, like):
        return riffle.torch.paged_attention(
            q, keys, values, lens, table, cu_q_lens=cu, causal=False, window=like.shape[0], window_right=like.shape[1], return_lse=True
        )

    tensors = [torch.from_numpy(x) for x in (case.q, case.keys, case.values, case.kv_lens, case.page_table, case.cu_q_lens)]
    for window, window_right in ((3, 2), (9, 4), (2, 11)):
        out, lse = attend(*tensors, torch.zeros(window, window_right))
        case.check(out.numpy(), lse.numpy(), causal=False, window=window, window_right=window_right)


@pytest.mark.parametrize("route", [direct, dispatched])
@pytest.mark.parametrize("options,text", [
    (dict(causal=False, window_right=-1), "window_right = -1 is negative"),
    (dict(window_right=2), "window_right = 2 but causal is set"),
    (dict(causal=False, window_right=1.5), "window_right must be an int, not 1.5"),
    (dict(causal=False, window_right="2"), "window_right must be an int, not '2'"),
])  # fmt: skip
def test_wrong_windows(route, options, text):
    with pytest.raises(RuntimeError, match=text):
        route(Case([9, 5]), **options)

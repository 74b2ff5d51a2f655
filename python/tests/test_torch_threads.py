"""riffle.torch.use_torch_threads: the same bits on PyTorch's threads, and no threads of riffle's own."""

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import riffle  # noqa: E402
import riffle.torch  # noqa: E402


@pytest.fixture
def on_torch_threads():
    if not riffle.torch.use_torch_threads():
        pytest.skip("PyTorch's OpenMP has no GOMP_parallel")
    yield
    assert riffle.torch.use_torch_threads(False) is False


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_are_the_same(on_torch_threads, threads):
    x = torch.randn(7, 50000, generator=torch.Generator().manual_seed(3))
    riffle.torch.use_torch_threads(False)
    expected = riffle.torch.topk(x, 64)
    riffle.torch.use_torch_threads()
    riffle.set_num_threads(threads)
    for _ in range(20):
        values, indices = riffle.torch.topk(x, 64)
        assert torch.equal(values, expected.values) and torch.equal(indices, expected.indices)


def test_it_takes_as_many_as_torch(on_torch_threads):
    before = torch.get_num_threads()
    try:
        for threads in (3, 1):
            torch.set_num_threads(threads)
            riffle.torch.use_torch_threads()
            assert riffle.info()["threads"] == threads
    finally:
        torch.set_num_threads(before)


COUNT = """
import os, torch, riffle.torch
torch.set_num_threads(3)
x = torch.randn(64, 20000)
if not riffle.torch.use_torch_threads(): raise SystemExit(77)
torch.mm(torch.randn(500, 500), torch.randn(500, 500)), x.exp()  # PyTorch's threads have started
before = len(os.listdir("/proc/self/task"))
expected = riffle.torch.topk(x, 64)
assert len(os.listdir("/proc/self/task")) == before, "riffle has started threads"
child = os.fork()
if child == 0:  # OpenMP has no threads here
    os._exit(not torch.equal(riffle.torch.topk(x, 64).indices, expected.indices))
assert os.waitpid(child, 0)[1] == 0
riffle.torch.use_torch_threads(False)
riffle.set_num_threads(4)
assert len(os.listdir("/proc/self/task")) > before
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_there_is_one_set_of_threads():
    code = subprocess.run([sys.executable, "-c", COUNT], timeout=60).returncode
    if code == 77:
        pytest.skip("PyTorch's OpenMP has no GOMP_parallel")
    assert code == 0

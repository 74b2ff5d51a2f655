"""Fixtures: array frameworks, and a process that every test leaves as it found it."""

import pytest
import riffle
from frameworks import FRAMEWORKS


@pytest.fixture(autouse=True, scope="session")
def _threads_of_its_own():
    """riffle's own threads, whatever examples in docstrings have chosen before."""
    riffle._core.set_parallel_region(0)


@pytest.fixture(autouse=True)
def _restore_process():
    threads = riffle.info()["threads"]
    yield
    riffle.set_target(None)
    riffle.set_num_threads(threads)


@pytest.fixture(params=FRAMEWORKS)
def framework(request):
    """Each framework in turn; those that are not installed are skipped."""
    return request.param()


@pytest.fixture(params=riffle.info()["targets"])
def target(request):
    """Each SIMD target of this machine in turn, in use."""
    riffle.set_target(request.param)
    return request.param

"""Version, SIMD targets, threads and scratch."""

from __future__ import annotations

from riffle import _core


def info() -> dict:
    """The version, the SIMD targets and the threads of this process.

    Returns a dict of
      version  str
      target   str, the SIMD target that kernels run on, by Highway's name
      targets  list of str, those this machine can run, best first
      threads  int, threads of a call, the caller's among them

    >>> import riffle
    >>> sorted(riffle.info())
    ['target', 'targets', 'threads', 'version']
    >>> riffle.info()["version"] == riffle.__version__
    True
    """
    return _core.info()


def release_scratch() -> None:
    """Frees the scratch memory that calls keep, for the thread pool and for the calling thread.

    Each of its buffers is as large as its largest call needed, up to 128 MiB; larger ones are given back when their call
    ends. The next call makes its own anew. Waits for a running call to end.

    >>> import riffle
    >>> riffle.release_scratch()
    """
    _core.release_scratch()


def set_num_threads(n: int) -> None:
    """Sets how many threads a call may use, the caller's among them; 1 to 1024.

    At the start that is RIFFLE_NUM_THREADS, else the CPUs this process may use. Results do not depend on it. Waits for
    a running call to end.
    """
    _core.set_num_threads(n)


def set_target(name: str | None) -> None:
    """Forces the SIMD target of all later calls in this process; None returns to the best.

    `name` is one of `info()["targets"]`; another raises ValueError. RIFFLE_TARGET does the same from outside. Results
    of top-k do not depend on it; those of attention and of linear layers are rounded differently on some targets. Calls that
    run go on with the target they began with.
    """
    _core.set_target(name)

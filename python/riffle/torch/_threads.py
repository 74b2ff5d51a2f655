"""Riffle on PyTorch's own threads."""

from __future__ import annotations

import ctypes
import functools
import pathlib

import torch

import riffle
from riffle import _core


def use_torch_threads(use: bool = True) -> bool:
    """Makes calls of riffle run on PyTorch's threads, as many as torch.get_num_threads() says, or on its own again.

    PyTorch's idle threads keep spinning on the CPUs for a while, and riffle's own have to be woken: between calls of
    PyTorch, one set of threads is quicker than two. This applies to the whole process, to all of riffle's entry points. Results
    do not depend on it. riffle.set_num_threads still changes the number, but OpenMP starts threads anew whenever riffle and PyTorch
    ask for different ones. Waits for a running call to end.

    Returns whether calls run on PyTorch's threads now. They do not where PyTorch was built without OpenMP, or with an OpenMP
    that lacks GOMP_parallel, the entry point of GNU's (LLVM's and Intel's have it).

    >>> import riffle.torch
    >>> riffle.torch.use_torch_threads(False)
    False
    """
    region = _gomp_parallel() if use else 0
    _core.set_parallel_region(region)
    if region:
        riffle.set_num_threads(torch.get_num_threads())
    return bool(region)


@functools.cache
def _gomp_parallel() -> int:
    """The address of the function in the OpenMP that PyTorch runs on; 0 where there is none.

    The global scope comes first, as for the linker: an OpenMP that was preloaded (LD_PRELOAD) serves PyTorch instead of
    the one that PyTorch was linked to, which is loaded beside it and would start threads of its own.
    """
    if not torch.backends.openmp.is_available():
        return 0
    for library in (None, *map(str, pathlib.Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"))):
        try:  # libtorch_cpu is loaded already; names are looked up in what it depends on, too
            return ctypes.cast(ctypes.CDLL(library).GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            continue
    return 0

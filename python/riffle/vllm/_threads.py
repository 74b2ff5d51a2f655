"""Riffle runs on the threads that vLLM gave the worker."""

from __future__ import annotations

import torch

import riffle
import riffle.torch


def use_pytorch_threads() -> int:
    """Makes Riffle's calls run on PyTorch's threads, or on as many of its own. Returns how many.

    vLLM binds a worker to the CPUs that VLLM_CPU_OMP_THREADS_BIND names by OpenMP's environment variables, before the
    worker starts, so what PyTorch has is what the worker may use. The CPU mask of the calling thread would not do: OpenMP
    binds each thread, the calling one included, to one CPU.
    """
    if not riffle.torch.use_torch_threads():
        riffle.set_num_threads(torch.get_num_threads())
    return riffle.info()["threads"]

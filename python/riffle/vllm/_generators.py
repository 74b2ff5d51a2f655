"""Requests with a seed while their prompt is read in chunks.

vLLM samples a token after each chunk, drops all but the last, and undoes the draws of the dropped ones by resetting the offsets of
their generators. Generators on CPUs have no offset, so this fails. Here such a request's generator is out of sight while
a token that will be dropped is drawn, so there is nothing to take back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from riffle.vllm._interfaces import InterfaceMismatch, expect_attributes, expect_parameters, find


def install() -> None:
    """Hides generators from the CPU's model runner. Does nothing where vLLM's interfaces differ."""
    try:
        runner = find("vllm.v1.worker.cpu_model_runner", "CPUModelRunner")
        expect_parameters(runner._sample, "self", "logits", "spec_decode_metadata")
        expect_parameters(runner._bookkeeping_sync, "self", "scheduler_output", "sampler_output")
        expect_attributes(find("vllm.v1.worker.gpu_model_runner", "GPUModelRunner"), "input_batch", "discard_request_mask")
        expect_attributes(find("vllm.v1.worker.gpu_input_batch", "InputBatch"), "generators")
    except (AttributeError, InterfaceMismatch):
        return
    runner._sample = _without_dropped(runner._sample)
    runner._bookkeeping_sync = _without_dropped(runner._bookkeeping_sync)


def _without_dropped(method: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(runner: Any, *args: Any, **kwargs: Any) -> Any:
        with _hide_dropped_generators(runner):
            return method(runner, *args, **kwargs)

    return wrapped


@contextlib.contextmanager
def _hide_dropped_generators(runner: Any) -> Iterator[None]:
    generators = runner.input_batch.generators
    dropped = runner.discard_request_mask.np
    hidden = {row: generators.pop(row) for row in list(generators) if row < runner.input_batch.num_reqs and dropped[row]}
    try:
        yield
    finally:
        generators.update(hidden)

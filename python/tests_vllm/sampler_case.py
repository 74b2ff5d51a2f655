"""vLLM's sampler with Riffle in it and without, in one process, and batches for both."""

import contextlib
import sys
from collections.abc import Iterator

import llama_case

llama_case.in_one_process()

import riffle.vllm._sampler  # noqa: E402
import torch  # noqa: E402
import vllm.v1.sample.rejection_sampler  # noqa: E402, F401
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402
from vllm.v1.sample.logits_processor import LogitsProcessors  # noqa: E402
from vllm.v1.sample.logits_processor.builtin import MinPLogitsProcessor  # noqa: E402
from vllm.v1.sample.metadata import SamplingMetadata  # noqa: E402
from vllm.v1.sample.ops import topk_topp_sampler  # noqa: E402
from vllm.v1.sample.rejection_sampler import RejectionSampler  # noqa: E402
from vllm.v1.sample.sampler import Sampler  # noqa: E402
from vllm.v1.worker.cpu_model_runner import CPUModelRunner  # noqa: E402

OWNERS = [
    Sampler, topk_topp_sampler.TopKTopPSampler, MinPLogitsProcessor, Scheduler, RejectionSampler, CPUModelRunner,
    *(module for name, module in sorted(sys.modules.items()) if name.startswith("vllm.")),
]  # fmt: skip


def _attributes() -> dict:
    return {(owner, name): value for owner in OWNERS for name, value in list(vars(owner).items())}


_before = _attributes()
REASON = riffle.vllm._sampler.install()
_after = _attributes()
# What install() has put in vLLM's place.
CHANGED = {key: (_before.get(key), value) for key, value in _after.items() if _before.get(key) is not value}


@contextlib.contextmanager
def native() -> Iterator[None]:
    """vLLM as it is without Riffle."""
    for (owner, name), (value, _) in CHANGED.items():
        setattr(owner, name, value) if value is not None else delattr(owner, name)
    try:
        yield
    finally:
        for (owner, name), (_, value) in CHANGED.items():
            setattr(owner, name, value)


def batch(
    rows: int,
    temperature: float | list[float] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float = 0.0,
    generators: dict[int, torch.Generator] | None = None,
    **more,
) -> SamplingMetadata:
    """The metadata of a batch, as vLLM's worker makes it. Lists are per row."""
    temperatures = torch.tensor(temperature, dtype=torch.float32).expand(rows).contiguous()
    fields = {
        "temperature": temperatures, "all_greedy": bool((temperatures == 0).all()), "all_random": bool((temperatures > 0).all()),
        "top_p": None if top_p is None else torch.full((rows,), top_p),
        "top_k": None if top_k is None else torch.full((rows,), top_k, dtype=torch.int32),
        "generators": generators or {}, "max_num_logprobs": None, "no_penalties": True, "prompt_token_ids": None,
        "frequency_penalties": torch.zeros(rows), "presence_penalties": torch.zeros(rows), "repetition_penalties": torch.ones(rows),
        "output_token_ids": [[] for _ in range(rows)], "allowed_token_ids_mask": None, "bad_words_token_ids": {},
        "logitsprocs": LogitsProcessors([min_p_processor(rows, min_p)] if min_p else []),
    }  # fmt: skip
    return SamplingMetadata(**fields | more)


def min_p_processor(rows: int, min_p: float) -> MinPLogitsProcessor:
    processor = MinPLogitsProcessor.__new__(MinPLogitsProcessor)
    processor.min_p_count = rows
    processor.min_p = torch.full((rows, 1), min_p)
    return processor

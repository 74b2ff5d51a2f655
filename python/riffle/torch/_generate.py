"""From hidden state to token: the LM head's top-k, and sampling."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

import riffle
from riffle.torch._library import LIBRARY, call, in_cpu_memory, no_gradient, plain


def linear_top_k(x: Tensor, weight: Tensor, k: int, *, bias: Tensor | None = None) -> riffle.TopK:
    """riffle.linear_top_k as an operator of PyTorch: top-k of torch.nn.functional.linear without its result.

    Arguments, shapes and results are riffle.linear_top_k's: values float32, indices int32. An x whose last axis is not
    contiguous is made so; weight is read in place where either of its axes is contiguous, else made so.

    Raises:
      RuntimeError: what riffle.linear_top_k calls ValueError or TypeError; nothing has been written then.
      NotImplementedError: a device that is not the CPU; backward.
    """
    if not is_compiling() and plain(x, weight, bias) and in_cpu_memory(x):
        return riffle.TopK(*_linear_cpu(x, weight, k, bias))
    return riffle.TopK(*torch.ops.riffle.linear_top_k(x, weight, k, bias))


def _linear_cpu(x, weight, k, bias=None):
    if x.dim() == 2 and x.stride(1) != 1 and x.shape[1] > 1:
        x = x.contiguous()
    if weight.dim() == 2 and 1 not in weight.stride() and min(weight.shape) > 1:
        weight = weight.contiguous()
    return tuple(call(riffle.linear_top_k, x, weight, k, bias=bias))


def _linear_direct(x, weight, k, bias=None):
    return _linear_cpu(x, weight, k, bias) if plain(x, weight, bias) and in_cpu_memory(x) else None


def _linear_fake(x, weight, k, bias=None):
    torch._check(x.dim() == 2 and weight.dim() == 2, lambda: "x must be [rows, d] and weight [vocab, d]")
    torch._check(x.shape[1] == weight.shape[1], lambda: "x and weight must have the same d")
    shape = x.shape[0], k
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.int32)


def sample(
    logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    seed: int = 0,
    stream: Tensor | None = None,
    position: Tensor | None = None,
    return_logprobs: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """riffle.sample as an operator of PyTorch.

    Arguments, shapes and results are riffle.sample's: int32 tokens, and float32 log-probabilities if asked for. Logits
    whose last axis is not contiguous are made so.

    Raises:
      RuntimeError: what riffle.sample calls ValueError or TypeError; nothing has been written then.
      NotImplementedError: a device that is not the CPU; backward through the log-probabilities.
    """
    filters = (temperature, top_k, top_p, min_p)
    lists = [*(f for f in filters if isinstance(f, Tensor)), stream, position]
    if not is_compiling() and plain(logits, *lists) and in_cpu_memory(logits):
        result = _sample(logits, *filters, seed, stream, position)
    else:
        dtypes = (torch.float32, torch.int32, torch.float32, torch.float32)
        made = (
            f if isinstance(f, Tensor) else torch.tensor([f], dtype=dtype) for f, dtype in zip(filters, dtypes)
        )
        result = torch.ops.riffle.sample(logits, *made, seed, stream, position)
    return tuple(result) if return_logprobs else result[0]


def _sample(logits, temperature, top_k, top_p, min_p, seed, stream, position):
    if logits.dim() == 2 and logits.stride(1) != 1 and logits.shape[1] > 1:
        logits = logits.contiguous()
    return call(
        riffle.sample, logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed,
        stream=stream, position=position, return_logprobs=True,
    )  # fmt: skip


def _sample_cpu(logits, *arguments):
    *filters, seed, stream, position = arguments
    rows = logits.shape[0] if logits.dim() else 0
    # One element stands for all rows.
    filters = [f.expand(rows) if f.dim() == 1 and f.shape[0] == 1 else f for f in filters]
    return tuple(_sample(logits, *filters, seed, stream, position))


def _sample_fake(logits, *arguments):
    torch._check(logits.dim() == 2, lambda: "logits must be [rows, vocab]")
    rows = (logits.shape[0],)
    return logits.new_empty(rows, dtype=torch.int32), logits.new_empty(rows, dtype=torch.float32)


_TAGS = (torch.Tag.pt2_compliant_tag,)
LIBRARY.define(
    "linear_top_k(Tensor x, Tensor weight, SymInt k, Tensor? bias=None) -> (Tensor values, Tensor indices)", tags=_TAGS
)
LIBRARY.impl("linear_top_k", _linear_cpu, "CPU")
LIBRARY.direct["linear_top_k"] = _linear_direct
torch.library.register_fake("riffle::linear_top_k", _linear_fake, lib=LIBRARY)
no_gradient("linear_top_k")

LIBRARY.define(
    "sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, int seed, Tensor? stream, "
    "Tensor? position) -> (Tensor tokens, Tensor logprobs)",
    tags=_TAGS,
)
LIBRARY.impl("sample", _sample_cpu, "CPU")
torch.library.register_fake("riffle::sample", _sample_fake, lib=LIBRARY)
no_gradient("sample")

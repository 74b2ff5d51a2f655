"""From hidden state to token: the LM head's top-k, and sampling."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.compiler import is_compiling

import riffle
from riffle._arguments import as_bool, as_float, as_int
from riffle.torch._library import (
    LIBRARY,
    call,
    can_bypass_dispatcher,
    check_tensors,
    in_cpu_memory,
    integer,
    kind_of,
    no_gradient,
    number_as_tensor,
)


def linear_top_k(x: Tensor, weight: Tensor, k: int, *, bias: Tensor | None = None) -> riffle.TopK:
    """riffle.linear_top_k as an operator of PyTorch: top-k of torch.nn.functional.linear without its result.

    Arguments, shapes and results are riffle.linear_top_k's: values float32, indices int32. An x whose last axis is not
    contiguous is made so; weight is read in place where either of its axes is contiguous, else made so.

    Raises:
      RuntimeError: what riffle.linear_top_k calls ValueError or TypeError; nothing has been written then.
      NotImplementedError: a device that is not the CPU; backward.
      TypeError: x, weight or bias is not a tensor.
    """
    if not is_compiling() and can_bypass_dispatcher(x, weight, optional=(bias,)) and in_cpu_memory(x):
        return riffle.TopK(*_linear_cpu(x, weight, k, bias))
    check_tensors("linear_top_k", dict(x=x, weight=weight), dict(bias=bias))
    return riffle.TopK(*torch.ops.riffle.linear_top_k(x, weight, integer("k", k), bias))


def _linear_cpu(x, weight, k, bias=None):
    if x.dim() == 2 and x.stride(1) != 1 and x.shape[1] > 1:
        x = x.contiguous()
    if weight.dim() == 2 and 1 not in weight.stride() and min(weight.shape) > 1:
        weight = weight.contiguous()
    return tuple(call(riffle.linear_top_k, x, weight, k, bias=bias))


def _linear_fast_path(x, weight, k, bias=None):
    return _linear_cpu(x, weight, k, bias) if can_bypass_dispatcher(x, weight, optional=(bias,)) and in_cpu_memory(x) else None


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
    seed: int | Tensor = 0,
    stream: int | Tensor | None = None,
    position: int | Tensor | None = None,
    return_logprobs: bool = False,
    on_invalid: Literal["raise", "token"] = "raise",
) -> Tensor | tuple[Tensor, Tensor]:
    """riffle.sample as an operator of PyTorch.

    Arguments, shapes and results are riffle.sample's: int32 tokens, and float32 log-probabilities if asked for. Logits
    whose last axis is not contiguous are made so. Parameters may be tensors of any float or integer dtype; top_k, seed, stream
    and position of any integer dtype.

    Under torch.compile all parameters, the seed included, may change from call to call without compiling anew.

    What riffle.sample takes beside these (allowed, logit_bias, penalties, prompt_tokens, output_tokens, top_logprobs) is not part
    of the operator, because the lists of servers change their lengths at every step. riffle.sample itself takes tensors; compiled
    code calls it as torch.compiler.disable(riffle.sample), which breaks the graph there.

    Raises:
      RuntimeError: what riffle.sample calls ValueError or TypeError; nothing has been written then.
      NotImplementedError: a device that is not the CPU; backward through the log-probabilities.
      TypeError: logits is not a tensor; a parameter is neither a tensor nor a number.
    """
    parameters = temperature, top_k, top_p, min_p, stream, position
    tensors = [p for p in (*parameters, seed) if type(p) is not float and type(p) is not int]
    if type(return_logprobs) is not bool:
        return_logprobs = call(as_bool, "return_logprobs", return_logprobs)
    if not is_compiling() and can_bypass_dispatcher(logits, optional=tensors) and in_cpu_memory(logits):
        return _sample(logits, *parameters[:4], seed, stream, position, return_logprobs, on_invalid)
    check_tensors("sample", dict(logits=logits))
    filters = [_parameter(name, p) for name, p in zip(("temperature", "top_k", "top_p", "min_p"), parameters)]
    draws = [_parameter(name, p) for name, p in (("stream", stream), ("position", position))]
    seeds = seed if isinstance(seed, Tensor) and seed.dim() > 0 else None
    number = _signed(seed) if seeds is None else 0
    result = torch.ops.riffle.sample(logits, *filters, number, *draws, return_logprobs, seeds, on_invalid)
    return tuple(result) if return_logprobs else result[0]


_INTEGER_PARAMETERS = ("top_k", "stream", "position")


def _parameter(name, value):
    """A parameter as the operator takes it: a tensor in the memory of the CPU, whatever the default device; or None."""
    if isinstance(value, Tensor) or (value is None and name in ("stream", "position")):
        return value
    integral = name in _INTEGER_PARAMETERS
    if is_compiling():
        if not isinstance(value, int if integral else (int, float)):
            raise TypeError(f"sample(): argument '{name}' must be a number or Tensor, not {kind_of(value)}")
        return torch.tensor([value], dtype=torch.int64, device="cpu") if integral else number_as_tensor(value)
    try:
        number = min(max(as_int(name, value), -(2**63)), 2**63 - 1) if integral else as_float(name, value)
    except TypeError:
        number = None
    if number is None or getattr(value, "ndim", 0) != 0:
        raise TypeError(
            f"sample(): argument '{name}' must be {'an int' if integral else 'a number'} or Tensor, not {kind_of(value)}"
        )
    return torch.tensor([number], dtype=torch.int64 if integral else torch.float64, device="cpu")


def _signed(seed):
    """The int64 with the bits of a seed of 0 to 2^64 - 1, which is what an operator takes."""
    if isinstance(seed, Tensor):
        seed = seed.item()
    if not is_compiling():
        seed = integer("seed", seed)
        torch._check(0 <= seed < 2**64, lambda: f"seed = {seed} is not in 0..2^64 - 1")
    elif isinstance(seed, int):
        torch._check(seed >= 0, lambda: "seed is not in 0..2^64 - 1")
    return seed - 2**64 if seed >= 2**63 else seed


def _sample(logits, temperature, top_k, top_p, min_p, seed, stream, position, return_logprobs, on_invalid):
    if logits.dim() == 2 and logits.stride(1) != 1 and logits.shape[1] > 1:
        logits = logits.contiguous()
    return call(
        riffle.sample, logits, temperature=_to_supported_dtype(temperature, False), top_k=_to_supported_dtype(top_k, True),
        top_p=_to_supported_dtype(top_p, False), min_p=_to_supported_dtype(min_p, False), seed=_to_supported_seed(seed),
        stream=_to_supported_dtype(stream, True), position=_to_supported_dtype(position, True),
        return_logprobs=return_logprobs, on_invalid=on_invalid,
    )  # fmt: skip


_INTEGERS = tuple(getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64))


def _to_supported_dtype(value, integral):
    """A parameter in a dtype that riffle.sample takes; numbers beyond int64 become its limit."""
    if not isinstance(value, Tensor):
        return value
    dtype = value.dtype
    if integral and dtype in _INTEGERS and dtype not in (torch.int32, torch.int64):
        if dtype is torch.uint64:
            return torch.from_numpy(value.numpy().clip(max=2**63 - 1).astype("int64"))
        return value.to(torch.int64)
    if not integral and (dtype in _INTEGERS or (dtype.is_floating_point and dtype not in (torch.float32, torch.float64))):
        return value.to(torch.float64)
    return value


def _to_supported_seed(seed):
    if isinstance(seed, Tensor):
        return seed.item() if seed.dim() == 0 else seed.numpy() if seed.dtype is torch.uint64 else _to_supported_dtype(seed, True)
    return seed


def apply_top_k_top_p_(
    logits: Tensor, top_k: int | Tensor | None, top_p: float | Tensor | None, min_p: float | Tensor | None = None
) -> Tensor:
    """riffle.apply_top_k_top_p_ as an operator of PyTorch that writes logits in place: torch.compile keeps it.

    Arguments are riffle.apply_top_k_top_p_'s; filters may be tensors of any float dtype, top_k of any integer dtype.

    Raises:
      RuntimeError: what riffle.apply_top_k_top_p_ calls ValueError or TypeError; nothing has been written then.
      NotImplementedError: a device that is not the CPU.
      TypeError: logits is not a tensor; a filter is neither a tensor, a number nor None.
    """
    filters = top_k, top_p, min_p
    tensors = [f for f in filters if type(f) is not float and type(f) is not int]
    if not is_compiling() and can_bypass_dispatcher(logits, optional=tensors) and in_cpu_memory(logits):
        _filter(logits, *filters)
        return logits
    check_tensors("apply_top_k_top_p_", dict(logits=logits))
    given = [None if f is None else _parameter(name, f) for name, f in zip(("top_k", "top_p", "min_p"), filters)]
    torch.ops.riffle.apply_top_k_top_p_(logits, *given)
    return logits


def _filter(logits, top_k, top_p, min_p=None):
    call(riffle.apply_top_k_top_p_, logits, _to_supported_dtype(top_k, True), _to_supported_dtype(top_p, False), _to_supported_dtype(min_p, False))


def _filter_fake(logits, top_k, top_p, min_p=None):
    torch._check(logits.dim() == 2, lambda: "logits must be [rows, vocab]")


def _sample_cpu(
    logits, temperature, top_k, top_p, min_p, seed, stream=None, position=None, return_logprobs=True, seeds=None,
    on_invalid="raise",
):  # fmt: skip
    filters = temperature, top_k, top_p, min_p
    seed = seed % 2**64 if seeds is None else seeds
    result = _sample(logits, *filters, seed, stream, position, return_logprobs, on_invalid)
    return tuple(result) if return_logprobs else (result, logits.new_empty(0, dtype=torch.float32))


def _sample_fast_path(logits, *arguments):
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    return _sample_cpu(logits, *arguments) if can_bypass_dispatcher(logits, *tensors) and in_cpu_memory(logits) else None


def _sample_fake(
    logits, temperature, top_k, top_p, min_p, seed, stream=None, position=None, return_logprobs=True, seeds=None,
    on_invalid="raise",
):  # fmt: skip
    torch._check(logits.dim() == 2, lambda: "logits must be [rows, vocab]")
    rows = logits.shape[0]
    tokens = logits.new_empty(rows, dtype=torch.int32)
    return tokens, logits.new_empty(rows if return_logprobs else 0, dtype=torch.float32)


_TAGS = (torch.Tag.pt2_compliant_tag,)
LIBRARY.define(
    "linear_top_k(Tensor x, Tensor weight, SymInt k, Tensor? bias=None) -> (Tensor values, Tensor indices)", tags=_TAGS
)
LIBRARY.impl("linear_top_k", _linear_cpu, "CPU")
LIBRARY.fast_paths["linear_top_k"] = _linear_fast_path
torch.library.register_fake("riffle::linear_top_k", _linear_fake, lib=LIBRARY)
no_gradient("linear_top_k")

LIBRARY.define(
    "sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, SymInt seed, "
    "Tensor? stream=None, Tensor? position=None, bool return_logprobs=True, Tensor? seeds=None, str on_invalid=\"raise\") "
    "-> (Tensor tokens, Tensor logprobs)",
    tags=_TAGS,
)
LIBRARY.impl("sample", _sample_cpu, "CPU")
LIBRARY.fast_paths["sample"] = _sample_fast_path
torch.library.register_fake("riffle::sample", _sample_fake, lib=LIBRARY)
no_gradient("sample")

LIBRARY.define(
    "apply_top_k_top_p_(Tensor(a!) logits, Tensor? top_k, Tensor? top_p, Tensor? min_p=None) -> ()", tags=_TAGS
)
LIBRARY.impl("apply_top_k_top_p_", _filter, "CPU")
torch.library.register_fake("riffle::apply_top_k_top_p_", _filter_fake, lib=LIBRARY)

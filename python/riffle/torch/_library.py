"""The library torch.ops.riffle, and how calls get around the dispatcher when it has nothing to do for them.

A kernel in Python costs about 4 us a dispatch key, as long as a small top-k takes. So a call on ordinary tensors, with
no transform, mode or trace that wants to see it, goes straight to riffle; all others go through torch.ops.riffle.
"""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from riffle._arguments import as_int

try:
    from torch._C import _get_tracing_state, _len_torch_dispatch_stack, _len_torch_function_stack
    from torch._C._functorch import peek_interpreter_stack
except ImportError:  # a PyTorch that names them otherwise: everything goes through the dispatcher

    def no_mode_or_transform() -> bool:
        return False

else:

    def no_mode_or_transform() -> bool:
        """Whether no mode, transform, forward differentiation or trace of this thread is active. 0.2 us."""
        return (
            not _len_torch_dispatch_stack()
            and not _len_torch_function_stack()
            and peek_interpreter_stack() is None
            and _get_tracing_state() is None
            and forward_ad._current_level < 0
        )


def under_transform() -> bool:
    """Whether torch.func or forward differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def can_bypass_dispatcher(*tensors: Tensor, optional: Sequence = ()) -> bool:
    """Whether these are tensors, not of a subclass, that no gradient is wanted for, and no mode or transform is active.

    Those in `optional` may be None too.
    """
    for tensor in tensors:
        if type(tensor) is not Tensor or tensor.requires_grad:
            return False
    for value in optional:
        if value is not None and (type(value) is not Tensor or value.requires_grad):
            return False
    return no_mode_or_transform()


def check_tensors(function: str, arguments: dict, optional: dict | None = None) -> None:
    """TypeError for an argument that is no tensor, which PyTorch would refuse by quoting the operator's schema.

    Those in `optional` may be None too. What a tracer passes in a tensor's place, such as torch.fx.Proxy, is let through.
    """
    given = {name: value for name, value in (optional or {}).items() if value is not None}
    for name, value in {**arguments, **given}.items():
        if isinstance(value, Tensor):
            continue
        if not hasattr(type(value), "__torch_function__"):
            raise TypeError(f"{function}(): argument '{name}' must be Tensor, not {kind_of(value)}")


def kind_of(value) -> str:
    """The type of an argument as PyTorch's own errors name it."""
    kind = type(value)
    return kind.__name__ if kind.__module__ in ("builtins", "torch") else f"{kind.__module__}.{kind.__name__}"


def integer(name: str, value) -> Any:
    """An int argument of an operator, or a SymInt, with riffle's own text where it is none."""
    if isinstance(value, (int, torch.SymInt)):
        return value
    return call(as_int, name, value)


def number_as_tensor(number: float) -> Tensor:
    """A number that may change from call to call of compiled code, as float64 [1].

    torch.compile makes a constant of a float that an operator takes, and compiles anew for every other one. It leaves a
    float variable where nothing but arithmetic on tensors uses it.
    """
    return torch.ones((1,), dtype=torch.float64, device="cpu") * number


def in_cpu_memory(tensor: Tensor) -> bool:
    """Whether the tensor is strided memory of the CPU: not of another device, not meta, not sparse."""
    return tensor.is_cpu and tensor.layout is torch.strided


class _Library(torch.library.Library):
    """A library whose autograd kernels, which run first, hand calls that need no gradient to `fast_paths`."""

    def __init__(self) -> None:
        super().__init__("riffle", "DEF")
        self.fast_paths = {}  # operator: function of its arguments that returns the result, or None where it declines the call

    def impl(self, op_name, fn, dispatch_key="", **options):
        name = op_name if isinstance(op_name, str) else op_name._schema.name.split("::")[1]
        if dispatch_key == "Autograd" and name in self.fast_paths:
            fn = _with_fast_path(self.fast_paths[name], fn)
        super().impl(op_name, fn, dispatch_key, **options)


def _with_fast_path(fast_path, autograd):
    def kernel(keyset, *args):
        answer = fast_path(*args)
        if answer is not None:
            return answer
        if forward_ad._current_level >= 0:
            for arg in args:
                if isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None:
                    raise NotImplementedError("Trying to use forward AD with an operator of riffle that has none")
        return autograd(keyset, *args)

    return kernel


LIBRARY = _Library()


def no_gradient(name: str) -> None:
    """Makes backward through an operator an error, as it is through PyTorch's own that have no derivative."""

    def backward(ctx, *grads):
        raise NotImplementedError(f"derivative for riffle::{name} is not implemented")

    torch.library.register_autograd(f"riffle::{name}", backward, lib=LIBRARY)


def call(function, *args, **kwargs):
    """function(...) with PyTorch's kind of error: RuntimeError for what riffle calls ValueError or TypeError."""
    try:
        return function(*args, **kwargs)
    except (ValueError, TypeError) as error:
        raise RuntimeError(str(error)) from None

"""topk."""

from __future__ import annotations

import operator
import warnings

import torch
from torch import Tensor
from torch.compiler import is_compiling

from riffle import _core
from riffle.torch._library import LIBRARY, kind_of, no_mode_or_transform, under_transform

_DTYPES = tuple(
    getattr(torch, name)
    for name in "float32 float16 bfloat16 float64 int8 uint8 int16 uint16 int32 uint32 int64 uint64".split()
)
_Result = torch.return_types.topk


def topk(
    input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True, *, out=None
) -> torch.return_types.topk:
    """torch.topk for CPU tensors: the k largest, or smallest, elements along an axis, and their indices.

    Arguments and results are torch.topk's: int64 indices, contiguous results. Beyond its contract the result does not
    depend on threads or SIMD, and of equal values the lower index comes first. As in torch.topk NaN is larger than all
    else, and so the last to be among the smallest; -0 equals +0, and each comes out with the sign it has.

    Differentiable in the values, under torch.compile(fullgraph=True) and torch.func too.

    Args:
      input: a tensor of floating-point numbers or integers, of any shape. Where `dim` is its last axis and contiguous it is read in
        place, whatever the strides of the others; else a copy is made that is.
      k: 0 to the length of the axis.
      dim: the axis.
      largest: False takes the smallest, least first.
      sorted: False returns the same set in an order that is not specified, though always the same.
      out: (values, indices) to write into, resized where they have another shape.

    Returns:
      torch.return_types.topk(values, indices), of the shape of input with k along `dim`.

    Raises:
      RuntimeError: k out of range; out of a wrong dtype or device, or together with an input that requires grad.
      IndexError: no such axis.
      NotImplementedError: another dtype, or a device that is not the CPU.
      TypeError: input is not a tensor, or complex; k or dim is not an int, largest or sorted not a bool, out not a pair of
        tensors.

    >>> import torch, riffle.torch
    >>> x = torch.tensor([[3., 1., 4., 1., 5.], [2., 7., 1., 8., 2.]])
    >>> values, indices = riffle.torch.topk(x, 2)
    >>> values, indices
    (tensor([[5., 4.],
            [8., 7.]]), tensor([[4, 2],
            [3, 1]]))
    >>> riffle.torch.topk(x, 1, dim=0, largest=False).values
    tensor([[2., 1., 1., 1., 2.]])
    """
    if is_compiling():
        numbers = _checked_arguments(input, k, dim, largest, sorted, out)
        result = _Result(torch.ops.riffle.topk(input, *numbers, largest, sorted))
        return result if out is None else _write(out, result)
    if type(input) is Tensor and out is None and not input.requires_grad and no_mode_or_transform():
        answer = _core.torch_topk(input, k, dim, largest, sorted, _Result)
        if answer is not None:
            return answer  # pyright: ignore[reportReturnType]: it is of the type given
    return _dispatch(input, k, dim, largest, sorted, out)


def _dispatch(input, k, dim, largest, sorted, out):
    k, dim = _checked_arguments(input, k, dim, largest, sorted, out)
    if out is not None and torch.is_grad_enabled() and input.requires_grad:
        raise RuntimeError(
            "topk(): functions with out=... arguments don't support automatic differentiation, but one of the "
            "arguments requires grad."
        )
    run = _TopK.apply if under_transform() else torch.ops.riffle.topk
    result = _Result(run(input, k, dim, largest, sorted))
    return result if out is None else _write(out, result)


def _checked_arguments(input, k, dim, largest, sorted, out):
    """k and dim as ints. Raises what torch.topk raises where an argument is of a wrong type."""
    if not isinstance(input, Tensor):
        raise TypeError(f"topk(): argument 'input' (position 1) must be Tensor, not {kind_of(input)}")
    k, dim = _int_argument("k", 2, k), _int_argument("dim", 3, dim)
    for name, position, value in (("largest", 4, largest), ("sorted", 5, sorted)):
        if not isinstance(value, bool):
            raise TypeError(f"topk(): argument '{name}' (position {position}) must be bool, not {kind_of(value)}")
    if out is not None:
        _check_out(out, input)
    return k, dim


def _int_argument(name, position, value):
    """Python's and NumPy's ints, and a tensor of one integer; what is beyond int64, and so out of range, as its limit."""
    if isinstance(value, Tensor):
        accepted = not (value.is_floating_point() or value.is_complex() or value.dtype is torch.bool)
        accepted = accepted and (value.dim() == 0 or name == "k")
    else:
        accepted = not isinstance(value, bool) and (name == "k" or kind_of(value) != "numpy.ndarray")
    if isinstance(value, (int, torch.SymInt)) and accepted:
        return min(max(value, -(2**63)), 2**63 - 1) if type(value) is int else value
    try:
        number = operator.index(value) if accepted else None
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"topk(): argument '{name}' (position {position}) must be int, not {kind_of(value)}")
    return number


def _check_out(out, input):
    if not isinstance(out, (tuple, list)):
        raise TypeError(f"topk(): argument 'out' must be tuple of Tensors, not {kind_of(out)}")
    if len(out) != 2:
        raise TypeError(f"topk(): argument 'out' must be a pair of Tensors, (values, indices), but it has {len(out)} elements")
    for name, given in zip(("values", "indices"), out):
        if not isinstance(given, Tensor):
            raise TypeError(f"topk(): argument 'out' must be a pair of Tensors, but its {name} are {kind_of(given)}")
        if given.device != input.device:
            raise RuntimeError(f"topk(): the {name} of out are on device {given.device} but input is on {input.device}")
        if given.layout is not torch.strided:
            raise NotImplementedError(f"topk(): the {name} of out have layout {given.layout}; it must be torch.strided")


class _TopK(torch.autograd.Function):
    """topk under torch.func and forward differentiation, which operators of torch.library do not support."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input, k, dim, largest, sorted):
        return torch.ops.riffle.topk(input, k, dim, largest, sorted)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _topk_setup(ctx, inputs, output)
        ctx.save_for_forward(output[1])

    @staticmethod
    def backward(ctx, grad, _):
        return _topk_backward(ctx, grad, _)

    @staticmethod
    def jvp(ctx, tangent, *_):
        (indices,) = ctx.saved_tensors
        return (tangent.gather(ctx.dim, indices) if tangent.dim() else tangent.clone()), None


def _write(out, result):
    for given, made in zip(out, result, strict=True):
        if given.dtype != made.dtype:
            raise RuntimeError(f"Expected out tensor to have dtype {made.dtype}, but got {given.dtype} instead")
    for given, made in zip(out, result):
        if given.shape != made.shape:
            if given.numel() != 0:
                warnings.warn(
                    f"An output with one or more elements was resized since it had shape {list(given.shape)}, which "
                    f"does not match the required output shape {list(made.shape)}.",
                    stacklevel=4,
                )
            given.resize_(made.shape)
        given.copy_(made)
    return _Result(tuple(out))


def _checked_dim(input: Tensor, k: int, dim: int) -> int:
    """The axis, from 0; 0 for a tensor without axes. Raises what torch.topk raises."""
    ndim = max(input.dim(), 1)
    if not -ndim <= dim < ndim:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-ndim}, {ndim - 1}], but got {dim})")
    dim %= ndim
    if input.dtype not in _DTYPES:
        kind = TypeError if input.dtype.is_complex else NotImplementedError
        raise kind(f"riffle::topk takes floating-point numbers of 16 to 64 bits and integers, not {input.dtype}")
    torch._check(k >= 0, lambda: "selected index k out of range")
    torch._check(k <= (input.shape[dim] if input.dim() else 1), lambda: "selected index k out of range")
    return dim


def _topk_cpu(input, k, dim=-1, largest=True, sorted=True):
    answer = _core.torch_topk(input, k, dim, largest, sorted, _Result)
    if answer is not None:
        return answer
    dim = _checked_dim(input, k, dim)
    if input.dim() == 0:  # torch.topk gives the element for k = 0 too
        return input.clone(), input.new_zeros((), dtype=torch.int64)
    if k != 0 and input.numel() != 0:
        raise RuntimeError("riffle::topk: input is a tensor without plain memory of the CPU")
    shape = [*input.shape[:dim], k, *input.shape[dim + 1 :]]
    return input.new_empty(shape), input.new_empty(shape, dtype=torch.int64)


def _topk_fast_path(input, k, dim=-1, largest=True, sorted=True):
    if type(input) is Tensor and not input.requires_grad and no_mode_or_transform():
        return _core.torch_topk(input, k, dim, largest, sorted, _Result)
    return None


def _topk_fake(input, k, dim=-1, largest=True, sorted=True):
    dim = _checked_dim(input, k, dim)
    shape = [*input.shape[:dim], k, *input.shape[dim + 1 :]] if input.dim() else []
    return input.new_empty(shape), input.new_empty(shape, dtype=torch.int64)


def _topk_setup(ctx, inputs, output):
    input, _, ctx.dim, *_ = inputs
    ctx.shape = input.shape
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _topk_backward(ctx, grad, _):
    (indices,) = ctx.saved_tensors
    return grad.new_zeros(ctx.shape).scatter(ctx.dim, indices, grad), None, None, None, None


def _topk_vmap(info, in_dims, input, k, dim=-1, largest=True, sorted=True):
    input = input.movedim(in_dims[0], 0)
    if input.dim() == 1:  # a batch of scalars
        values, indices = torch.ops.riffle.topk(input.unsqueeze(1), 1, 1, largest, sorted)
        return (values.squeeze(1), indices.squeeze(1)), (0, 0)
    dim = dim + 1 if dim >= 0 else dim
    if dim == -input.dim() or dim == input.dim():  # the batch axis does not belong to the caller
        _checked_dim(input[0], k, dim - 1 if dim > 0 else dim)
    return tuple(torch.ops.riffle.topk(input, k, dim, largest, sorted)), (0, 0)


_TAGS = (torch.Tag.pt2_compliant_tag,)
LIBRARY.define(
    "topk(Tensor input, SymInt k, int dim=-1, bool largest=True, bool sorted=True) -> (Tensor values, Tensor indices)",
    tags=_TAGS,
)
LIBRARY.impl("topk", _topk_cpu, "CPU")
LIBRARY.fast_paths["topk"] = _topk_fast_path
torch.library.register_fake("riffle::topk", _topk_fake, lib=LIBRARY)
torch.library.register_autograd("riffle::topk", _topk_backward, setup_context=_topk_setup, lib=LIBRARY)
torch.library.register_vmap("riffle::topk", _topk_vmap, lib=LIBRARY)

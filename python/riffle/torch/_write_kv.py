"""Writing keys and values into pages."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.compiler import is_compiling

import riffle
from riffle._arguments import as_bool, as_float
from riffle.torch._library import LIBRARY, call, can_bypass_dispatcher, check_tensors, in_cpu_memory


def write_kv(
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    *,
    layout: Literal["HND", "NHD", "JAX"] = "HND",
    key_scales: float | Tensor | None = None,
    value_scales: float | Tensor | None = None,
    key_format: str | None = None,
    value_format: str | None = None,
    compute_scales: bool = False,
) -> None:
    """riffle.write_kv as an operator of PyTorch that writes its arguments in place: torch.compile keeps it.

    Arguments are riffle.write_kv's. A head_dim of keys or values that is not contiguous is made so.

    Raises:
      RuntimeError: what riffle.write_kv calls ValueError or TypeError; nothing has been written then.
      NotImplementedError: a device that is not the CPU; backward.
      TypeError: keys, values, slots or pages are not tensors.
    """
    tensors = keys, values, slots, key_pages, value_pages
    options = layout, key_scales, value_scales, key_format, value_format, compute_scales
    scales = tuple(scale for scale in (key_scales, value_scales) if isinstance(scale, Tensor))
    if not is_compiling() and can_bypass_dispatcher(*tensors, optional=scales) and in_cpu_memory(keys):
        return _write(*tensors, *options)
    names = "keys", "values", "slots", "key_pages", "value_pages"
    check_tensors("write_kv", dict(zip(names, tensors)))
    compute_scales = call(as_bool, "compute_scales", compute_scales)
    torch.ops.riffle.write_kv(*tensors, layout, _tensor("key_scales", key_scales), _tensor("value_scales", value_scales),
                              *options[3:5], compute_scales)  # fmt: skip


def _tensor(name: str, scales: Any) -> Tensor | None:
    """A number as a tensor of one axis, which the operator takes."""
    if scales is None or isinstance(scales, Tensor) or hasattr(type(scales), "__torch_function__"):
        return scales
    if not is_compiling():
        scales = call(as_float, name, scales, "a number, a tensor or None")
    return torch.tensor([scales], dtype=torch.float32)


def _contiguous_heads(x: Tensor) -> Tensor:
    return x.contiguous() if x.dim() > 0 and x.stride(-1) != 1 and x.shape[-1] > 1 else x


def _write(
    keys, values, slots, key_pages, value_pages, layout="HND", key_scales=None, value_scales=None, key_format=None,
    value_format=None, compute_scales=False,
):  # fmt: skip
    call(
        riffle.write_kv,
        _contiguous_heads(keys), _contiguous_heads(values), slots, key_pages, value_pages,
        layout=layout, key_scales=key_scales, value_scales=value_scales, key_format=key_format,
        value_format=value_format, compute_scales=compute_scales,
    )  # fmt: skip


def _fake(keys, *args):
    torch._check(keys.dim() == 3, lambda: f"keys has {keys.dim()} axes; it must be [tokens, kv_heads, head_dim]")


LIBRARY.define(
    "write_kv(Tensor keys, Tensor values, Tensor slots, Tensor(a!) key_pages, Tensor(b!) value_pages, "
    'str layout="HND", Tensor(c!)? key_scales=None, Tensor(d!)? value_scales=None, str? key_format=None, '
    "str? value_format=None, bool compute_scales=False) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.impl("write_kv", _write, "CPU")
torch.library.register_fake("riffle::write_kv", _fake, lib=LIBRARY)

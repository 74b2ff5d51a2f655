"""Paged attention."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.compiler import is_compiling

import riffle
from riffle._arguments import as_bool, as_float
from riffle.torch._library import (
    LIBRARY,
    call,
    can_bypass_dispatcher,
    check_tensors,
    in_cpu_memory,
    integer,
    no_gradient,
    number_as_tensor,
)


def paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    kv_lens: Tensor,
    page_table: Tensor,
    *,
    cu_q_lens: Tensor | None = None,
    layout: Literal["HND", "NHD", "JAX"] = "HND",
    scale: float | None = None,
    causal: bool | Tensor = True,
    window: int | None = None,
    window_right: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    mask_value: float | None = None,
    mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    key_scales: float | Tensor | None = None,
    value_scales: float | Tensor | None = None,
    key_format: str | None = None,
    value_format: str | None = None,
    out: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """riffle.paged_attention as an operator of PyTorch: torch.compile keeps it, backward through it is an error.

    Arguments, shapes and results are riffle.paged_attention's. A head_dim that is not contiguous is made so, which for
    keys and values copies the whole pool.

    Under torch.compile, scale, soft_cap, window and window_right may change from call to call without compiling anew.
    Each may be a tensor of one element too.

    Raises:
      RuntimeError: what riffle.paged_attention calls ValueError or TypeError; nothing has been written then.
      NotImplementedError: a device that is not the CPU; backward.
      TypeError: q, keys, values or a list is not a tensor.
    """
    causal_flags = causal if isinstance(causal, Tensor) or hasattr(type(causal), "__torch_function__") else None
    options: Any = scale, causal if causal_flags is None else False, window, window_right, soft_cap, sinks, mask_value
    coding = dict(key_scales=_scales("key_scales", key_scales), value_scales=_scales("value_scales", value_scales), key_format=key_format,
                  value_format=value_format, mask=mask, alibi_slopes=alibi_slopes, causal_flags=causal_flags)
    tensors = q, keys, values, kv_lens, page_table
    optional = dict(cu_q_lens=cu_q_lens, sinks=sinks, key_scales=coding["key_scales"], value_scales=coding["value_scales"],
                    mask=mask, alibi_slopes=alibi_slopes, causal=causal_flags)
    if not is_compiling() and can_bypass_dispatcher(*tensors, optional=tuple(optional.values())) and in_cpu_memory(q):
        return _attend(*tensors, cu_q_lens, layout, *options, **coding, out=out, return_lse=return_lse)
    names = "q", "keys", "values", "kv_lens", "page_table"
    check_tensors("paged_attention", dict(zip(names, tensors)), optional)
    result, lse = torch.ops.riffle.paged_attention(*tensors, cu_q_lens, layout, *_options(*options), **coding)
    if out is not None:
        result = out.copy_(result)
    return (result, lse) if return_lse else result


def _options(scale, causal, window, window_right, soft_cap, sinks, mask_value):
    """The operator's arguments from scale on."""
    causal = call(as_bool, "causal", causal)
    window, window_right = _window_argument("window", window), _window_argument("window_right", window_right)
    if not is_compiling():
        scale, soft_cap = _number("scale", scale), _number("soft_cap", soft_cap)
        return scale, causal, window, window_right, soft_cap, sinks, _number("mask_value", mask_value)
    scale, soft_cap = (x if x is None or isinstance(x, Tensor) else number_as_tensor(x) for x in (scale, soft_cap))
    return None, causal, window, window_right, None, sinks, mask_value, scale, soft_cap


def _window_argument(name, value):
    """An int, or None, of a window."""
    if isinstance(value, Tensor):
        value = value.item()
    return value if value is None or is_compiling() else integer(name, value)


def _number(name, value):
    return value if value is None else call(as_float, name, value, "a number or None")


def _scales(name: str, scales: Any) -> Tensor | None:
    """Scales as a tensor: a number becomes a tensor of one element."""
    number: Any = scales
    if scales is None or isinstance(scales, Tensor) or hasattr(type(scales), "__torch_function__"):
        return scales
    if not is_compiling():
        number = _number(name, scales)
    return number_as_tensor(number).float()


def _contiguous_heads(x: Tensor) -> Tensor:
    return x.contiguous() if x.dim() > 0 and x.stride(-1) != 1 and x.shape[-1] > 1 else x


def _attend(
    q, keys, values, kv_lens, page_table, cu_q_lens=None, layout="HND", scale=None, causal=True, window=None,
    window_right=None, soft_cap=None, sinks=None, mask_value=None, scale_tensor=None, soft_cap_tensor=None, key_scales=None,
    value_scales=None, key_format=None, value_format=None, mask=None, alibi_slopes=None, causal_flags=None, *, out=None, return_lse=True,
):  # fmt: skip
    if scale_tensor is not None:
        scale = scale_tensor.item()
    if soft_cap_tensor is not None:
        soft_cap = soft_cap_tensor.item()
    return call(
        riffle.paged_attention,
        _contiguous_heads(q), _contiguous_heads(keys), _contiguous_heads(values), kv_lens, page_table,
        cu_q_lens=cu_q_lens, layout=layout, scale=scale, causal=causal if causal_flags is None else causal_flags, window=window, window_right=window_right,
        soft_cap=soft_cap, sinks=sinks, mask_value=mask_value, mask=mask, alibi_slopes=alibi_slopes, key_scales=key_scales, value_scales=value_scales,
        key_format=key_format, value_format=value_format, out=out, return_lse=return_lse,
    )  # fmt: skip


def _fast_path(*args, **options):
    tensors = [arg for arg in (*args, *options.values()) if isinstance(arg, Tensor)]
    return _attend(*args, **options) if can_bypass_dispatcher(*tensors) and in_cpu_memory(args[0]) else None


_BLOCK_BYTES = {"q8_0": 34, "q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "iq4_nl": 18}


def _fake(q, keys, values, *args, value_format=None, **options):
    torch._check(q.dim() == 3, lambda: f"q has {q.dim()} axes; it must be [tokens, q_heads, head_dim]")
    head_dim = values.shape[-1]
    if value_format in _BLOCK_BYTES:
        head_dim = head_dim // _BLOCK_BYTES[value_format] * 32
    return q.new_empty((*q.shape[:2], head_dim)), q.new_empty(q.shape[:2], dtype=torch.float32)


LIBRARY.define(
    "paged_attention(Tensor q, Tensor keys, Tensor values, Tensor kv_lens, Tensor page_table, Tensor? cu_q_lens=None, "
    'str layout="HND", float? scale=None, bool causal=True, SymInt? window=None, SymInt? window_right=None, '
    "float? soft_cap=None, Tensor? sinks=None, float? mask_value=None, Tensor? scale_tensor=None, Tensor? soft_cap_tensor=None, "
    "Tensor? key_scales=None, Tensor? value_scales=None, str? key_format=None, str? value_format=None, Tensor? mask=None, "
    "Tensor? alibi_slopes=None, Tensor? causal_flags=None) "
    "-> (Tensor out, Tensor lse)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.impl("paged_attention", _attend, "CPU")
LIBRARY.fast_paths["paged_attention"] = _fast_path
torch.library.register_fake("riffle::paged_attention", _fake, lib=LIBRARY)
no_gradient("paged_attention")

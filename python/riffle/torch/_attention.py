"""Paged attention."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.compiler import is_compiling

import riffle
from riffle.torch._library import LIBRARY, call, in_cpu_memory, no_gradient, plain


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
    causal: bool = True,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    mask_value: float | None = None,
    out: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """riffle.paged_attention as an operator of PyTorch: torch.compile keeps it, backward through it is an error.

    Arguments, shapes and results are riffle.paged_attention's. A head_dim that is not contiguous is made so, which for
    keys and values copies the whole pool.

    Raises:
      RuntimeError: what riffle.paged_attention calls ValueError or TypeError; nothing has been written then.
      NotImplementedError: a device that is not the CPU; backward.
    """
    args = (q, keys, values, kv_lens, page_table, cu_q_lens, layout, scale, causal, window, soft_cap, sinks, mask_value)
    if not is_compiling() and plain(q, keys, values, kv_lens, page_table, cu_q_lens, sinks) and in_cpu_memory(q):
        result, lse = _attend(*args, out=out)
    else:
        result, lse = torch.ops.riffle.paged_attention(*args)
        if out is not None:
            result = out.copy_(result)
    return (result, lse) if return_lse else result


def _contiguous_heads(x: Tensor) -> Tensor:
    return x.contiguous() if x.dim() > 0 and x.stride(-1) != 1 and x.shape[-1] > 1 else x


def _attend(
    q, keys, values, kv_lens, page_table, cu_q_lens=None, layout="HND", scale=None, causal=True, window=None,
    soft_cap=None, sinks=None, mask_value=None, *, out=None,
):  # fmt: skip
    return call(
        riffle.paged_attention,
        _contiguous_heads(q), _contiguous_heads(keys), _contiguous_heads(values), kv_lens, page_table,
        cu_q_lens=cu_q_lens, layout=layout, scale=scale, causal=causal, window=window, soft_cap=soft_cap, sinks=sinks,
        mask_value=mask_value, out=out, return_lse=True,
    )  # fmt: skip


def _direct(*args):
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    return _attend(*args) if plain(*tensors) and in_cpu_memory(args[0]) else None


def _fake(q, *args):
    torch._check(q.dim() == 3, lambda: f"q has {q.dim()} axes; it must be [tokens, q_heads, head_dim]")
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


LIBRARY.define(
    "paged_attention(Tensor q, Tensor keys, Tensor values, Tensor kv_lens, Tensor page_table, Tensor? cu_q_lens=None, "
    'str layout="HND", float? scale=None, bool causal=True, int? window=None, float? soft_cap=None, '
    "Tensor? sinks=None, float? mask_value=None) -> (Tensor out, Tensor lse)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.impl("paged_attention", _attend, "CPU")
LIBRARY.direct["paged_attention"] = _direct
torch.library.register_fake("riffle::paged_attention", _fake, lib=LIBRARY)
no_gradient("paged_attention")

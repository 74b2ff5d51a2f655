"""Attention over dense tensors, with the arguments of torch.nn.functional.scaled_dot_product_attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.functional import pad

from riffle import _core
from riffle._arguments import as_bool, as_float
from riffle.torch._library import LIBRARY, call, can_bypass_dispatcher, check_tensors, in_cpu_memory, no_gradient

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_HEAD_DIM = 1024


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention by riffle's attention, equal to it within rounding.

    Tensors are read in place, with any strides of the axes before the last one. Only a last axis that is not
    contiguous, or no multiple of 8, is copied first. A query's bits do not depend on the batch or the number of threads.

    Args:
      query: [..., heads, queries, head_dim], float32, float16 or bfloat16. [queries, head_dim] has one head.
      key, value: [..., kv_heads, keys, head_dim] of query's dtype; value may have another head_dim. Axes of size 1 before
        the last two are broadcast. head_dim is at most 1024.
      attn_mask: broadcastable to [..., heads, queries, keys]: bool, True where a query sees a key, or float32, float16 or
        bfloat16, which is added to the scaled products; -inf hides. A query that sees nothing gets zeros.
      dropout_p: 0; riffle has no dropout.
      is_causal: query i sees keys 0..i, whatever the number of keys, as in torch; not beside attn_mask.
      scale: of the products; None: 1 / sqrt(head_dim).
      enable_gqa: heads may be a multiple of kv_heads: heads / kv_heads consecutive heads share a KV head.

    Returns:
      [..., heads, queries, head_dim of value] of query's dtype. In memory heads and tokens are in query's order.

    Raises:
      RuntimeError: shapes or dtypes that do not fit; dropout.
      NotImplementedError: a device that is not the CPU; backward.
      TypeError: what is no tensor.

    >>> import torch, riffle.torch
    >>> x = torch.ones(1, 2, 3, 32)
    >>> riffle.torch.scaled_dot_product_attention(x, x, 5 * x, is_causal=True)[0, 0, :, 0]
    tensor([5., 5., 5.])
    """
    no_dropout = isinstance(dropout_p, (int, float)) and dropout_p == 0
    if not is_compiling() and no_dropout and can_bypass_dispatcher(query, key, value, optional=(attn_mask,)) and in_cpu_memory(query):
        out = call(_core.torch_scaled_dot_product_attention, query, key, value, attn_mask, is_causal, scale, enable_gqa)
        if out is not None:
            return out
    check_tensors("scaled_dot_product_attention", {"query": query, "key": key, "value": value}, {"attn_mask": attn_mask})
    if not is_compiling():
        dropout_p = call(as_float, "dropout_p", dropout_p)
        is_causal, enable_gqa = call(as_bool, "is_causal", is_causal), call(as_bool, "enable_gqa", enable_gqa)
        scale = scale if scale is None else call(as_float, "scale", scale, "a number or None")
    return torch.ops.riffle.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


def _check(condition: Any, text: str) -> None:
    torch._check(condition, lambda: f"scaled_dot_product_attention: {text}")


def _shape(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa) -> tuple:
    """The shape of the results. RuntimeError for what does not fit together."""
    _check(dropout_p == 0, f"dropout_p = {dropout_p}; riffle has no dropout")
    _check(not is_causal or attn_mask is None, "attn_mask is given and is_causal is set; one of them is possible")
    for name, x in ("query", query), ("key", key), ("value", value):
        _check(x.dim() >= 2, f"{name} has shape {tuple(x.shape)}; it must be [..., heads, tokens, head_dim]")
        _check(x.dtype in _DTYPES, f"{name} has dtype {x.dtype}; float32, float16 and bfloat16 are accepted")
        _check(x.dtype == query.dtype, f"{name} has dtype {x.dtype} but query {query.dtype}")
        _check(x.shape[-1] <= _MAX_HEAD_DIM, f"{name} has shape {tuple(x.shape)}; a head_dim of at most {_MAX_HEAD_DIM} is possible")
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)}"
    _check(query.shape[-1] == key.shape[-1], f"{shapes} differ in head_dim of query and key")
    _check(key.shape[-2] == value.shape[-2], f"{shapes} differ in the number of keys and values")
    outer = [list(x.shape[:-2]) for x in (query, key, value)]
    if enable_gqa:
        for x in outer[1:]:
            _check(bool(x and outer[0]), f"{shapes}: enable_gqa needs an axis of heads")
            _check(x[-1] != 0 and outer[0][-1] % x[-1] == 0, f"{shapes}: heads are no multiple of those of key or value")
            x[-1] = outer[0][-1]
    try:
        outer = torch.broadcast_shapes(*outer)
    except RuntimeError:
        _check(False, f"{shapes} cannot be broadcast to each other" + ("" if enable_gqa else "; is enable_gqa to be set?"))
    if attn_mask is not None:
        logits = (*outer, query.shape[-2], key.shape[-2])
        _check(attn_mask.dtype in (torch.bool, *_DTYPES),
               f"attn_mask has dtype {attn_mask.dtype}; bool, float32, float16 and bfloat16 are accepted")  # fmt: skip
        fits = 1 <= attn_mask.dim() <= len(logits) and all(m == 1 or m == n for m, n in zip(reversed(attn_mask.shape), reversed(logits)))
        _check(fits, f"attn_mask has shape {tuple(attn_mask.shape)}; it must broadcast to {tuple(logits)}")
    return (*outer, query.shape[-2], value.shape[-1])


def _attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    shape = _shape(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
    query_given = query
    if enable_gqa and key.shape[-3] != value.shape[-3]:  # which torch accepts
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    outer = shape[:-2]
    if len(outer) > 2:  # all but the heads become one axis
        heads = [outer[-1] if x is query or not enable_gqa else x.shape[-3] for x in (query, key, value)]
        query, key, value = (
            x.expand(*outer[:-1], n, *x.shape[-2:]).flatten(0, -4) for x, n in zip((query, key, value), heads)
        )
        if attn_mask is not None and attn_mask.dim() > 3:
            attn_mask = attn_mask.expand(*outer[:-1], *attn_mask.shape[-3:]).flatten(0, -4)
    if scale is None:
        scale = 1 / math.sqrt(max(query.shape[-1], 1))
    query, key, value = (_with_whole_rows(x) for x in (query, key, value))
    out = call(_core.torch_scaled_dot_product_attention, query, key, value, attn_mask, is_causal, scale, enable_gqa)
    out = out[..., : shape[-1]].reshape(shape)
    if _is_token_major(query_given, shape):
        return out.transpose(-3, -2).contiguous().transpose(-3, -2)
    return out.contiguous()


def _is_token_major(query, shape) -> bool:
    """Whether results of that shape have their tokens outside of their heads in memory, as query has them."""
    if query.dim() < 3 or query.shape[-3] != shape[-3] or shape[-3] <= 1 or shape[-2] <= 1:
        return False
    return query.stride(-3) != 0 and query.stride(-3) < query.stride(-2)


def _with_whole_rows(x: Tensor) -> Tensor:
    """x with a contiguous last axis whose size is a multiple of 8, padded with zeros."""
    missing = -x.shape[-1] % 8 if x.shape[-1] > 0 else 8
    if missing:
        return pad(x, (0, missing))
    return x if x.stride(-1) == 1 else x.contiguous()


def _fake(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    shape = _shape(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
    if _is_token_major(query, shape):
        return query.new_empty((*shape[:-3], shape[-2], shape[-3], shape[-1])).transpose(-3, -2)
    return query.new_empty(shape)


def _fast_path(query, key, value, *options):
    tensors = [x for x in options if isinstance(x, Tensor)]
    return _attend(query, key, value, *options) if can_bypass_dispatcher(query, key, value, *tensors) and in_cpu_memory(query) else None


LIBRARY.define(
    "scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0.0, "
    "bool is_causal=False, float? scale=None, bool enable_gqa=False) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.impl("scaled_dot_product_attention", _attend, "CPU")
LIBRARY.fast_paths["scaled_dot_product_attention"] = _fast_path
torch.library.register_fake("riffle::scaled_dot_product_attention", _fake, lib=LIBRARY)
no_gradient("scaled_dot_product_attention")

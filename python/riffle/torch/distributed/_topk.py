"""topk, and the LM head's, of a vocabulary in shards."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

import riffle
from riffle.torch import _generate, _topk
from riffle.torch._library import check_tensors, in_cpu_memory, integer
from riffle.torch.distributed._exchange import Ranks, gather_candidates, merge_candidates, shards_of

_DTYPES = {dtype: number for number, dtype in enumerate(_topk._DTYPES)}


def check_no_grad(function: str, **tensors) -> None:
    """RuntimeError for a tensor that a gradient is wanted for."""
    if torch.is_grad_enabled():
        for name, tensor in tensors.items():
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                raise RuntimeError(f"riffle.torch.distributed.{function} has no derivative, but {name} requires grad: call it under torch.no_grad()")


def check_on_cpu(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not in_cpu_memory(tensor):
            raise NotImplementedError(f"{name} is on device {tensor.device}, with layout {tensor.layout}; it must be a strided tensor of the CPU")


def topk(
    input: Tensor,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
    *,
    out=None,
    group=None,
    sizes: Sequence[int] | None = None,
) -> torch.return_types.topk:
    """riffle.torch.topk of a tensor whose shards along `dim` the ranks of a group hold.

    Values, indices and their order are those of riffle.torch.topk of the whole tensor, bit for bit, on every rank: of
    equal values the lower index of the whole comes first, whichever rank holds it.

    Each rank selects the k best of its shard; one all-gather exchanges k values and int32 columns a row; each rank merges
    them. No rank needs memory for more than the candidates.

    Args:
      input: this rank's shard. Along `dim` shards may differ in size, 0 included; rank r's follows those of the ranks before it.
        Other axes and the dtype are the same on all ranks.
      k: 0 to the length of the whole axis; more than a shard has is possible.
      dim, largest, sorted, out: as for riffle.torch.topk; results come out sorted whatever `sorted` says.
      group: the process group; None: all processes.
      sizes: the length of each rank's shard, as from shard_sizes. None: one more small all-gather finds them, and checks
        that k, dtype and shape are the same on all ranks. Where sizes are given nothing checks that, and messages of
        different lengths fail, or wait, as the group's backend does.

    Returns:
      torch.return_types.topk(values, indices), the same on every rank; indices int64, of the whole axis.

    Raises:
      RuntimeError: k out of range of the whole axis; arguments that differ between ranks; sizes that do not fit;
        no process group; an input that requires grad.
      The others of riffle.torch.topk.

    >>> import os, torch.distributed as dist, torch, riffle.torch.distributed
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # in a program: torchrun
    >>> riffle.torch.distributed.topk(torch.tensor([3., 1., 4., 1., 5.]), 2)
    torch.return_types.topk(
    values=tensor([5., 4.]),
    indices=tensor([4, 2]))
    >>> dist.destroy_process_group()
    """
    numbers: Any = _topk._checked_arguments(input, k, dim, largest, sorted, out)
    check_on_cpu(input=input)
    check_no_grad("topk", input=input)
    k, dim = numbers[0], _topk._checked_dim(input, 0, numbers[1])
    if input.dim() == 0:
        raise RuntimeError("input has no axis; its shards have at least one")
    ranks = Ranks(group)
    shard = input.movedim(dim, -1)
    leading, columns = shard.shape[:-1], shard.shape[-1]
    rows = leading.numel()
    shards = shards_of(ranks, columns, sizes, dict(k=k, rows=rows, largest=int(largest)), dict(dtype=_DTYPES[input.dtype]))
    torch._check(0 <= k <= shards.columns, lambda: f"selected index k out of range: {k} of {shards.columns} columns")
    values, indices = riffle.torch.topk(shard, min(k, columns), -1, largest)
    values, indices = values.reshape(rows, values.shape[-1]), indices.reshape(rows, indices.shape[-1]).int()
    values, ids, _ = gather_candidates(ranks, shards, k, values, indices)
    values, ids = merge_candidates(values, ids, k, largest)
    values, ids = (x.reshape(*leading, k).movedim(-1, dim).contiguous() for x in (values, ids))
    result = torch.return_types.topk((values, ids))
    return result if out is None else _topk._write(out, result)


def linear_top_k(
    x: Tensor, weight: Tensor, k: int, *, bias: Tensor | None = None, group=None, sizes: Sequence[int] | None = None
) -> riffle.TopK:
    """riffle.torch.linear_top_k of a weight whose rows, the vocabulary, the ranks of a group hold in shards.

    Values and indices are those of the call with the whole weight, bit for bit, on every rank. Each rank computes and
    selects from its own tokens; one all-gather exchanges k float32 values and int32 columns a row.

    Args:
      x: [rows, d], the same on all ranks.
      weight: [tokens of this rank, d]; shards may differ in size, 0 included; rank r's tokens follow those of the ranks before it.
      k: 1 to the whole vocabulary; more than a shard has is possible.
      bias: [tokens of this rank].
      group, sizes: as for topk.

    Returns:
      TopK(values float32 [rows, k], indices int32 [rows, k]), the same on every rank.

    Raises:
      RuntimeError: k out of range of the whole vocabulary; arguments that differ between ranks; sizes that do not fit;
        no process group; a tensor that requires grad.
      The others of riffle.torch.linear_top_k.
    """
    check_tensors("linear_top_k", dict(x=x, weight=weight), dict(bias=bias))
    check_on_cpu(x=x, weight=weight, **({} if bias is None else {"bias": bias}))
    check_no_grad("linear_top_k", x=x, weight=weight, bias=bias)
    k = integer("k", k)
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise RuntimeError(f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; they must be [rows, d] and [tokens, d]")
    ranks = Ranks(group)
    (rows, d), tokens = x.shape, weight.shape[0]
    shards = shards_of(ranks, tokens, sizes, dict(k=k, rows=rows, d=d))
    if not 1 <= k <= shards.columns:
        raise RuntimeError(f"k = {k} is not in 1..{shards.columns}, the tokens of all ranks")
    if tokens:
        values, columns = _generate.linear_top_k(x, weight, min(k, tokens), bias=bias)
    else:
        values, columns = x.new_empty((rows, 0), dtype=torch.float32), x.new_empty((rows, 0), dtype=torch.int32)
    values, ids, _ = gather_candidates(ranks, shards, k, values, columns)
    values, ids = merge_candidates(values, ids, k)
    return riffle.TopK(values, ids.int())

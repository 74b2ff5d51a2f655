"""Decode context parallelism: each rank of a group has a part of the keys and values of every sequence.

Position p of a sequence is on rank p // interleave % ranks. The queries of all ranks attend to the part that is here; their
results and log-sum-exps go back to the ranks whose heads they are, which merge them with the attention to the step's own
tokens, whose keys and values each rank has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import riffle


@dataclass
class Shard:
    """A step's batch on one rank."""

    cached_lens: Tensor  # [sequences], cached tokens that are on this rank, those of this step left out
    new_lens: Tensor  # [sequences], this step's tokens
    new_pages: Tensor  # [sequences, max_query_len], those tokens as pages of one token


def local_lens(lens: Tensor, ranks: int, rank: int, interleave: int) -> Tensor:
    """How many of the first `lens` positions are on a rank."""
    rounds, rest = lens // (ranks * interleave), lens % (ranks * interleave)
    return (rounds * interleave + (rest - rank * interleave).clamp(0, interleave)).to(torch.int32)


def shard(cu_q_lens: Tensor, lens: Tensor, max_query_len: int, ranks: int, rank: int, interleave: int) -> Shard:
    new_lens = cu_q_lens[1:] - cu_q_lens[:-1]
    pages = cu_q_lens[:-1, None] + torch.arange(max_query_len, dtype=cu_q_lens.dtype)
    return Shard(local_lens(lens - new_lens, ranks, rank, interleave), new_lens, pages)


def attend(group, q: Tensor, key: Tensor, value: Tensor, pages, metadata, out: Tensor, *, sinks, scales: dict, **options) -> None:
    """Attention of this rank's heads to all keys of their sequences, written to `out`."""
    part: Shard = metadata.shard
    heads = q.shape[1]
    all_queries = group.all_gather(q.contiguous(), dim=1)
    # No position hides any of the cached keys, which all come before the queries.
    cached_out, cached_lse = riffle.paged_attention(all_queries, pages.keys, pages.values, part.cached_lens, metadata.page_table,
                                                    cu_q_lens=metadata.cu_q_lens, causal=False, return_lse=True, **scales, **options)  # fmt: skip
    outs, lses = _exchange(group, cached_out, cached_lse, heads)
    new_out, new_lse = riffle.paged_attention(q, key[:, None], value[:, None], part.new_lens, part.new_pages,
                                              cu_q_lens=metadata.cu_q_lens, layout="NHD", causal=metadata.causal_flags, sinks=sinks,
                                              return_lse=True, **options)  # fmt: skip
    out.copy_(riffle.merge_states([*outs, new_out], [*lses, new_lse])[0])


def _exchange(group, out: Tensor, lse: Tensor, heads: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Sends every rank the results of its heads; what all ranks have for the heads of this one, in the order of ranks."""
    ranks, tokens, size = group.world_size, out.shape[0], out.shape[2]
    # One message has both, as bytes.
    parts = [x.unflatten(1, (ranks, heads)).transpose(0, 1).reshape(ranks, -1).view(torch.uint8) for x in (out, lse)]
    sent = torch.cat(parts, dim=1)
    received = torch.empty_like(sent)
    torch.distributed.all_to_all_single(received, sent, group=group.device_group)
    outs, lses = received.split([part.shape[1] for part in parts], dim=1)
    shape = (ranks, tokens, heads)
    return outs.contiguous().view(out.dtype).view(*shape, size).unbind(), lses.contiguous().view(torch.float32).view(shape).unbind()


def slot_mapping(original):
    """vLLM's slot mapping on CPUs, which knows one rank only, with context parallelism added. Same parameters."""

    def compute(num_tokens, max_num_tokens, query_start_loc, positions, block_table, block_table_stride, slot_mapping, block_size,
                ranks=1, rank=0, interleave=1, pad=-1, *rest):  # fmt: skip
        if ranks == 1:
            return original(num_tokens, max_num_tokens, query_start_loc, positions, block_table, block_table_stride, slot_mapping, block_size,
                            ranks, rank, interleave, pad, *rest)  # fmt: skip
        lens = (query_start_loc[1:] - query_start_loc[:-1]).long()
        count = int(lens.sum())
        position = positions[:count].long()
        rows = torch.repeat_interleave(torch.arange(lens.numel()), lens)
        block, offset = position // (block_size * ranks), position % (block_size * ranks)
        on_this_rank = offset // interleave % ranks == rank
        local = offset // (ranks * interleave) * interleave + offset % interleave
        pages = block_table.view(-1)[rows * block_table_stride + torch.where(on_this_rank, block, 0)].long()
        slot_mapping[:count] = torch.where(on_this_rank, pages * block_size + local, pad)
        slot_mapping[num_tokens:max_num_tokens] = pad
        return None

    return compute

"""What ranks tell each other: how many columns each has, and the messages of one all-gather."""

from __future__ import annotations

from typing import Any, NamedTuple, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

import riffle
from riffle._arguments import as_list
from riffle.torch._library import call, integer


class Ranks:
    """The processes of a group. RuntimeError where there is no group, or this process is not in it."""

    def __init__(self, group=None):
        if not dist.is_initialized():
            raise RuntimeError("there is no process group: call torch.distributed.init_process_group first")
        self.group = group
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise RuntimeError(f"this process, rank {dist.get_rank()}, is not in the group given")

    def gather(self, message: Tensor) -> Tensor:
        """[ranks, *message.shape]: the messages of all ranks, in one all-gather. They have one shape and dtype."""
        if self.count == 1:
            return message.unsqueeze(0)
        received = message.new_empty((self.count, *message.shape))
        dist.all_gather(list(received.unbind(0)), message, group=self.group)
        return received

    def gather_sizes(self, size: int, must_match: dict[str, int] | None = None, digests: dict[str, int] | None = None) -> tuple[int, ...]:
        """Each rank's `size`. RuntimeError, on all ranks, where a number in `must_match` or `digests` differs between them.

        The error has the numbers of `must_match`; those in `digests` mean nothing to a reader.
        """
        must_match, digests = must_match or {}, digests or {}
        gathered = self.gather(torch.tensor([size, *must_match.values(), *digests.values()], dtype=torch.int64)).tolist()
        for rank, (_, *numbers) in enumerate(gathered):
            for name, first, number in zip([*must_match, *digests], gathered[0][1:], numbers):
                if number != first:
                    values = f": {first} and {number}" if name in must_match else ""
                    raise RuntimeError(f"{name} differs between ranks 0 and {rank}{values}; it must be the same on all ranks")
        return tuple(numbers[0] for numbers in gathered)


class Shards(NamedTuple):
    """The columns of all ranks: rank r has sizes[r] of them, which follow those of the ranks before it."""

    sizes: tuple[int, ...]

    @property
    def columns(self) -> int:
        return sum(self.sizes)

    def begin(self, rank: int) -> int:
        return sum(self.sizes[:rank])


def shards_of(ranks: Ranks, columns: int, sizes: Sequence[int] | None, must_match: dict[str, int], digests: dict[str, int] | None = None) -> Shards:
    """`sizes` if they are given; else asks the other ranks, and compares `must_match` and `digests` with theirs, as Ranks.gather_sizes."""
    if sizes is None:
        return Shards(ranks.gather_sizes(columns, must_match, digests))
    sizes = tuple(integer(f"sizes[{rank}]", size) for rank, size in enumerate(call(as_list, "sizes", sizes, "ints")))
    if len(sizes) != ranks.count:
        raise RuntimeError(f"sizes has {len(sizes)} elements for {ranks.count} ranks")
    if min(sizes) < 0:
        raise RuntimeError(f"sizes = {sizes} has a negative element")
    if sizes[ranks.rank] != columns:
        raise RuntimeError(f"sizes[{ranks.rank}] = {sizes[ranks.rank]} but rank {ranks.rank} has {columns} columns")
    return Shards(sizes)


def shard_sizes(columns: int, group=None) -> tuple[int, ...]:
    """The number of columns of each rank, which the calls of this module take as `sizes`: one small all-gather.

    Calls that are given no sizes make this all-gather themselves, each time, and check with it that k and the other
    arguments are the same on all ranks.

    Args:
      columns: of this rank's shard; 0 is possible.
      group: as torch.distributed has it; None: all processes.
    """
    columns = integer("columns", columns)
    torch._check(columns >= 0, lambda: f"columns = {columns} is negative")
    return Ranks(group).gather_sizes(columns)


# ---- candidates


def _aligned(size: int) -> int:
    return -(-size // 8) * 8


def gather_candidates(ranks: Ranks, shards: Shards, k: int, values: Tensor, columns: Tensor, extra: Tensor | None = None):
    """The best of each shard, side by side in the order of the shards: one all-gather.

    Args:
      values: [rows, min(k, columns of this shard)], best first.
      columns: int32, of that shape: columns of this shard.
      extra: float32 [rows], for the other ranks.

    Returns:
      (values [rows, n], ids int64 [rows, n]: columns of the whole, extra [ranks, rows]).
    """
    rows, element = values.shape[0], values.element_size()
    extra = values.new_empty(0, dtype=torch.float32) if extra is None else extra
    width = min(k, max(shards.sizes))
    if rows == 0 or width == 0:  # on all ranks alike
        return values.new_empty((rows, 0)), columns.new_empty((rows, 0), dtype=torch.int64), extra.expand(ranks.count, -1)
    # Columns, 4 bytes each, then values; both sections begin at a multiple of 8 bytes. The ranks' messages have one size.
    extra_bytes = _aligned(4 * extra.numel())
    message = torch.zeros(extra_bytes + _aligned(4 * rows * width) + _aligned(element * rows * width), dtype=torch.uint8)

    def sections(memory: Tensor, size: int):
        best = rows * min(k, size)
        at = extra_bytes + _aligned(4 * best)
        return (
            memory[: 4 * extra.numel()].view(torch.float32),
            memory[extra_bytes : extra_bytes + 4 * best].view(torch.int32).view(rows, -1) if best else None,
            memory[at : at + element * best].view(values.dtype).view(rows, -1) if best else None,
        )

    own_extra, own_columns, own_values = sections(message, shards.sizes[ranks.rank])
    own_extra.copy_(extra)
    if own_columns is not None and own_values is not None:
        own_columns.copy_(columns)
        own_values.copy_(values)
    extras, all_values, all_ids = [], [], []
    for rank, memory in enumerate(ranks.gather(message)):
        given, found_columns, found_values = sections(memory, shards.sizes[rank])
        extras.append(given)
        if found_columns is not None and found_values is not None:
            all_ids.append(found_columns.long() + shards.begin(rank))
            all_values.append(found_values)
    return torch.cat(all_values, 1), torch.cat(all_ids, 1), torch.stack(extras)


def merge_candidates(values: Tensor, ids: Tensor, k: int, largest: bool = True) -> tuple[Tensor, Tensor]:
    """The k best of the candidates, best first. Of equal ones the first comes first, which has the lowest id."""
    if k == 0 or values.shape[0] == 0:
        return values.new_empty((values.shape[0], k)), ids.new_empty((values.shape[0], k))
    best: Any = call(riffle.top_k, values, k, ids=ids, largest=largest)
    return best.values, best.indices

"""paged_attention over a context whose parts the ranks of a group hold."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

import riffle
from riffle._arguments import as_bool
from riffle.torch import _attention
from riffle.torch._library import call, check_tensors, integer
from riffle.torch.distributed._exchange import Ranks
from riffle.torch.distributed._topk import check_no_grad, check_on_cpu


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
    group=None,
    interleave: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """riffle.torch.paged_attention over contexts in parts: each rank has pages of a part of each sequence's keys.

    Each rank attends to its keys, for all queries; one all-gather exchanges the states, out in float32 and lse; every rank
    merges them in the order of the ranks. The result is that of one call over all keys within the rounding of float32 sums
    (a q of 16 bits is rounded once, at the end), and the same bits on every rank of one SIMD target.

    How the keys of a sequence are cut:

    - interleave None: contiguously. Rank r holds the keys that follow those of the ranks before it.
    - interleave = i: key p is on rank p // i % ranks, as in vLLM's decode context parallelism.

    Ranks may hold any numbers of a sequence's keys, 0 included. With one query a sequence and no window the keys may be divided in any
    way, as the query sees all of them; otherwise, and with alibi_slopes, one more small all-gather tells the ranks how
    many keys of each sequence the others have.

    Args:
      q: [tokens, q_heads, head_dim], the same on all ranks: the last positions of the whole sequences.
      keys, values, page_table: this rank's pages, as for riffle.torch.paged_attention.
      kv_lens: [B], the keys of each sequence that this rank holds; 0 is possible.
      cu_q_lens, sinks: as for riffle.torch.paged_attention, the same on all ranks. So are layout, scale, soft_cap, mask_value,
        key_scales, value_scales, key_format and value_format; scales are those of this rank's pages.
      causal, window, window_right: as there, by the positions in the whole sequences. Causal queries, of which there are several,
        are no more than the sequence's keys.
      mask: of this rank's keys, in their order: [tokens or 1, q_heads or 1, at least the longest of kv_lens].
      alibi_slopes: as there, by the positions in the whole sequences; not with interleave.
      out, return_lse: as there; lse is that of all keys.
      group: the process group; None: all processes.
      interleave: see above; at least 1.

    Returns:
      As riffle.torch.paged_attention, the same on every rank.

    Raises:
      RuntimeError: what riffle.torch.paged_attention raises; kv_lens that no cut by `interleave` gives; no process group;
        q that requires grad.
      NotImplementedError: a device that is not the CPU.
    """
    names = "q", "keys", "values", "kv_lens", "page_table"
    optional = dict(cu_q_lens=cu_q_lens, sinks=sinks, mask=mask, alibi_slopes=alibi_slopes)
    check_tensors("paged_attention", dict(zip(names, (q, keys, values, kv_lens, page_table))), optional)
    check_on_cpu(q=q, keys=keys, values=values, kv_lens=kv_lens)
    check_no_grad("paged_attention", q=q, keys=keys, values=values)
    options: dict = dict(layout=layout, scale=scale, soft_cap=soft_cap, mask_value=mask_value, key_scales=key_scales,
                         value_scales=value_scales, key_format=key_format, value_format=value_format)  # fmt: skip
    return_lse = call(as_bool, "return_lse", return_lse)
    if q.dim() != 3 or kv_lens.dim() != 1:
        raise RuntimeError(f"q has shape {tuple(q.shape)} and kv_lens {tuple(kv_lens.shape)}; they must be [tokens, q_heads, head_dim] and [B]")
    if interleave is not None:
        checked_interleave = interleave = integer("interleave", interleave)
        torch._check(checked_interleave >= 1, lambda: f"interleave = {interleave} is not at least 1")
        torch._check(alibi_slopes is None, lambda: "alibi_slopes are not possible with interleave")
    visibility = _visibility(causal, window, window_right, kv_lens.shape[0])
    ranks = Ranks(group)
    q_lens = _q_lens(q, kv_lens, cu_q_lens)
    mask_options: dict = dict(mask=mask)
    after = None
    if kv_lens.numel() and (visibility.window is not None or alibi_slopes is not None or (q_lens > 1).any()):
        lens = ranks.gather(kv_lens.long())
        _check_lens(visibility, lens, q_lens, interleave)
        if interleave is None:
            after = lens[ranks.rank + 1 :].sum(0)
            kv_lens, mask_options = _contiguous(visibility, lens[: ranks.rank + 1].sum(0), kv_lens, after, q_lens, mask)
        else:
            keys_at = _interleaved_positions(int(kv_lens.max()), interleave, ranks)
            mask_options = dict(mask=_masked(mask, visibility, keys_at.expand(kv_lens.shape[0], -1), lens.sum(0), q_lens))
    state, lse = _attention.paged_attention(q.float(), keys, values, kv_lens, page_table, cu_q_lens=cu_q_lens, causal=False,
                                            alibi_slopes=alibi_slopes, return_lse=True, **mask_options, **options)  # fmt: skip
    if alibi_slopes is not None and after is not None:  # the call has taken the last key here for the last of all
        lse = (lse - after.repeat_interleave(q_lens)[:, None] * alibi_slopes.double()).float()
    merged, merged_lse = _merge(ranks, state, lse, sinks)
    result = merged.to(q.dtype) if out is None else out.copy_(merged)
    return (result, merged_lse) if return_lse else result


def _q_lens(q: Tensor, kv_lens: Tensor, cu_q_lens: Tensor | None) -> Tensor:
    """int64 [B], queries of each sequence."""
    if cu_q_lens is None:
        return torch.ones(kv_lens.shape[0], dtype=torch.int64)
    torch._check(cu_q_lens.dim() == 1, lambda: f"cu_q_lens has shape {tuple(cu_q_lens.shape)}; it must be [B + 1]")
    lens = cu_q_lens.long().diff()
    fits = lens.numel() == kv_lens.numel() and bool((lens >= 0).all()) and int(lens.sum()) == q.shape[0] and int(cu_q_lens[0]) == 0
    torch._check(fits, lambda: f"cu_q_lens = {cu_q_lens.tolist()} does not part {q.shape[0]} queries among {kv_lens.numel()} sequences")
    return lens


class _Visibility(NamedTuple):
    """Which keys a query at position p sees: those of [p - window + 1, p + right]."""

    causal: Tensor  # bool [B]
    window: int | None
    right: Tensor  # int64 [B], _ALL for no limit


_ALL = 2**62


def _visibility(causal: bool | Tensor, window: int | None, window_right: int | None, sequences: int) -> _Visibility:
    if isinstance(causal, Tensor):
        torch._check(causal.dtype is torch.bool and causal.shape == (sequences,),
                     lambda: f"causal has dtype {causal.dtype} and shape {tuple(causal.shape)}; it must be a bool or bools [{sequences}]")  # fmt: skip
    else:
        causal = torch.full((sequences,), call(as_bool, "causal", causal))
    left: Any = _attention._window_argument("window", window)
    right: Any = _attention._window_argument("window_right", window_right)
    torch._check(left is None or left >= 1, lambda: f"window = {left} is not at least 1")
    torch._check(right is None or right >= 0, lambda: f"window_right = {right} is not at least 0")
    torch._check(not right or not causal.any(), lambda: f"window_right = {right} but causal is set, under which no query sees a later key")
    beyond = right if right is not None else _ALL if left is None else 0
    return _Visibility(causal, left, torch.where(causal, 0, beyond))


def _check_lens(visibility: _Visibility, lens: Tensor, q_lens: Tensor, interleave: int | None) -> None:
    """RuntimeError, on all ranks alike, for lens [ranks, B] of keys that cannot be."""
    total = lens.sum(0)
    short = visibility.causal & (q_lens > total) & (total > 0)
    if short.any():
        b = int(short.nonzero()[0])
        raise RuntimeError(f"kv_lens[{b}] is {total[b]} on all ranks together, less than its {q_lens[b]} queries, and causal is set")
    if interleave is not None:
        ranks = torch.arange(len(lens))[:, None]
        rest = total % (interleave * len(lens)) - ranks * interleave
        expected = total // (interleave * len(lens)) * interleave + rest.clamp(0, interleave)
        if not torch.equal(lens, expected):
            rank, b = (lens != expected).nonzero()[0].tolist()
            raise RuntimeError(
                f"kv_lens[{b}] = {lens[rank, b]} on rank {rank}; of {total[b]} keys with interleave = {interleave} it holds {expected[rank, b]}"
            )


def _contiguous(visibility: _Visibility, end: Tensor, kv_lens: Tensor, after: Tensor, q_lens: Tensor, mask: Tensor | None) -> tuple[Tensor, dict]:
    """(kv_lens, options) of the call that shows a contiguous part of the keys.

    The call takes the last key here for the last key of all, so both its windows are moved by the number of keys after this part.

    Args:
      end, after: int64 [B], the number of keys up to the end of this part, and after it.
    """
    if visibility.window is not None:  # a part out of reach of all queries need not be read
        kv_lens = torch.where(after >= visibility.window + q_lens - 1, 0, kv_lens)
    some = kv_lens > 0
    if not some.any():
        return kv_lens, dict(mask=mask)
    # A single query comes after all keys of this rank.
    right = torch.full_like(after, _ALL) if (q_lens <= 1).all() else (visibility.right + after).clamp(max=_ALL)
    moved, right = after[some], right[some]
    if visibility.window is None and (right == _ALL).all():
        return kv_lens, dict(mask=mask)
    # Does one window suit all sequences, and are all queries among the keys here, as windows take them to be?
    alike = (right == right[0]).all() and (q_lens <= kv_lens)[some].all()
    if alike and (visibility.window is None or ((moved == moved[0]).all() and moved[0] < visibility.window)):
        limit = None if right[0] >= _ALL else int(right[0])
        return kv_lens, dict(mask=mask, window=None if visibility.window is None else visibility.window - int(moved[0]), window_right=limit)
    positions = (end - kv_lens)[:, None] + torch.arange(int(kv_lens.max()))
    return kv_lens, dict(mask=_masked(mask, visibility, positions, end + after, q_lens))


def _interleaved_positions(count: int, interleave: int, ranks: Ranks) -> Tensor:
    """The positions in their sequence of the first `count` keys of this rank."""
    number = torch.arange(count)
    return number // interleave * (interleave * ranks.count) + ranks.rank * interleave + number % interleave


def _masked(mask: Tensor | None, visibility: _Visibility, positions: Tensor, total: Tensor, q_lens: Tensor) -> Tensor | None:
    """The mask, if any, that hides what a query does not see, too: [tokens, q_heads or 1, n].

    Args:
      positions: int64 [B, n], of this rank's keys in the whole sequence.
      total: int64 [B], keys of each sequence on all ranks.
    """
    n = positions.shape[1]
    if n == 0:
        return mask
    sequence = torch.arange(len(total)).repeat_interleave(q_lens)
    first = torch.cumsum(q_lens, 0) - q_lens
    query = (total - q_lens - first)[sequence] + torch.arange(len(sequence))
    visible = positions[sequence] <= (query + visibility.right[sequence])[:, None]
    if visibility.window is not None:
        visible &= positions[sequence] > (query - visibility.window)[:, None]
    visible = visible[:, None, :]
    if mask is None:
        return visible
    torch._check(mask.dim() == 3 and mask.shape[2] >= n, lambda: f"mask has shape {tuple(mask.shape)}; its last axis has at least {n} keys")
    return visible & mask[..., :n] if mask.dtype is torch.bool else mask[..., :n].masked_fill(~visible, -torch.inf)


def _merge(ranks: Ranks, state: Tensor, lse: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Merges the states of all ranks and the sinks: one all-gather."""
    if state.numel() == 0:
        return state, lse
    received = ranks.gather(torch.cat([state.reshape(-1), lse.reshape(-1)]))
    outs = [part[: state.numel()].view(state.shape) for part in received]
    lses = [part[state.numel() :].view(lse.shape) for part in received]
    if sinks is not None:  # a key of that logit, and without a value
        torch._check(sinks.shape == lse.shape[1:], lambda: f"sinks has shape {tuple(sinks.shape)}; it must be [{lse.shape[1]}]")
        outs.append(torch.zeros_like(state))
        lses.append(sinks.float().expand(lse.shape).contiguous())
    merged, merged_lse = call(riffle.merge_states, outs, lses)
    return merged, merged_lse

"""Continuous batching in Transformers: attention over its paged cache."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from riffle._transformers_call import HEAD_DIM_STEP, MAX_HEAD_DIM, attend, refuse, tokens_as_pages
from riffle._transformers_masks import Mask, VisibleKeys, token_table

# What the layers of an allocator share in a forward; made anew by the first of them.
_shared: weakref.WeakKeyDictionary[Any, tuple[str, int, VisibleKeys]] = weakref.WeakKeyDictionary()


def _check_paged(module, query, key, value, mask, allocator) -> int | None:
    """The window of a layer of a paged cache: what its mask asks for must be what the cache does. None: no window."""
    known = mask.structure if isinstance(mask, Mask) else None
    if known is None or not known.causal or known.chunk is not None:
        raise refuse(module, "with a paged cache it takes causal and sliding-window masks of the AttentionMaskInterface only")
    window = allocator.sliding_window if allocator.layer_type == "sliding_attention" else None
    if known.window != window:
        raise refuse(module, f"its mask has the window {known.window}, its paged cache {window}")
    head_dim = query.shape[-1]
    fits = head_dim <= MAX_HEAD_DIM and head_dim % HEAD_DIM_STEP == 0
    if not fits or not head_dim == key.shape[-1] == value.shape[-1]:
        dims = f"{head_dim}, {key.shape[-1]} and {value.shape[-1]}"
        raise refuse(module, f"head_dim of queries, keys and values = {dims}; with a paged cache riffle takes the same for "
                      f"all, a multiple of {HEAD_DIM_STEP} up to {MAX_HEAD_DIM}")  # fmt: skip
    return window


def paged_attention(module, query, key, value, mask, cache, options, kwargs) -> torch.Tensor:
    """Continuous batching: writes the new keys and values into the paged cache and reads all of them there."""
    if kwargs.get("block_table") is not None:
        raise ValueError("riffle attention reads the paged cache by its read indices; set max_blocks_per_request=0")
    allocator = cache.layer_to_allocator[module.layer_idx]
    window = _check_paged(module, query, key, value, mask, allocator)
    if module.layer_idx == allocator.layer_indices[0] or allocator not in _shared:
        _shared[allocator] = _plan(allocator, kwargs)
    how, page, where = _shared[allocator]
    q = query[0].transpose(0, 1)
    key, value = (x[0].transpose(0, 1) for x in (key, value))  # [tokens, kv_heads, head_dim]
    read, write = (kwargs[name][allocator.index] for name in ("read_index", "write_index"))
    if how == "in place":
        caches = allocator._kv_token_views[module.layer_idx]
        for tokens, new in zip(caches, (key, value)):
            tokens.index_copy_(0, write, new)
        # The values' view starts later in the same memory.
        whole = min(len(tokens) for tokens in caches) // page * page
        keys, values = (tokens[:whole].unflatten(0, (-1, page)) for tokens in caches)
        # A ring buffer of keys is not in the order of positions, and it holds exactly the window, so no window is passed.
        out = attend(q, keys, values, where, "NHD", options)
    else:
        # Either nothing was cached, so the new tokens are all there is; or chunks overwrite what their first queries see, so the keys
        # and values have been gathered before.
        key, value = allocator.update(key, value, module.layer_idx, read, write)
        keys, values = (tokens_as_pages(x.transpose(0, 1)[None]) for x in (key, value))
        out = attend(q, keys, values, where._replace(window=window), "HND", options)
    return out[None]


def _plan(allocator, kwargs) -> tuple[str, int, VisibleKeys]:
    cu_q_lens = kwargs["cu_seq_lens_q"].to(torch.int32)
    cu_kv_lens = kwargs["cu_seq_lens_k"][allocator.layer_type].to(torch.int64)
    kv_lens = cu_kv_lens.diff()
    read, write = (kwargs[name][allocator.index] for name in ("read_index", "write_index"))
    page = allocator.tokens_per_page
    sliding = allocator.layer_type == "sliding_attention"
    decode = bool((cu_q_lens.diff() == 1).all())
    if read.numel() == 0:
        return "packed", page, token_table(cu_q_lens[:-1], cu_q_lens.diff(), cu_q_lens)
    if sliding and not (decode and allocator.sliding_window % page == 0):
        return "packed", page, token_table(cu_kv_lens[:-1], kv_lens, cu_q_lens)
    # The first token of each page of a sequence says which page that is. The last token of a ring is the new one.
    token = torch.arange(-(-int(kv_lens.max()) // page)) * page
    index = (cu_kv_lens[:-1, None] + token).clamp(max=read.numel() - 1)
    physical = read[index]
    if sliding:
        physical = torch.where(token < kv_lens[:, None] - 1, physical, write[:, None])
    table = torch.where(token < kv_lens[:, None], physical // page, -1)
    return "in place", page, VisibleKeys(kv_lens.to(torch.int32), table.to(torch.int32), None if decode else cu_q_lens)

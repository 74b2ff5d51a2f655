"""Riffle under Hugging Face Transformers 5, on CPUs: attention for `generate` and for continuous batching, and a sampler.

>>> import riffle.transformers
>>> riffle.transformers.register()

makes `attn_implementation="riffle"` valid for every model that takes its attention from Transformers' AttentionInterface
(`"paged|riffle"`, which Transformers itself reads as `"riffle"` with a paged cache, is registered too):

    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="riffle")

Keys and values are read where the caches of Transformers hold them. Sliding windows, soft caps and attention sinks go
through; so does left padding. What has no such form is refused: other masks, dropout, gradients, devices other than the CPU.

`Sampler` draws tokens by riffle.sample instead of sorting the vocabulary; `use_top_k_head` computes only the logits that
count; `GrowingCache` does not copy the cache at every step.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any, NamedTuple

import torch
import transformers
from transformers import LogitsProcessor
from transformers.generation.continuous_batching import ContinuousBatchingManager, PagedAttentionCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import riffle
import riffle.torch
from riffle._transformers_cache import GrowingCache

__all__ = ["GrowingCache", "Sampler", "TopKHead", "attention", "attention_mask", "register", "use_top_k_head"]

# The most tokens of a page that riffle takes.
_MAX_PAGE = 256
_OVERLAID = "riffle attention takes causal and sliding-window masks, not what is laid over them here"


def register() -> None:
    """Makes "riffle" and "paged|riffle" attention implementations of Transformers. May be called again.

    Riffle then runs on PyTorch's threads, as many as torch.get_num_threads() says (riffle.torch.use_torch_threads), since its
    calls alternate with PyTorch's.
    Continuous batching would choose another implementation than one it does not know: its check leaves this one alone.
    """
    for name in ("riffle", "paged|riffle"):
        ALL_ATTENTION_FUNCTIONS.register(name, attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, attention_mask)
    riffle.torch.use_torch_threads()
    check = ContinuousBatchingManager.switch_to_cb_friendly_attn
    if getattr(check, "knows_riffle", False):
        return

    @functools.wraps(check)
    def switch_to_cb_friendly_attn(self, model, *args, **kwargs):
        if model.config._attn_implementation not in ("riffle", "paged|riffle"):
            return check(self, model, *args, **kwargs)

    switch_to_cb_friendly_attn.knows_riffle = True
    ContinuousBatchingManager.switch_to_cb_friendly_attn = switch_to_cb_friendly_attn


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    **kwargs: Any,
) -> torch.Tensor | None:
    """Transformers' mask interface: None where every key of the cache counts, else the padding mask [batch, keys].

    Causality and windows need no mask. Raises ValueError for other masks laid over them.
    """
    if use_vmap:
        raise ValueError(_OVERLAID)
    if not allow_is_causal_skip and q_length > 1:
        # Packed sequences, as continuous batching has them; whether there is a paged cache is seen in `attention` alone.
        return torch.empty(0)
    # A static cache holds more keys than have been seen.
    if attention_mask is None:
        seen = int(q_offset) + q_length - int(kv_offset)
        return torch.ones(batch_size, seen, dtype=torch.bool) if seen < kv_length else None
    attention_mask = attention_mask[:, -kv_length:]
    if attention_mask.shape[1] == kv_length and bool(attention_mask.all()):
        return None
    return attention_mask


class _Keys(NamedTuple):
    """What the queries of a forward see, the same in all layers that share a kind of cache."""

    kv_lens: torch.Tensor  # int32 [B]
    page_table: torch.Tensor  # int32 [B, max_pages]
    cu_q_lens: torch.Tensor | None  # int32 [B + 1]


def _spans(starts: torch.Tensor, lengths: torch.Tensor, cu_q_lens: torch.Tensor | None) -> _Keys:
    """Keys that lie one after another: `lengths` tokens from token `starts` on, for pages of one token."""
    table = starts[:, None] + torch.arange(max(int(lengths.max()), 1))
    # What follows a sequence's last page is not read.
    return _Keys(lengths.to(torch.int32), table.to(torch.int32), cu_q_lens)


@functools.lru_cache(maxsize=4)  # the layers of a forward are of one or two kinds
def _unpadded(batch: int, q_len: int, kv_len: int, row: int) -> _Keys:
    """All tokens of rows that begin `row` tokens after each other."""
    starts, lengths = torch.arange(batch) * row, torch.full((batch,), kv_len)
    return _spans(starts, lengths, None if q_len == 1 else torch.arange(batch + 1, dtype=torch.int32) * q_len)


def _padded(mask: torch.Tensor, q_len: int, row: int) -> _Keys:
    """As _unpadded, without the padding on the left that `mask` [batch, keys] has zeros for."""
    mask = mask.bool()
    batch, kv_len = mask.shape
    padding = (~mask).sum(1)
    if not bool((mask == (torch.arange(kv_len) >= padding[:, None])).all()):
        raise ValueError("riffle attention takes padding on the left only")
    lengths, starts = kv_len - padding, torch.arange(batch) * row + padding
    # Queries of padding see nothing: each sequence comes after one of no keys that has them.
    blind = (q_len - lengths).clamp(min=0)
    q_lens = torch.full((batch,), q_len)
    if bool(blind.any()):
        q_lens = torch.stack([blind, q_len - blind], 1).reshape(-1)
        lengths = torch.stack([torch.zeros_like(lengths), lengths], 1).reshape(-1)
        starts = starts.repeat_interleave(2)
    elif q_len == 1:
        return _spans(starts, lengths, None)
    cu_q_lens = torch.zeros(len(q_lens) + 1, dtype=torch.int32)
    cu_q_lens[1:] = q_lens.cumsum(0)
    return _spans(starts, lengths, cu_q_lens)


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """x [batch, heads, tokens, head_dim] in place as pages of one token each, [pages, heads, 1, head_dim]: token i of row b
    is page b * (stride of rows) / (stride of tokens) + i."""
    batch, heads, tokens, head_dim = x.shape
    row, head, token, _ = x.stride()
    pages = tokens + (batch - 1) * (row // token)
    return x.as_strided((pages, heads, 1, head_dim), (token, head, token, 1))


def _check(module: Any, query: torch.Tensor, dropout: float) -> None:
    if query.device.type != "cpu":
        raise ValueError(f"riffle attention runs on the CPU; the queries are on {query.device}")
    if dropout:
        raise ValueError(f"riffle attention has no dropout; dropout = {dropout}")
    if torch.is_grad_enabled() and query.requires_grad:
        raise ValueError("riffle attention has no gradient; use torch.no_grad(), or another attn_implementation")


@torch.compiler.disable
def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: torch.Tensor | None = None,
    cache: PagedAttentionCache | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface on riffle.paged_attention.

    query [batch, heads, q_len, head_dim]; key, value [batch, kv_heads, kv_len, head_dim], the whole cache, or with a
    paged `cache` the new tokens. s_aux (or module.sinks): sinks. Returns ([batch, q_len, heads, head_dim], None).
    """
    _check(module, query, dropout if getattr(module, "training", False) else 0)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if not causal and sliding_window is not None:
        raise ValueError("riffle attention takes sliding windows of causal attention only")
    sinks = s_aux if s_aux is not None else getattr(module, "sinks", None)
    options = dict(
        scale=scaling,
        causal=causal,
        window=sliding_window,
        soft_cap=softcap,
        sinks=None if sinks is None else sinks.detach().reshape(-1),
    )
    query, key, value = (x.detach() if x.requires_grad else x for x in (query, key, value))
    if isinstance(cache, PagedAttentionCache):
        return _paged(module, query, key, value, cache, options, kwargs), None
    if not isinstance(attention_mask, torch.Tensor) and attention_mask is not None:
        raise ValueError("riffle attention takes a padding mask [batch, keys]")
    if attention_mask is not None and attention_mask.numel() == 0:
        raise ValueError(_OVERLAID)
    return _plain(query, key, value, attention_mask, options), None


def _plain(query, key, value, mask, options) -> torch.Tensor:
    """A cache [batch, kv_heads, kv_len, head_dim], read in place."""
    batch, heads, q_len, head_dim = query.shape
    row, _, token, last = key.stride()
    if key.stride() != value.stride() or last != 1 or token < 1 or row % token:
        key, value = key.contiguous(), value.contiguous()
        row, _, token, _ = key.stride()
    row //= token
    if mask is None:
        where = _unpadded(batch, q_len, key.shape[2], row)
    else:
        if mask.ndim != 2:
            raise ValueError(f"riffle attention takes a padding mask [batch, keys], not of shape {tuple(mask.shape)}")
        # attention_mask makes one for each forward and kind of layer; they share what follows from it.
        known = mask.__dict__.setdefault("_riffle_keys", {})
        where = known.get((q_len, row))
        if where is None:
            where = known[q_len, row] = _padded(mask, q_len, row)
    q = query[0].transpose(0, 1) if batch == 1 else query.transpose(1, 2).reshape(batch * q_len, heads, head_dim)
    out = _attend(q, _tokens(key), _tokens(value), where, "HND", options)
    return out.view(batch, q_len, heads, head_dim)


def _attend(q, keys, values, where: _Keys, layout: str, options) -> torch.Tensor:
    return riffle.paged_attention(
        q, keys, values, where.kv_lens, where.page_table, cu_q_lens=where.cu_q_lens, layout=layout, **options
    )


# What the layers of an allocator share in a forward; made anew by the first of them.
_shared: weakref.WeakKeyDictionary[Any, tuple[str, int, _Keys]] = weakref.WeakKeyDictionary()


def _paged(module, query, key, value, cache, options, kwargs) -> torch.Tensor:
    """Continuous batching: writes the new keys and values into the paged cache and reads all of them there."""
    if kwargs.get("block_table") is not None:
        raise ValueError("riffle attention reads the paged cache by its read indices; set max_blocks_per_request=0")
    allocator = cache.layer_to_allocator[module.layer_idx]
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
        pages = [tokens[:whole].unflatten(0, (-1, page)) for tokens in caches]
        # A ring of keys is no sequence: what it holds is the window.
        options = options if allocator.layer_type != "sliding_attention" else {**options, "window": None}
        out = _attend(q, *pages, where, "NHD", options)
    else:
        # Nothing cached yet: the new ones. Or chunks that overwrite what their first queries see: gathered before that.
        key, value = allocator.update(key, value, module.layer_idx, read, write)
        pages = [_tokens(x.transpose(0, 1)[None]) for x in (key, value)]
        out = _attend(q, *pages, where, "HND", options)
    return out[None]


def _plan(allocator, kwargs) -> tuple[str, int, _Keys]:
    cu_q_lens = kwargs["cu_seq_lens_q"].to(torch.int32)
    cu_kv_lens = kwargs["cu_seq_lens_k"][allocator.layer_type].to(torch.int64)
    kv_lens = cu_kv_lens.diff()
    read, write = (kwargs[name][allocator.index] for name in ("read_index", "write_index"))
    size = allocator.tokens_per_page
    page = next(p for p in range(min(size, _MAX_PAGE), 0, -1) if size % p == 0)
    sliding = allocator.layer_type == "sliding_attention"
    decode = bool((cu_q_lens.diff() == 1).all())
    if read.numel() == 0:
        return "packed", page, _spans(cu_q_lens[:-1], cu_q_lens.diff(), cu_q_lens)
    if sliding and not (decode and allocator.sliding_window % page == 0):
        return "packed", page, _spans(cu_kv_lens[:-1], kv_lens, cu_q_lens)
    # The first token of each page of a sequence says which page that is. The last token of a ring is the new one.
    token = torch.arange(-(-int(kv_lens.max()) // page)) * page
    index = (cu_kv_lens[:-1, None] + token).clamp(max=read.numel() - 1)
    physical = read[index]
    if sliding:
        physical = torch.where(token < kv_lens[:, None] - 1, physical, write[:, None])
    table = torch.where(token < kv_lens[:, None], physical // page, -1)
    return "in place", page, _Keys(kv_lens.to(torch.int32), table.to(torch.int32), None if decode else cu_q_lens)


class Sampler(LogitsProcessor):
    """Draws the next token by riffle.sample: temperature, top-k, top-p and min-p without a sort of the vocabulary.

    For `model.generate(..., do_sample=False, logits_processor=LogitsProcessorList([Sampler(top_p=0.95)]))`: it raises the
    token that it drew above all others, and greedy search takes it. It comes last and replaces do_sample with its
    temperature, top_k, top_p and min_p. A sequence's tokens depend on its logits, the seed and the number of its row, not
    on PyTorch's generator.

    Args: as riffle.sample: one number, or one a row.

    >>> import torch, riffle.transformers
    >>> sampler = riffle.transformers.Sampler(top_k=1)
    >>> sampler(torch.tensor([[1, 2]]), torch.tensor([[0.5, 2.0, 1.0]]))
    tensor([[0.5000,    inf, 1.0000]])
    """

    def __init__(self, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed: int = 0) -> None:
        self._parameters = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores [rows, vocab] with +inf at the tokens drawn; written in place."""
        tokens = riffle.sample(scores, position=input_ids.shape[-1], **self._parameters)
        return scores.scatter_(1, tokens.to(torch.int64)[:, None], float("inf"))


class TopKHead(torch.nn.Module):
    """An LM head whose logits are those of `head` for the k largest of each row, and -inf for all others.

    Computed by riffle.linear_top_k on the weight and bias of `head`, which it shares; see use_top_k_head.

    >>> import torch, riffle.transformers
    >>> head = torch.nn.Linear(2, 3, bias=False)
    >>> _ = head.requires_grad_(False).weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    >>> riffle.transformers.TopKHead(head, 2)(torch.tensor([[3.0, 4.0]]))
    tensor([[-inf, 4., 7.]])
    """

    def __init__(self, head: torch.nn.Linear, k: int) -> None:
        super().__init__()
        if not isinstance(head, torch.nn.Linear):
            raise ValueError(f"the LM head is {type(head).__name__}, not torch.nn.Linear")
        if not 1 <= k <= head.out_features:
            raise ValueError(f"k = {k} is not in 1..{head.out_features}")
        self.in_features, self.out_features, self.k = head.in_features, head.out_features, k
        self.weight, self.bias = head.weight, head.bias

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states [..., d] -> logits [..., vocab] of the same dtype."""
        if torch.is_grad_enabled() and (hidden_states.requires_grad or self.weight.requires_grad):
            raise ValueError("an LM head of the k largest logits has no gradient; use torch.no_grad()")
        x, bias = hidden_states.detach().reshape(-1, self.in_features), self.bias
        logits = x.new_full((x.shape[0], self.out_features), -torch.inf)
        values, indices = riffle.torch.linear_top_k(
            x, self.weight.detach(), self.k, bias=None if bias is None else bias.detach()
        )
        logits.scatter_(1, indices.to(torch.int64), values.to(x.dtype))
        return logits.view(*hidden_states.shape[:-1], self.out_features)


def use_top_k_head(model: Any, k: int) -> None:
    """Replaces the LM head of a model by TopKHead(head, k), or for k = 0 puts the head back.

    Greedy search, and sampling whose top_k is at most k, give what they gave before; the draws of others are renormalised
    over the k largest logits. What reads further logits is not served: beam search, penalties and processors that raise or
    lower tokens before the top_k, losses, perplexity.

    Raises:
      ValueError: k is not in 0..vocab; the head is not a torch.nn.Linear; the model has a soft cap on its logits, which
        makes -inf finite.
    """
    head = model.get_output_embeddings()
    if isinstance(head, TopKHead):
        bias = head.bias is not None
        linear = torch.nn.Linear(head.in_features, head.out_features, bias=bias, device="meta")
        linear.weight, linear.bias = head.weight, head.bias
        head = linear
    if k and getattr(model.config.get_text_config(), "final_logit_softcapping", None) is not None:
        raise ValueError("the model caps its logits: those that were left out would count")
    model.set_output_embeddings(TopKHead(head, k) if k else head)


GrowingCache.__module__ = "riffle.transformers"

_major = int(transformers.__version__.split(".")[0])
if _major < 5:
    raise ImportError(f"riffle.transformers needs Transformers 5; this is {transformers.__version__}")
del _major

"""Riffle under Hugging Face Transformers 5, on CPUs: attention for `generate` and for continuous batching, and a sampler.

>>> import riffle.transformers
>>> riffle.transformers.register()

makes `attn_implementation="riffle"` valid for every model that takes its attention from Transformers' AttentionInterface
(`"paged|riffle"`, which Transformers itself reads as `"riffle"` with a paged cache, is registered too):

    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="riffle")

Keys and values are read where the caches of Transformers hold them. What a query sees is what the model asks of
Transformers' masks: causal, sliding windows, chunks, padding and any other choice of keys; soft caps and attention sinks go
through, and so do masks that add to the logits. What riffle does not compute is refused, with the name of the model and the
reason: keywords that are not known here, models that compute their attention themselves, dropout, gradients, devices other than the CPU.

`Sampler` draws tokens by riffle.sample instead of sorting the vocabulary; `use_top_k_head` computes only the logits that
count; `GrowingCache` does not copy the cache at every step; `use_sparse_attention` runs the indexer and the attention of DeepSeek's
sparse attention.
"""

from __future__ import annotations

import functools
from typing import Any

try:
    import torch
    import transformers
except ImportError as error:
    raise ImportError("riffle.transformers needs PyTorch and Transformers 5: pip install torch 'transformers>=5'") from error

if int(transformers.__version__.split(".")[0]) < 5:
    raise ImportError(
        f"riffle.transformers needs Transformers 5; this is {transformers.__version__}: pip install 'transformers>=5'"
    )

from transformers.generation.continuous_batching import ContinuousBatchingManager, PagedAttentionCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

import riffle.torch
from riffle._transformers_cache import GrowingCache
from riffle._transformers_call import HEAD_DIM_STEP, MAX_HEAD_DIM, attend, refuse, tokens_as_pages
from riffle._transformers_head import TopKHead, use_top_k_head
from riffle._transformers_masks import (
    WITHOUT_EFFECT,
    Mask,
    VisibleKeys,
    additive_in,
    all_keys,
    by_mask,
    check_interface,
    in_float32,
    keys_seen,
    queries_without_keys,
    visible_in,
)
from riffle._transformers_paged import paged_attention
from riffle._transformers_sampler import Sampler
from riffle._transformers_sparse import use_sparse_attention

__all__ = ["GrowingCache", "Sampler", "TopKHead", "attention", "attention_mask", "register", "use_sparse_attention",
           "use_top_k_head"]  # fmt: skip


def register() -> None:
    """Makes "riffle" and "paged|riffle" attention implementations of Transformers. May be called again.

    Riffle then runs on PyTorch's threads, as many as torch.get_num_threads() says (riffle.torch.use_torch_threads), since its
    calls alternate with PyTorch's.
    Continuous batching replaces an implementation that it does not know; the check by which it does so is wrapped, so that it
    leaves this one alone.
    """
    for name in ("riffle", "paged|riffle"):
        ALL_ATTENTION_FUNCTIONS.register(name, attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, attention_mask)
    riffle.torch.use_torch_threads()
    _check_models()
    check = ContinuousBatchingManager.switch_to_cb_friendly_attn
    if getattr(check, "knows_riffle", False):
        return

    @functools.wraps(check)
    def switch_to_cb_friendly_attn(self, model, *args, **kwargs):
        if model.config._attn_implementation not in ("riffle", "paged|riffle"):
            return check(self, model, *args, **kwargs)
        check_interface(model.config.get_text_config())  # here an error reaches the caller

    setattr(switch_to_cb_friendly_attn, "knows_riffle", True)  # noqa: B010
    ContinuousBatchingManager.switch_to_cb_friendly_attn = switch_to_cb_friendly_attn


def _check_models() -> None:
    """Has models that look up their attention in a table of their own refuse "riffle" when they are made."""
    choose = PreTrainedModel.get_correct_attn_implementation
    if getattr(choose, "knows_riffle", False):
        return

    @functools.wraps(choose)
    def get_correct_attn_implementation(self, requested_attention, *args, **kwargs):
        if requested_attention in ("riffle", "paged|riffle"):
            check_interface(self.config, type(self).__module__)
        return choose(self, requested_attention, *args, **kwargs)

    setattr(get_correct_attn_implementation, "knows_riffle", True)  # noqa: B010
    PreTrainedModel.get_correct_attn_implementation = get_correct_attn_implementation


@torch.compiler.disable
def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    use_vmap: bool = False,
    device: Any = "cpu",
    config: Any = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Transformers' mask interface: the description of the mask, as a tensor [batch, 1, queries, keys] without memory.

    It is never None, so `attention` can tell a mask that shows all keys from one that nobody asked for. The other arguments
    of Transformers (local_size, allow_is_causal_skip, ...) say when a mask may be left out; here it never is.

    Raises:
      ValueError: the model computes its attention itself, so that riffle would have no part in it.
    """
    check_interface(config)
    # Read as numbers now: a static cache goes on counting in place in the tensors that it hands over.
    request = dict(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=int(kv_length),
        q_offset=int(q_offset),
        kv_offset=int(kv_offset),
        mask_function=mask_function,
        attention_mask=attention_mask,
        use_vmap=use_vmap,
    )
    return Mask(request, dtype, device)


# Keywords that continuous batching passes.
_OF_A_PAGED_CACHE = frozenset("read_index write_index block_table logits_indices logits_processor_args".split())


def _check(module: Any, query: torch.Tensor, dropout: float, paged: bool, kwargs: dict[str, Any]) -> None:
    if query.device.type != "cpu":
        raise ValueError(f"riffle attention runs on the CPU; the queries are on {query.device}")
    if dropout:
        raise ValueError(f"riffle attention has no dropout; dropout = {dropout}")
    if torch.is_grad_enabled() and query.requires_grad:
        raise ValueError("riffle attention has no gradient; use torch.no_grad(), or another attn_implementation")
    known = WITHOUT_EFFECT | _OF_A_PAGED_CACHE if paged else WITHOUT_EFFECT
    for name, argument in kwargs.items():
        if name not in known and argument is not None and argument is not False:
            raise refuse(module, f"it passes {name}, which riffle attention does not know")


@torch.compiler.disable
def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: torch.Tensor | None = None,
    cache: PagedAttentionCache | None = None,
    indices: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface on riffle.paged_attention.

    query [batch, heads, q_len, head_dim]; key, value [batch, kv_heads, kv_len, head_dim], the whole cache, or with a
    paged `cache` the new tokens. s_aux (or module.sinks): sinks. indices [batch, q_len, n]: the keys that an indexer chose, of
    which a query sees those that the mask shows. position_bias [batch or 1, heads or 1, q_len, kv_len] is added to the scaled
    logits. Returns ([batch, q_len, heads, head_dim], None).

    The mask says what is seen, as in Transformers' eager attention. Causality and windows that the layer names beside a mask are
    meant for kernels without masks and change nothing. Without a mask a layer that is not causal, or a single query, sees all keys.
    """
    paged = isinstance(cache, PagedAttentionCache)
    if indices is not None and (paged or attention_mask is None):
        raise refuse(module, "it passes indices of keys with a paged cache or without a mask")
    if position_bias is not None and paged:
        raise refuse(module, "it passes position_bias with a paged cache")
    _check(module, query, dropout if getattr(module, "training", False) else 0, paged, kwargs)
    sinks = s_aux if s_aux is not None else getattr(module, "sinks", None)
    options = dict(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        soft_cap=softcap,
        sinks=None if sinks is None else sinks.detach().reshape(-1),
    )
    query, key, value = (x.detach() if x.requires_grad else x for x in (query, key, value))
    if paged:
        return paged_attention(module, query, key, value, attention_mask, cache, options, kwargs), None
    if attention_mask is None:
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        window = kwargs.get("sliding_window")
        if causal and query.shape[2] > 1:
            raise refuse(module, "its causal attention comes without a mask of Transformers' AttentionMaskInterface")
        if window is not None and key.shape[2] > window:
            raise refuse(module, f"its sliding window of {window} comes without a mask of the AttentionMaskInterface")
    elif not isinstance(attention_mask, torch.Tensor):
        raise refuse(module, f"its mask is of type {type(attention_mask).__name__}")
    if indices is not None:
        attention_mask = _mask_of_chosen_keys(module, attention_mask, indices, query.shape[2], key.shape[2])
    if position_bias is not None:
        attention_mask = _add_position_bias(module, attention_mask, position_bias, (*query.shape[:3], key.shape[2]))
    return _attend_cache(module, query, key, value, attention_mask, options), None


def _mask_of_chosen_keys(module: Any, mask: Any, indices: torch.Tensor, q_len: int, kv_len: int) -> torch.Tensor:
    """The mask without the keys that an indexer did not choose."""
    if indices.ndim != 3 or indices.shape[1] != q_len or mask.ndim != 4 or mask.shape[3] != kv_len:
        raise refuse(module, f"its indices of keys are of shape {tuple(indices.shape)}, its mask of {tuple(mask.shape)}")
    if indices.numel() and not (0 <= int(indices.min()) and int(indices.max()) < kv_len):
        raise refuse(module, f"its indices of keys go from {int(indices.min())} to {int(indices.max())} of {kv_len} keys")
    chosen = torch.zeros(indices.shape[0], q_len, kv_len, dtype=torch.bool).scatter_(2, indices.long(), True)[:, None]
    visible, added = _split_mask(module, mask)
    return visible & chosen if added is None else torch.where(chosen, added, -torch.inf)


def _add_position_bias(module: Any, mask: Any, bias: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """What a position bias and a mask (or no mask) together add to logits of the given shape."""
    if not isinstance(bias, torch.Tensor) or bias.ndim != 4 or any(n not in (1, m) for n, m in zip(bias.shape, shape)):
        form = tuple(bias.shape) if isinstance(bias, torch.Tensor) else type(bias).__name__
        raise refuse(module, f"its position_bias is {form}, its logits are of {shape}")
    bias = in_float32(bias)
    if mask is None:
        return bias
    visible, added = _split_mask(module, mask)
    return bias + (torch.where(visible, 0.0, torch.finfo(torch.float32).min) if added is None else in_float32(added))


def _split_mask(module: Any, mask: torch.Tensor) -> tuple[Any, torch.Tensor | None]:
    """(what a mask shows, None), or (None, what it adds to the logits)."""
    if isinstance(mask, Mask):
        return mask.visible(), None
    try:
        added = additive_in(mask)
    except ValueError as error:
        raise refuse(module, f"{error}") from None
    return (visible_in(mask), None) if added is None else (None, added)


def _padded_head_dim(x: torch.Tensor) -> torch.Tensor:
    """x with zeros, which change neither products nor results, up to a head_dim that riffle takes."""
    missing = -x.shape[-1] % HEAD_DIM_STEP
    return torch.nn.functional.pad(x, (0, missing)) if missing else x


def _row_stride_in_tokens(x: torch.Tensor) -> int | None:
    """How many tokens of a cache [batch, heads, tokens, head_dim] lie between a row and the next; None if pages of a token
    cannot describe it. Keys and values share a page table only if it is the same number for both."""
    row, _, token, last = x.stride()
    return None if last != 1 or token < 1 or row % token else row // token


def _attend_cache(module, query, key, value, mask, options) -> torch.Tensor:
    """A cache [batch, kv_heads, kv_len, head_dim], read in place."""
    batch, heads, q_len, _ = query.shape
    value_dim = value.shape[-1]
    if max(query.shape[-1], value_dim) > MAX_HEAD_DIM:
        raise refuse(module, f"head_dim = {query.shape[-1]}, of values {value_dim}; the limit is {MAX_HEAD_DIM}")
    if key.shape[0] != batch:
        raise refuse(module, f"{batch} rows of queries and {key.shape[0]} of keys")
    query, key, value = (_padded_head_dim(x) for x in (query, key, value))
    row_stride = _row_stride_in_tokens(key)
    if row_stride is None or row_stride != _row_stride_in_tokens(value):
        key, value = key.contiguous(), value.contiguous()
        row_stride = key.shape[1] * key.shape[2]
    q = query[0].transpose(0, 1) if batch == 1 else query.transpose(1, 2).reshape(batch * q_len, heads, -1)
    out = _attend_rows(q, key, value, _visible_keys(module, mask, (batch, heads, q_len, key.shape[2]), row_stride), options)
    return out.view(batch, q_len, heads, -1)[..., :value_dim].contiguous()


def _attend_rows(q, key, value, where: VisibleKeys, options) -> torch.Tensor:
    """q [tokens, heads, head_dim] over a cache [batch, kv_heads, kv_len, head_dim]."""
    out = attend(q, tokens_as_pages(key), tokens_as_pages(value), where, "HND", options)
    without_keys = queries_without_keys(where) if options["sinks"] is None else None
    if without_keys is None:
        return out
    # Queries of padding. Eager attention, all of whose logits are then the lowest number, gives the mean of the values, and
    # recurrent layers after it may read that.
    mean = value.mean(2).repeat_interleave(q.shape[1] // value.shape[1], 1).repeat_interleave(len(q) // len(value), 0)
    return torch.where(without_keys[..., None], mean.to(out.dtype), out)


def _visible_keys(module: Any, mask: torch.Tensor | None, shape: tuple[int, ...], row_stride: int) -> VisibleKeys:
    """What the mask shows to queries and keys of the shape [batch, heads, queries, keys]."""
    batch, _, q_len, kv_len = shape
    if mask is None:
        return all_keys(batch, q_len, kv_len, row_stride, False, None)
    if mask.ndim != 4 or any(n not in (1, m) for n, m in zip(mask.shape, shape)) or mask.shape[3] != kv_len:
        raise refuse(module, f"its mask is of shape {tuple(mask.shape)}, its logits are of {shape}")
    if isinstance(mask, Mask) and mask.shape[0] == batch and mask.shape[2] == q_len:
        return mask.visible_keys(row_stride)
    visible, added = _split_mask(module, mask)
    read = visible if added is None else added
    assert read is not None, "one of them is the mask"
    read = read.expand(batch, -1, q_len, kv_len)
    if added is None and read.shape[1] == 1:
        return keys_seen(read[:, 0], row_stride)
    return by_mask(read, row_stride)


for _public in (GrowingCache, Sampler, TopKHead, use_sparse_attention, use_top_k_head):
    _public.__module__ = "riffle.transformers"  # where users find them, and where pickles look for them
del _public

"""The masks that Transformers asks for, and the page tables by which riffle.paged_attention computes exactly these.

Transformers describes a mask by a function of positions, a padding mask and sizes. `Mask` carries that description to the
attention layers. Descriptions that are known (causal, sliding window, chunks, all keys) become page tables without a matrix of
queries and keys. Every other mask is evaluated. If it shows few sets of keys it becomes page tables too: attention does not depend
on where a key is stored, so any set of keys is a sequence of pages of one token. Otherwise, and where the mask adds to the logits,
it is passed on as a matrix.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, Callable, NamedTuple

import torch
from torch.utils import _pytree
from transformers import masking_utils

# Keywords that layers hand to their attention and that Transformers' eager attention does not read either. (A sliding
# window is in the mask too.)
WITHOUT_EFFECT = frozenset(
    "position_ids cache_position use_cache past_key_values logits_to_keep output_hidden_states return_dict "
    "cu_seq_lens_q cu_seq_lens_k max_length_q max_length_k num_items_in_batch sliding_window".split()
)


class VisibleKeys(NamedTuple):
    """What the queries of a forward see, the same in all layers that share a mask."""

    kv_lens: torch.Tensor  # int32 [B]
    page_table: torch.Tensor  # int32 [B, max_pages]
    cu_q_lens: torch.Tensor | None  # int32 [B + 1]; None: one query a sequence
    causal: bool = True
    window: int | None = None
    mask: torch.Tensor | None = None  # [tokens, heads or 1, keys], bool or added; then the fields above show all keys


def queries_without_keys(keys: VisibleKeys) -> torch.Tensor | None:
    """bool [tokens, heads or 1]: the queries that see no key; None where there are none.

    None too where a mask adds to the logits: its lowest numbers, which hide keys, are added as eager attention adds them (see
    in_float32).
    """
    if keys.mask is not None:
        without_keys = None if keys.mask.dtype != torch.bool else ~keys.mask.any(-1)
        return without_keys if without_keys is not None and bool(without_keys.any()) else None
    empty = keys.kv_lens == 0
    if not bool(empty.any()):
        return None
    return (empty if keys.cu_q_lens is None else empty.repeat_interleave(keys.cu_q_lens.diff()))[:, None]


class Structure(NamedTuple):
    """A mask function of a known form. Keys of padding are hidden in addition."""

    causal: bool
    window: int | None = None
    chunk: int | None = None  # a query sees its own chunk of this many tokens
    chunk_start: torch.Tensor | None = None  # int [B], the token at which the first chunk of each row begins
    packed: bool = False  # sequences one after another in a row, each with the rest of this structure


def _code(function: Callable) -> Any:
    return getattr(function, "__code__", None)


_AND = _code(masking_utils.and_masks())
_WINDOW = _code(masking_utils.sliding_window_overlay(1))
_CHUNK = _code(masking_utils.chunked_overlay(1, torch.zeros(1)))
_PACKED = _code(masking_utils.packed_sequence_mask_function(torch.zeros(1, 1)))
_REMAPPED = _code(masking_utils.remap_positions_for_packed_sequence(masking_utils.causal_mask_function, torch.zeros(1, 1)))


def _captured(function: Callable) -> dict[str, Any]:
    """The variables that a closure holds."""
    return {name: cell.cell_contents for name, cell in zip(_code(function).co_freevars, function.__closure__ or ())}


def structure_of(function: Callable) -> Structure | None:
    """The structure of a mask function; None where its form is not known.

    A function is known by the code it runs, so that a changed or wrapped one is not mistaken for it.
    """
    if function is masking_utils.causal_mask_function:
        return Structure(causal=True)
    if function is masking_utils.bidirectional_mask_function:
        return Structure(causal=False)
    if _code(function) is not _AND:
        return None
    parts = _captured(function).get("mask_functions", ())
    if len(parts) != 2:
        return None
    overlay, inner = parts
    if _code(overlay) is _PACKED and _code(inner) is _REMAPPED:
        known = structure_of(_captured(inner)["mask_function"])
        return None if known is None else known._replace(packed=True)
    if inner is not masking_utils.causal_mask_function:
        return None
    held = _captured(overlay) if callable(overlay) and _code(overlay) in (_WINDOW, _CHUNK) else {}
    if _code(overlay) is _WINDOW and isinstance(held["sliding_window"], int) and held["sliding_window"] > 0:
        return Structure(causal=True, window=held["sliding_window"])
    if _code(overlay) is _CHUNK and isinstance(held["chunk_size"], int) and held["chunk_size"] > 0:
        return Structure(causal=True, chunk=held["chunk_size"], chunk_start=held["left_padding"])
    return None


class Mask(torch.Tensor):
    """A mask [batch, 1, queries, keys] that is known by its description, for the attention layers to read.

    For everything else it is the additive mask that Transformers' eager attention would have: a layer that slices it, or adds to
    it, gets what it would get there, a plain tensor, and hands that on.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, request: dict[str, Any], dtype: torch.dtype, device: Any) -> Mask:
        shape = request["batch_size"], 1, request["q_length"], request["kv_length"]
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)

    def __init__(self, request: dict[str, Any], dtype: torch.dtype, device: Any) -> None:
        self.request = request
        self.structure = structure_of(request["mask_function"])
        self._visible: Any = None  # a tensor, once it is asked for
        self._keys: dict[int, VisibleKeys] = {}

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        args, kwargs = _pytree.tree_map_only(cls, cls.additive, (args, kwargs or {}))
        return function(*args, **kwargs)

    def visible(self) -> torch.Tensor:
        """bool [batch, 1, queries, keys], by evaluating the mask function."""
        if self._visible is None:
            self._visible = masking_utils.sdpa_mask(**self.request, allow_is_causal_skip=False, device=self.device)
        return self._visible

    def additive(self) -> torch.Tensor:
        """0 where a key is seen, the lowest number of the dtype where it is not."""
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        return torch.where(self.visible(), zero, torch.finfo(self.dtype).min)

    def visible_keys(self, row_stride: int) -> VisibleKeys:
        """What queries see. Tokens are pages of one token; each row of the batch begins `row_stride` pages after the one before it."""
        keys = self._keys.get(row_stride)
        if keys is None:
            keys = self._by_structure(row_stride)
            if keys is None:
                keys = keys_seen(self.visible()[:, 0], row_stride)
            self._keys[row_stride] = keys
        return keys

    def _by_structure(self, row_stride: int) -> VisibleKeys | None:
        """None where the mask has to be evaluated: unknown functions, and padding that is not on the left."""
        known = self.structure
        if known is None or known.packed:
            return None
        batch, q_len, kv_len = self.shape[0], self.shape[2], self.shape[3]
        q_offset, kv_offset = self.request["q_offset"], self.request["kv_offset"]
        # A static cache holds more keys than have been seen.
        seen = q_offset + q_len - kv_offset if known.causal else kv_len
        if not (1 <= seen <= kv_len and (q_len <= seen or not known.causal)):
            return None
        padding = torch.zeros(batch, dtype=torch.int64)
        mask = self.request["attention_mask"]
        padded = False
        if mask is not None:
            prepared: Any = masking_utils.prepare_padding_mask(mask, kv_len, kv_offset)
            mask = prepared[:, kv_offset : kv_offset + seen].bool()
            padded = not bool(mask.all())
        if mask is not None and padded:
            padding = (~mask).sum(1)
            if not known.causal or not bool((mask == (torch.arange(seen) >= padding[:, None])).all()):
                return None
        if known.chunk is not None:
            starts = (known.chunk_start - kv_offset).tolist()
            return _chunks(starts, padding.tolist(), known.chunk, q_len, seen, row_stride)
        if not padded:
            return all_keys(batch, q_len, seen, row_stride, known.causal, known.window)
        return _without_padding(padding, q_len, seen, row_stride)._replace(window=known.window)


def token_table(starts: torch.Tensor, lengths: torch.Tensor, cu_q_lens: torch.Tensor | None) -> VisibleKeys:
    """Keys that are stored one after another: `lengths` tokens from token `starts` on, for pages of one token."""
    table = starts[:, None] + torch.arange(max(int(lengths.max()), 1))
    # What follows a sequence's last page is not read.
    return VisibleKeys(lengths.to(torch.int32), table.to(torch.int32), cu_q_lens)


@functools.lru_cache(maxsize=4)  # the layers of a forward are of one or two kinds
def all_keys(batch: int, q_len: int, kv_len: int, row_stride: int, causal: bool, window: int | None) -> VisibleKeys:
    """All tokens of rows that begin `row_stride` tokens after each other."""
    starts, lengths = torch.arange(batch) * row_stride, torch.full((batch,), kv_len)
    if not causal:
        return _same_keys(token_table(starts, lengths, None), q_len)._replace(window=window)
    cu_q_lens = None if q_len == 1 else torch.arange(batch + 1, dtype=torch.int32) * q_len
    return token_table(starts, lengths, cu_q_lens)._replace(causal=causal, window=window)


def _same_keys(keys: VisibleKeys, q_len: int) -> VisibleKeys:
    """`q_len` queries for each sequence of `keys`, each of which sees all keys of it.

    A sequence may have at most as many queries as keys, so it is repeated as often as needed.
    """
    lengths = keys.kv_lens.to(torch.int64)
    max_q_lens = torch.where(lengths > 0, lengths, q_len).clamp(max=q_len)
    times = -(-q_len // max_q_lens)
    q_lens = max_q_lens.repeat_interleave(times)
    q_lens[times.cumsum(0) - 1] = q_len - (times - 1) * max_q_lens
    table = keys.page_table.repeat_interleave(times, 0)
    cu_q_lens = None if q_len == 1 else _offsets(q_lens)
    return VisibleKeys(keys.kv_lens.repeat_interleave(times), table, cu_q_lens, causal=False)


def _offsets(lengths: torch.Tensor) -> torch.Tensor:
    """int32 [B + 1]: 0, then the sums of the lengths."""
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    offsets[1:] = lengths.cumsum(0)
    return offsets


def _without_padding(padding: torch.Tensor, q_len: int, kv_len: int, row_stride: int) -> VisibleKeys:
    """Causal, without the `padding` tokens on the left of each row."""
    lengths, starts = kv_len - padding, torch.arange(len(padding)) * row_stride + padding
    # Queries of padding see nothing: they form a sequence without keys in front of each sequence.
    num_without_keys = (q_len - lengths).clamp(min=0)
    q_lens = torch.full_like(lengths, q_len)
    if bool(num_without_keys.any()):
        q_lens = torch.stack([num_without_keys, q_len - num_without_keys], 1).reshape(-1)
        lengths = torch.stack([torch.zeros_like(lengths), lengths], 1).reshape(-1)
        starts = starts.repeat_interleave(2)
    elif q_len == 1:
        return token_table(starts, lengths, None)
    return token_table(starts, lengths, _offsets(q_lens))


def _chunks(chunk_starts: list[int], padding: list[int], chunk: int, q_len: int, kv_len: int, row_stride: int) -> VisibleKeys:
    """Causal within chunks: the queries of each chunk are a sequence of their own, whose keys begin with the chunk.

    chunk_starts: where the first chunk of each row begins; before the first key of the cache if negative.
    """
    starts, lengths, q_lens = [], [], []
    for b, (first, pad) in enumerate(zip(chunk_starts, padding)):
        query = kv_len - q_len  # the next query is at the position of this key
        while query < kv_len:
            begin = first + (query - first) // chunk * chunk
            end = min(begin + chunk, kv_len) if query >= pad else min(begin + chunk, pad, kv_len)
            begin = max(begin, pad, 0)
            starts.append(b * row_stride + begin)
            lengths.append(max(end - begin, 0))
            q_lens.append(end - query)
            query = end
    return token_table(torch.tensor(starts), torch.tensor(lengths), _offsets(torch.tensor(q_lens)))


def by_mask(mask: torch.Tensor, row_stride: int) -> VisibleKeys:
    """All keys, of which a mask [batch, heads or 1, queries, keys] hides some or to whose logits it adds."""
    batch, heads, q_len, kv_len = mask.shape
    flat = mask.transpose(1, 2).reshape(batch * q_len, heads, kv_len)
    return all_keys(batch, q_len, kv_len, row_stride, False, None)._replace(mask=flat)


# Page tables of more sequences than this for a row of the batch take longer than a mask: each of their queries reads its keys for itself.
_MAX_RUNS = 4


def keys_seen(visible: torch.Tensor, row_stride: int) -> VisibleKeys:
    """What any mask shows: visible bool [batch, queries, keys].

    Consecutive queries form one sequence as long as each sees what the one before it saw and one later key; where a query already sees
    as many keys as any query of the call, the next one may lose its first key. That is causal attention, with a window of that many keys.
    """
    batch, q_len, kv_len = visible.shape
    counts = visible.sum(-1)
    before, after = visible[:, :-1], visible[:, 1:]
    if bool((before == after).all()):
        return _same_keys(_sets(visible[:, 0], torch.arange(batch) * row_stride), q_len)
    index = torch.arange(kv_len)
    first = torch.where(visible, index, kv_len).amin(-1)
    last = torch.where(visible, index, -1).amax(-1)
    gained, lost = (after & ~before).sum(-1), (before & ~after).sum(-1)
    later = (gained == 1) & (last[:, 1:] > last[:, :-1]) & (counts[:, :-1] > 0)
    max_keys = int(counts.max())
    shifts = later & (lost == 1) & (first[:, 1:] > first[:, :-1]) & (counts[:, :-1] == max_keys)
    joined = (later & (lost == 0)) | shifts | ((counts[:, 1:] == 0) & (counts[:, :-1] == 0))
    begins = torch.cat([torch.ones(batch, 1, dtype=torch.bool), ~joined], 1).reshape(-1)
    run = begins.cumsum(0) - 1
    q_lens = run.bincount()
    if len(q_lens) > _MAX_RUNS * batch:
        return by_mask(visible[:, None], row_stride)
    ends = q_lens.cumsum(0) - 1
    flat = visible.reshape(batch * q_len, kv_len)
    sets = flat[ends]
    windowed = bool(shifts.any())
    if windowed:  # also the keys that the last query of a run no longer sees
        sets = torch.zeros(sets.shape, dtype=torch.int32).index_add_(0, run, flat.to(torch.int32)) > 0
    cu_q_lens = None if len(q_lens) == batch * q_len else _offsets(q_lens)
    return _sets(sets, ends // q_len * row_stride)._replace(cu_q_lens=cu_q_lens, window=max_keys if windowed else None)


def keys_of_each(visible: torch.Tensor, row_stride: int) -> VisibleKeys:
    """What any mask shows, each query as a sequence of its own: visible bool [batch, queries, keys]."""
    batch, q_len, kv_len = visible.shape
    starts = (torch.arange(batch) * row_stride).repeat_interleave(q_len)
    return _sets(visible.reshape(batch * q_len, kv_len), starts)


def _sets(sets: torch.Tensor, starts: torch.Tensor) -> VisibleKeys:
    """A sequence for each row of `sets` [sequences, keys], whose keys are those that are True, from page `starts` on."""
    lengths = sets.sum(-1)
    table = torch.zeros(len(sets), max(int(lengths.max()), 1), dtype=torch.int32)
    which, key = sets.nonzero(as_tuple=True)
    table[which, (sets.cumsum(-1) - 1)[which, key]] = (starts[which] + key).to(torch.int32)
    return VisibleKeys(lengths.to(torch.int32), table, None)


def additive_in(mask: torch.Tensor) -> torch.Tensor | None:
    """A mask that does more than hide keys (position biases, ALiBi), in a dtype that attention takes; None for others.

    Raises ValueError for a mask that is neither bool nor a floating-point number.
    """
    if mask.dtype == torch.bool:
        return None
    if not mask.is_floating_point():
        raise ValueError(f"riffle attention takes masks that are bool or added to the logits, not of {mask.dtype}")
    hidden = _hidden_keys(mask)
    if bool((hidden | (mask == 0)).all()):
        return None
    if mask.dtype == torch.float64 or (mask.dtype == torch.float16 and bool(hidden.all(-1).any())):
        return in_float32(mask)
    return mask


def in_float32(mask: torch.Tensor) -> torch.Tensor:
    """A mask that is added to logits, in float32 and with its lowest number.

    Logits vanish in a sum with the lowest number of their dtype, so eager attention gives a query that sees no key the mean of the
    values. Attention adds in float32: there they would not vanish beside the lowest number of float16, and that of float64 is -inf.
    """
    if mask.dtype not in (torch.float16, torch.float64):
        return mask.float()
    lowest = torch.finfo(torch.float32).min
    hides = (mask <= max(torch.finfo(mask.dtype).min / 2, lowest)) & (mask != -torch.inf)
    return mask.float().masked_fill_(hides, lowest)


def visible_in(mask: torch.Tensor) -> torch.Tensor:
    """bool: what a mask shows that a model made itself and that only hides keys."""
    return mask if mask.dtype == torch.bool else ~_hidden_keys(mask)


def _hidden_keys(mask: torch.Tensor) -> torch.Tensor:
    # The sum of two lowest numbers is -inf. Half of the lowest number is still far below what any logit can outweigh.
    return mask <= torch.finfo(mask.dtype).min / 2


def _own_attention(module: Any) -> bool:
    """Whether a module of models has attention layers and never asks Transformers for an implementation."""
    if hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        return False
    of_this_module = (x for x in vars(module).values() if isinstance(x, type) and x.__module__ == module.__name__)
    return any("Attention" in layer.__name__ and issubclass(layer, torch.nn.Module) for layer in of_this_module)


def _table_of_attention(module: Any) -> bool:
    """Whether a module of models chooses its attention layers by name from a table of its own."""
    tables = (x for x in vars(module).values() if isinstance(x, dict) and "eager" in x and "riffle" not in x)
    return any(isinstance(layer, type) for table in tables for layer in table.values())


def check_interface(config: Any, module_name: str | None = None) -> None:
    """Raises ValueError if the models of a config do not take their attention from Transformers' AttentionInterface.

    module_name: the module of a model that is being made. Then only tables of attention layers are looked for, in which the model would
    not find "riffle"; attention of its own may belong to a part that needs no mask, such as an image encoder. None: the module
    beside the config's.
    """
    module = sys.modules.get(module_name or type(config).__module__.replace(".configuration_", ".modeling_"))
    if module is None or not hasattr(module, "__file__"):
        return
    if _table_of_attention(module) or (module_name is None and _own_attention(module)):
        raise ValueError(
            f"riffle attention has no effect on {config.model_type}: its attention layers do not take their attention from "
            'Transformers\' AttentionInterface; use attn_implementation="eager"'
        )

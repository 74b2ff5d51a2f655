"""A cache for Transformers that grows in place."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# Whenever memory is full it grows by 1 / _GROWTH_DIVISOR of the tokens, and by at least _MIN_GROWTH tokens.
_GROWTH_DIVISOR, _MIN_GROWTH = 4, 256


class GrowingCache(DynamicCache):
    """Transformers' DynamicCache that writes new tokens after the old ones instead of copying all at every step.

    For `model.generate(..., past_key_values=riffle.transformers.GrowingCache(config=model.config))`. A step returns
    views of memory, after which later steps go on writing; a shallow copy of the cache must not be continued beside
    it. Memory is up to a quarter larger (256 tokens at least; sliding layers: twice the window).

    >>> import torch, transformers, riffle.transformers
    >>> config = transformers.LlamaConfig(num_hidden_layers=1)
    >>> cache = riffle.transformers.GrowingCache(config=config)
    >>> tokens = torch.zeros(1, 2, 3, 64)
    >>> keys, values = cache.update(tokens, tokens, 0)
    >>> more, _ = cache.update(tokens, tokens, 0)
    >>> more.shape, more.data_ptr() == keys.data_ptr()
    (torch.Size([1, 2, 6, 64]), True)
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        for i, layer in enumerate(self.layers):
            if type(layer) is DynamicLayer:
                self.layers[i] = _Layer()
            elif type(layer) is DynamicSlidingWindowLayer:
                self.layers[i] = _SlidingLayer(layer.sliding_window)


class _Memory:
    """Tokens [batch, heads, tokens, head_dim] with room after them."""

    def __init__(self) -> None:
        self.tokens: Any = None  # a tensor, once there are some

    def append(self, old: Any, new: torch.Tensor) -> torch.Tensor:
        """torch.cat([old, new], 2), in place where `old` is, or is a part of, what this returned before."""
        before, added = (0 if old.numel() == 0 else old.shape[2]), new.shape[2]
        start = self._start(old, new)
        if start is None or start + before + added > self.tokens.shape[2]:
            batch, heads, _, head_dim = new.shape
            room = before + added + max((before + added) // _GROWTH_DIVISOR, _MIN_GROWTH)
            self.tokens, start = new.new_empty(batch, heads, room, head_dim), 0
            if before:
                self.tokens[:, :, :before] = old
        end = start + before + added
        self.tokens[:, :, end - added : end] = new
        return self.tokens[:, :, start:end]

    def _start(self, old: torch.Tensor, new: torch.Tensor) -> int | None:
        """The number of the token in this memory with which old begins; None where old is elsewhere."""
        memory = self.tokens
        if memory is None or old.numel() == 0 or memory.dtype != new.dtype or old.stride() != memory.stride():
            return None
        if old.untyped_storage().data_ptr() != memory.untyped_storage().data_ptr():
            return None
        # The same strides: it is a slice along tokens, if nothing of another axis was left out.
        start, rest = divmod(int(old.storage_offset()), memory.shape[3])
        fits = rest == 0 and all(old.shape[i] == memory.shape[i] == new.shape[i] for i in (0, 1, 3))
        return start if fits and start + old.shape[2] <= memory.shape[2] else None


class _Layer(DynamicLayer):
    def __init__(self) -> None:
        super().__init__()
        self._memory = _Memory(), _Memory()

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._memory[0].append(self.keys, key_states)
        self.values = self._memory[1].append(self.values, value_states)
        return self.keys, self.values


class _SlidingLayer(DynamicSlidingWindowLayer):
    def __init__(self, sliding_window: int) -> None:
        super().__init__(sliding_window)
        self._memory = _Memory(), _Memory()

    def update(self, key_states, value_states, *args, **kwargs):
        if self.record_past:
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        keys = self._memory[0].append(self.keys, key_states)
        values = self._memory[1].append(self.values, value_states)
        self.keys, self.values = (x[:, :, -self.sliding_window + 1 :] for x in (keys, values))
        return keys, values

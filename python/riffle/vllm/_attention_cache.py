"""vLLM's cache of a layer as pages that Riffle reads and writes, without a copy."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

# What a cache of each kv_cache_dtype holds, where that is not the dtype of the model: elements of the views, and
# whether each row (token and head) has a scale of its own.
_ELEMENTS = {
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
    "fp8": (torch.float8_e4m3fn, False),
    "fp8_e4m3": (torch.float8_e4m3fn, False),
    "fp8_e5m2": (torch.float8_e5m2, False),
    "int8_per_token_head": (torch.int8, True),
    "fp8_per_token_head": (torch.float8_e4m3fn, True),
}
KV_CACHE_DTYPES = ("auto", *_ELEMENTS)
SCALE_BYTES = 4  # of a row's scale, a float32 after its elements


@dataclass(frozen=True)
class Pages:
    """Views of one cache. Layout "HND": [pages, kv_heads, page_size, head_size]."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None  # [pages, kv_heads, page_size] float32, of caches whose rows have scales
    value_scales: Tensor | None = None


class CacheFormat:
    """How a layer's cache is divided into keys and values."""

    def __init__(self, kv_cache_dtype: str, head_size: int) -> None:
        self.element, self.scaled_rows = _ELEMENTS.get(kv_cache_dtype, (None, False))
        self.head_size = head_size
        # Caches of 8-bit floats have one scale for all keys of a layer and one for all values.
        self.scaled_tensors = self.element in (torch.float8_e4m3fn, torch.float8_e5m2) and not self.scaled_rows
        self._cache: weakref.ref[Tensor] | None = None
        self._pages: Pages | None = None

    def pages(self, cache: Tensor) -> Pages:
        """The views of `cache` [pages, kv_heads, block_size, content of a token], made when it is seen for the first time."""
        if self._cache is not None and self._cache() is cache:
            return self._pages  # type: ignore[return-value]
        self._pages = self._views(cache.data)  # the views must not keep `cache` itself alive: vLLM frees caches by dropping it
        self._cache = weakref.ref(cache, self._drop)
        return self._pages

    def _drop(self, dead: weakref.ref[Tensor]) -> None:
        if self._cache is dead:
            self._cache = self._pages = None

    def _views(self, cache: Tensor) -> Pages:
        pages, heads, size, content = cache.shape
        if self.scaled_rows:
            return self._views_with_scales(cache)
        if self.element is not None:
            cache = cache.view(self.element)
        d = self.head_size
        if cache.stride(3) == 1 and cache.stride(2) == content:
            # A page's keys, then its values, of each head, as vLLM's own kernels have them: up to 1.2 times as fast as a
            # token's keys beside its values, where a cache fits into that of the CPU (2 MB of bfloat16, head_size 128).
            flat = cache.as_strided((pages, heads, size * content), (cache.stride(0), cache.stride(1), 1))
            return Pages(*(x.unflatten(2, (size, -1)) for x in flat.split((size * d, size * (content - d)), dim=2)))
        return Pages(cache[..., :d], cache[..., d:])

    def _views_with_scales(self, cache: Tensor) -> Pages:
        # A token's key and value are each the elements, then the scale.
        keys, values = cache.split((self.head_size + SCALE_BYTES, cache.shape[3] - self.head_size - SCALE_BYTES), dim=3)
        assert self.element is not None
        sides = []
        for side in (keys, values):
            elements = side.shape[3] - SCALE_BYTES
            sides.append((side[..., :elements].view(self.element), side[..., elements:].view(torch.float32)[..., 0]))
        (keys, key_scales), (values, value_scales) = sides
        return Pages(keys, values, key_scales, value_scales)

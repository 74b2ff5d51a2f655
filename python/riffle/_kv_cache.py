"""The page pool of keys and values."""

from __future__ import annotations

from typing import Any, Sequence

from riffle import _core

Array = Any


class KvCache:
    """A pool of pages of keys and values, shared by sequences: the memory behind paged_attention.

    A page holds `page_size` tokens of one sequence in every layer; its number is the same in all of them. Sequences made
    by `fork` share pages: a page of more than one sequence is never written, it is copied first (copy-on-write as in
    vLLM, Kwon et al. 2023). Ids are ints above zero, never used twice. What raises leaves the cache as it was.

    Calls may come from any thread: the cache runs them one after another. paged_attention may read pages beside calls on
    other sequences.

    Args:
      layers, kv_heads, head_dim: of the model, each at least 1; paged_attention takes head_dims of 32 to 512 that are
        multiples of 8.
      pages: of each layer, 1 to 2^31 - 1. Memory is taken as pages are written, as huge pages where the system grants
        them.
      page_size: tokens of a page; paged_attention takes up to 256.
      dtype: "float32", "float16" or "bfloat16".

    Raises:
      ValueError: a number out of its limits.
      TypeError: an unknown dtype.
      MemoryError: no memory for the pages; the text says how many bytes.

    >>> import numpy as np, riffle
    >>> cache = riffle.KvCache(layers=1, kv_heads=2, head_dim=32, pages=8, page_size=4, dtype="float32")
    >>> seq = cache.create()
    >>> cache.extend(seq, 6)
    >>> tokens = np.ones((6, 2, 32), np.float32)
    >>> cache.write(0, seq, 0, tokens, 2 * tokens)
    >>> other = cache.fork(seq)
    >>> cache.extend(other, 1)
    >>> kv_lens, page_table = cache.batch([seq, other])
    >>> kv_lens
    array([6, 7], dtype=int32)
    >>> page_table
    array([[0, 1],
           [0, 2]], dtype=int32)
    >>> cache.pages_free, cache.pages_used, cache.pages_shared, cache.sequences
    (5, 3, 1, 2)
    >>> q = np.ones((2, 4, 32), np.float32)
    >>> cache.write(0, other, 6, tokens[:1], 2 * tokens[:1])
    >>> riffle.paged_attention(q, cache.keys(0), cache.values(0), kv_lens, page_table)[:, 0, 0]
    array([2., 2.], dtype=float32)
    """

    __slots__ = ("__weakref__", "_pool")

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        pages: int,
        page_size: int = 16,
        dtype: str = "bfloat16",
    ) -> None:
        self._pool = _core.KvCache(layers, kv_heads, head_dim, pages, page_size, dtype)

    def create(self) -> int:
        """The id of a new sequence, of length 0."""
        return self._pool.create()

    def fork(self, seq: int) -> int:
        """The id of a new sequence of the same contents, which shares all pages of `seq`. Takes no page.

        Raises ValueError if `seq` is no sequence, as all methods do that take one.
        """
        return self._pool.fork(seq)

    def extend(self, seq: int, tokens: int) -> None:
        """Makes `seq` longer by `tokens` >= 0, whose keys and values are unspecified until written.

        Takes the pages for them, and one more to copy the last page if it is shared and new positions lie in it: writing
        the new positions needs no page then, unless `seq` has been forked since.

        Raises:
          OutOfPages: not enough pages are free.
          ValueError: tokens < 0, or a length of 2^31 or more.
        """
        self._pool.extend(seq, tokens)

    def write(self, layer: int, seq: int, position: int, keys: Array, values: Array) -> None:
        """Writes keys and values of the positions from `position` on in one layer.

        Pages among them that other sequences have too are copied first.

        Args:
          layer: 0 to layers - 1.
          seq: a sequence.
          position: the first one; all of them must lie below the sequence's length.
          keys, values: [tokens, kv_heads, head_dim] of the cache's dtype, or float32, which is rounded to the nearest
            (ties to even). Any framework's, head_dim contiguous; not a view of this cache.

        Raises:
          OutOfPages: not enough pages are free for the copies.
          ValueError: a layer or positions that do not exist; a wrong shape.
          TypeError: a wrong dtype, or no array.
        """
        self._pool.write(layer, seq, position, keys, values)

    def truncate(self, seq: int, length: int) -> None:
        """Shortens `seq` to `length` tokens and releases the pages behind it.

        Raises ValueError unless 0 <= length <= self.length(seq).
        """
        self._pool.truncate(seq, length)

    def free(self, seq: int) -> None:
        """Releases the sequence, and its pages unless other sequences have them."""
        self._pool.free(seq)

    def length(self, seq: int) -> int:
        """Tokens of the sequence."""
        return self._pool.length(seq)

    def batch(self, seqs: Sequence[int]) -> tuple[Array, Array]:
        """What paged_attention takes of sequences, as it is now: numpy int32 kv_lens [B] and page_table [B, max_pages].

        A row of the table is filled up with -1 behind the sequence's last page.
        """
        return self._pool.batch(seqs)

    def keys(self, layer: int) -> Array:
        """The pages of a layer's keys as they stand in memory: a read-only NumPy array [pages, kv_heads, page_size,
        head_dim], bfloat16 as ml_dtypes'. Its pages are not next to each other: a page's values follow its keys.

        Raises ValueError unless 0 <= layer < layers.
        """
        return self._pool.keys(layer)

    def values(self, layer: int) -> Array:
        """The pages of a layer's values, as `keys`."""
        return self._pool.values(layer)

    @property
    def pages_free(self) -> int:
        """Pages that no sequence has."""
        return self._pool.pages_free()

    @property
    def pages_used(self) -> int:
        """Pages that one sequence or more has."""
        return self._pool.pages_used()

    @property
    def pages_shared(self) -> int:
        """Pages that two sequences or more have."""
        return self._pool.pages_shared()

    @property
    def sequences(self) -> int:
        """Sequences that there are: created or forked, and not freed."""
        return self._pool.sequences()

    @property
    def bytes(self) -> int:
        """Bytes of storage: keys and values of all pages in all layers, whether memory has been taken for them or not."""
        return self._pool.bytes()

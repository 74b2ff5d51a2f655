"""The page pool of keys and values."""

from __future__ import annotations

import operator
import re
from typing import Any, Sequence

import numpy

from riffle import _core
from riffle._arguments import as_list, short_repr

Array = Any


class KvCache:
    """A pool of pages of keys and values, shared by sequences: the memory behind paged_attention.

    A page holds `page_size` tokens of one sequence in every layer; its number is the same in all of them. Sequences made
    by `fork` share pages: a page of more than one sequence is never written, it is copied first (copy-on-write as in
    vLLM, Kwon et al. 2023). Ids are ints above zero, never used twice. A call that raises leaves the cache unchanged.

    Calls may come from any thread: the cache runs them one after another. paged_attention may read pages beside calls on
    other sequences.

    Args:
      layers, kv_heads, head_dim: of the model, each at least 1; paged_attention takes multiples of 8 from 8 to 1024 as
        head_dim, and formats of blocks need a multiple of 32.
      pages: of each layer, 1 to 2^31 - 1. Memory is taken as pages are written, as huge pages where the system grants
        them.
      page_size: tokens of a page, at least 1.
      dtype: how keys are kept, and values unless value_dtype says otherwise: "float32", "float16", "bfloat16";
        "float8_e4m3fn", "float8_e5m2" or "int8", with scales that `write` computes; or "q8_0", "q4_0", "q4_1", "q5_0",
        "q5_1", "iq4_nl", GGUF's blocks of 32 elements.
      value_dim: head_dim of values, where it differs.
      value_dtype: of values, where it differs.
      scale_dtype: of scales: "float32", "float16", "bfloat16" or "float8_e8m0fnu".
      scale_group: elements of a row that share a scale: 32, 64 or 128; 0: all of the row.

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

    __slots__ = ("__weakref__", "_dtypes", "_pool")

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        pages: int,
        page_size: int = 16,
        dtype: str = "bfloat16",
        value_dim: int | None = None,
        value_dtype: str | None = None,
        scale_dtype: str = "float32",
        scale_group: int = 0,
    ) -> None:
        self._pool = _core.KvCache(layers, kv_heads, head_dim, pages, page_size, dtype, value_dim, value_dtype,
                                   scale_dtype, scale_group)  # fmt: skip
        self._dtypes = dtype, dtype if value_dtype is None else value_dtype, scale_dtype

    def create(self, block_keys: Sequence[bytes | int] | None = None) -> int:
        """The id of a new sequence: of length 0, or one that shares the pages of the longest prefix of these blocks that
        the cache has.

        Its length is lookup(block_keys) then. A key is 16 bytes, or an int of as many, that stands for the tokens of a
        page and of all pages before it: the caller's hash, which must not collide. See `set_block_keys`.
        """
        return self._pool.create() if block_keys is None else self._pool.create_from(_joined(block_keys))

    def lookup(self, block_keys: Sequence[bytes | int]) -> int:
        """Tokens of the longest prefix of these blocks that the cache has."""
        return self._pool.lookup(_joined(block_keys))

    def set_block_keys(self, seq: int, block_keys: Sequence[bytes | int]) -> None:
        """Gives the first pages of `seq` keys, by which `create` finds them, even after `seq` has been freed.

        All that these pages hold must have been written, in every layer. A page with a key that no sequence uses any more
        counts as free, but is taken only when there is no other free page; the one that was released longest ago is taken
        first. Writing to a page removes its key.

        Raises:
          ValueError: more keys than full pages; a page has another key already.
        """
        joined = _joined(block_keys)
        try:
            self._pool.set_block_keys(seq, joined)
        except ValueError as error:  # the library calls them keys
            raise ValueError(re.sub(r"^keys\b", "block_keys", str(error))) from None

    def swap_out(self, seq: int, memory: Array | None = None) -> Array:
        """Copies what `seq` holds out of the cache, and releases its pages, until `swap_in` brings it back.

        Until then only `length` and `free` accept the sequence.

        Args:
          seq: a sequence.
          memory: uint8 [n] to copy to, NumPy or PyTorch, of at least swap_bytes(seq); None: a new NumPy array.

        Returns:
          The memory, which is to be given to `swap_in`.
        """
        if memory is None:
            memory = numpy.empty(self._pool.swap_bytes(seq), numpy.uint8)
        self._pool.swap_out(seq, memory)
        return memory

    def swap_in(self, seq: int, memory: Array) -> None:
        """Brings `seq` back from the memory that `swap_out` returned. Raises OutOfPages if there is no room for it."""
        self._pool.swap_in(seq, memory)

    def swap_bytes(self, seq: int) -> int:
        """The memory that `swap_out` takes."""
        return self._pool.swap_bytes(seq)

    def fork(self, seq: int) -> int:
        """The id of a new sequence of the same contents, which shares all pages of `seq`. Takes no page.

        Raises ValueError if `seq` is no sequence, as all methods do that take one.
        """
        return self._pool.fork(seq)

    def extend(self, seq: int, tokens: int) -> None:
        """Makes `seq` longer by `tokens` >= 0, whose keys and values are unspecified until written.

        Takes the pages for them, and one more to copy the last page if it is shared and holds new positions: writing
        the new positions then needs no page, unless `seq` has been forked since.

        Raises:
          OutOfPages: not enough pages are free.
          ValueError: tokens < 0, or a length of 2^31 or more.
        """
        self._pool.extend(seq, tokens)

    def write(self, layer: int, seq: int, position: int, keys: Array, values: Array) -> None:
        """Writes keys and values of one layer, at the positions from `position` on.

        Pages of these positions that other sequences share are copied first.

        Args:
          layer: 0 to layers - 1.
          seq: a sequence.
          position: the first one; all of them must lie below the sequence's length.
          keys, values: [tokens, kv_heads, head_dim or value_dim] float32, float16 or bfloat16, rounded or quantised as
            write_kv does. Any framework's, head_dim contiguous; not a view of this cache.

        Raises:
          OutOfPages: not enough pages are free for the copies.
          ValueError: a layer or positions that do not exist; a wrong shape.
          TypeError: a wrong dtype, or no array.
        """
        self._pool.write(layer, seq, position, keys, values)

    def truncate(self, seq: int, length: int) -> None:
        """Shortens `seq` to `length` tokens and releases the pages after them.

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
        """The present kv_lens [B] and page_table [B, max_pages] of sequences, NumPy int32, as paged_attention takes them.

        After a sequence's last page its row of the table is filled up with -1.
        """
        return self._pool.batch(seqs)

    def keys(self, layer: int) -> Array:
        """The pages of a layer's keys, in place: a read-only NumPy array [pages, kv_heads, page_size, head_dim]. bfloat16
        and float8 are those of ml_dtypes; a format of blocks is uint8, whose last axis is the bytes of a row. In memory the
        pages are not next to each other: the keys of each page are followed by its values.

        Raises ValueError unless 0 <= layer < layers.
        """
        return _array(self._pool, self._pool.keys(layer)[0], self._dtypes[0])

    def values(self, layer: int) -> Array:
        """The pages of a layer's values, as `keys`."""
        return _array(self._pool, self._pool.values(layer)[0], self._dtypes[1])

    def key_scales(self, layer: int) -> Array | None:
        """The scales of a layer's keys [pages, kv_heads, page_size], with scale_group [..., groups]; None: there are none."""
        return _array(self._pool, self._pool.keys(layer)[1], self._dtypes[2])

    def value_scales(self, layer: int) -> Array | None:
        """The scales of a layer's values, as `key_scales`."""
        return _array(self._pool, self._pool.values(layer)[1], self._dtypes[2])

    @property
    def pages_free(self) -> int:
        """Pages that no sequence has, including those with a key."""
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

    @property
    def stats(self) -> dict[str, int]:
        """Counts: blocks_wanted and blocks_found by `create`, pages_evicted (that had a key), pages_copied (because they
        were shared), pages_swapped_out and pages_swapped_in; and pages_reusable, those with a key but no sequence now.
        """
        return self._pool.stats()


def _joined(block_keys: Sequence[bytes | int]) -> bytes:
    return b"".join(_key(i, key) for i, key in enumerate(as_list("block_keys", block_keys, "keys")))


def _key(i: int, key: bytes | int) -> bytes:
    if isinstance(key, (bytes, bytearray)):
        if len(key) != 16:
            raise ValueError(f"block_keys[{i}] has {len(key)} bytes; a key has 16")
        return bytes(key)
    try:
        number = operator.index(key)
    except Exception:  # whatever an object's own code raises
        raise TypeError(f"block_keys[{i}] must be 16 bytes or an int, not {short_repr(key)}") from None
    if not 0 <= number < 1 << 128:
        raise ValueError(f"block_keys[{i}] = {number} is not in 0..2^128 - 1")
    return number.to_bytes(16, "little")


class _Memory:
    """Memory of a pool as NumPy understands it: read-only, and alive as long as an array of it."""

    def __init__(self, pool: Any, description: tuple[int, tuple[int, ...], tuple[int, ...], str]):
        address, shape, strides, typestr = description
        self.pool = pool
        self.__array_interface__ = dict(version=3, data=(address, True), shape=shape, strides=strides, typestr=typestr)


def _array(pool: Any, description: tuple | None, dtype: str) -> Array | None:
    """The memory as an array, of ml_dtypes' types where NumPy has no `dtype`."""
    if description is None:
        return None
    array = numpy.asarray(_Memory(pool, description))
    if dtype != "bfloat16" and not dtype.startswith("float8"):
        return array
    import ml_dtypes

    return array.view(getattr(ml_dtypes, dtype))

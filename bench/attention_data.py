"""The workloads of `riffle bench attention` for bench/attention_peers.py: data, and the check of an answer."""

import dataclasses
import functools

import numpy as np

PAGE = 16
CACHE_BYTES = 64e6  # with fewer bytes the keys and values fit into a cache, and arithmetic is the limit
CHECKED = 4  # checked pairs of a query and a KV head, each with all of its query heads
MASK = (1 << 64) - 1


def ragged(sequences, longest):
    """As in cli/attention_cases.cc: SplitMix64 (Steele, Lea, Flood 2014)."""
    lengths, state = [], 1
    for _ in range(sequences):
        state = z = (state + 0x9E3779B97F4A7C15) & MASK
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        lengths.append(1 + (z ^ z >> 31) % longest)
    return lengths


@dataclasses.dataclass(frozen=True)
class Case:
    what: str
    q_lens: list
    kv_lens: list
    kv_heads: int = 8
    group: int = 4
    head_dim: int = 128

    @property
    def batch(self):
        return len(self.kv_lens)

    @property
    def q_heads(self):
        return self.kv_heads * self.group

    @property
    def decode(self):
        return max(self.q_lens) == 1

    @property
    def bytes(self):
        """The bytes of keys and values in bfloat16."""
        return 2 * sum(self.kv_lens) * self.kv_heads * self.head_dim * 2

    @property
    def operations(self):
        """The operations of all products with keys and values that a query sees."""
        pairs = sum(q * (kv - q) + q * (q + 1) // 2 for q, kv in zip(self.q_lens, self.kv_lens))
        return 4 * pairs * self.q_heads * self.head_dim


CASES = {
    "D1": Case("decode, 32 sequences x 4096", [1] * 32, [4096] * 32),
    "D2": Case("decode, 1 sequence x 131072", [1], [131072]),
    "D3": Case("decode, 8 x 2048, 8 query heads on 1 KV head, head_dim 256", [1] * 8, [2048] * 8, 1, 8, 256),
    "D4": Case("decode, 64 ragged lengths 1..4096", [1] * 64, ragged(64, 4096)),
    "P1": Case("prefill, 2048 tokens", [2048], [2048]),
    "P2": Case("chunk of 512 after 8192", [512], [8704]),
}


def deal_pages(kv_lens, page_size):
    """A page table int32 [batch, max_pages] with the pages of a pool in a random order, and the pool's number of pages."""
    counts = [-(-length // page_size) for length in kv_lens]
    table = np.full((len(kv_lens), max(counts)), -1, np.int32)
    order = np.random.default_rng(7).permutation(sum(counts)).astype(np.int32)
    for row, pages in zip(table, np.split(order, np.cumsum(counts)[:-1])):
        row[: len(pages)] = pages
    return table, sum(counts)


def random_bf16(rng, shape):
    """bfloat16 as uint16, of both signs with magnitudes in [1/8, 2). NumPy asks for huge pages for arrays of this size."""
    bits = rng.integers(0, 1 << 64, int(np.prod(shape)) // 4, np.uint64)
    bits &= np.uint64(0x81FF81FF81FF81FF)
    bits += np.uint64(0x3E003E003E003E00)
    return bits.view(np.uint16).reshape(shape)


def wide(x):
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


class Data:
    """A case's arrays: q [tokens, q_heads, head_dim]; keys and values [pages, kv_heads, 16, head_dim], bfloat16 as uint16; kv_lens,
    cu_q_lens and page_table int32."""

    def __init__(self, case):
        rng = np.random.default_rng(11)
        self.case = case
        self.kv_lens = np.array(case.kv_lens, np.int32)
        self.cu_q_lens = np.array([0, *np.cumsum(case.q_lens)], np.int32)
        self.page_table, pages = deal_pages(case.kv_lens, PAGE)
        self.q = random_bf16(rng, (sum(case.q_lens), case.q_heads, case.head_dim))
        self.keys, self.values = (random_bf16(rng, (pages, case.kv_heads, PAGE, case.head_dim)) for _ in range(2))

    def contiguous(self, sequences):
        """Keys and values [sequences, kv_heads, kv_len, head_dim] of sequences of one length, copied together."""
        length = self.case.kv_lens[sequences[0]]
        shape = (len(sequences), self.case.kv_heads, -(-length // PAGE), PAGE, self.case.head_dim)
        both = np.empty(shape, np.uint16), np.empty(shape, np.uint16)
        for i, b in enumerate(sequences):
            for copy, pages in zip(both, (self.keys, self.values)):
                copy[i] = pages[self.page_table[b, : shape[2]]].swapaxes(0, 1)
        flat = (copy.reshape(*shape[:2], -1, shape[-1]) for copy in both)
        return [x if x.shape[2] == length else np.ascontiguousarray(x[:, :, :length]) for x in flat]

    def seen(self, b, query, kv_head):
        """The keys and values [positions, head_dim], in float64, that a query of sequence b sees."""
        case = self.case
        positions = case.kv_lens[b] - case.q_lens[b] + query + 1
        pages = self.page_table[b, : -(-positions // PAGE)]
        return [wide(x[pages, kv_head]).reshape(-1, case.head_dim)[:positions] for x in (self.keys, self.values)]

    @functools.cached_property
    def expected(self):
        """[(row of q, slice of heads, expected, bound)] for a sample of queries and KV heads.

        Weights and the result are rounded to bfloat16, 2^-8 each; the rest leaves room for float32 (docs/attention.md)."""
        case, rng, sample = self.case, np.random.default_rng(5), []
        for _ in range(CHECKED):
            b = rng.integers(case.batch)
            query, kv_head = rng.integers(case.q_lens[b]), rng.integers(case.kv_heads)
            row, heads = self.cu_q_lens[b] + query, slice(kv_head * case.group, (kv_head + 1) * case.group)
            keys, values = self.seen(b, query, kv_head)
            logits = wide(self.q[row, heads]) @ keys.T / case.head_dim**0.5
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            expected, magnitude = weights @ values, weights @ np.abs(values)
            sample.append((row, heads, expected, 2**-8 * (magnitude + np.abs(expected)) + 1e-4 * magnitude))
        return sample


def check(data, out):
    """Compares out [tokens, q_heads, head_dim], float32 or bfloat16 as uint16, with a softmax in float64."""
    if out.shape != data.q.shape:
        raise AssertionError(f"the answer has the shape {out.shape}")
    for row, heads, expected, bound in data.expected:
        got = out[row, heads].astype(np.float64) if out.dtype == np.float32 else wide(out[row, heads])
        excess = np.abs(got - expected) / bound
        if not (excess <= 1).all():
            raise AssertionError(f"row {row}, heads {heads.start}..{heads.stop - 1}: off by {excess.max():.3g} times the bound")

"""Sequences for tests of attention, with attention in float64."""

import itertools
import math

import numpy as np
import riffle
from frameworks import BFLOAT16

F32, F16 = np.dtype(np.float32), np.dtype(np.float16)
# From [pages, kv_heads, page_size, head_dim]; each swaps two axes, so it is the way back too.
AXES = {"HND": (0, 1, 2, 3), "NHD": (0, 2, 1, 3), "JAX": (1, 0, 2, 3)}


class Case:
    """Sequences of random queries, keys and values, and the pages that hold them in random order."""

    def __init__(self, kv_lens, q_lens=None, heads=(4, 2), dim=32, page_size=4, dtypes=(F32, F32), seed=0, spare=2):
        rng = np.random.default_rng(seed)
        q_lens = [1] * len(kv_lens) if q_lens is None else q_lens
        q_heads, kv_heads = heads
        self.q = rng.standard_normal((sum(q_lens), q_heads, dim)).astype(dtypes[0])
        self.k = [rng.standard_normal((n, kv_heads, dim)).astype(dtypes[1]) for n in kv_lens]
        self.v = [rng.standard_normal((n, kv_heads, dim)).astype(dtypes[1]) for n in kv_lens]
        self.kv_lens = np.array(kv_lens, np.int32)
        self.cu_q_lens = np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32)
        self.page(page_size, rng, spare)

    def page(self, page_size, rng, spare=2):
        counts = [-(-int(n) // page_size) for n in self.kv_lens]
        order = rng.permutation(sum(counts) + spare)
        _, kv_heads, dim = self.k[0].shape
        shape = (len(order), kv_heads, page_size, dim)
        # What no sequence has written must not matter.
        self.keys, self.values = (np.full(shape, np.nan, F32).astype(self.k[0].dtype) for _ in range(2))
        self.page_table = np.full((len(counts), max(counts) + 1), -1, np.int32)
        for b, (count, start) in enumerate(zip(counts, np.cumsum([0, *counts]))):
            self.page_table[b, :count] = order[start : start + count]
            for p in range(self.kv_lens[b]):
                page = self.page_table[b, p // page_size]
                self.keys[page, :, p % page_size] = self.k[b][p]
                self.values[page, :, p % page_size] = self.v[b][p]

    def run(self, layout="HND", make=lambda array: array, **options):
        keys, values = (np.ascontiguousarray(x.transpose(AXES[layout])) for x in (self.keys, self.values))
        options.setdefault("cu_q_lens", self.cu_q_lens)
        return riffle.paged_attention(
            make(self.q), make(keys), make(values), self.kv_lens, self.page_table, layout=layout, **options
        )

    def reference(self, scale=None, causal=True, window=None, window_right=None, soft_cap=None, sinks=None):
        """(out, lse, magnitude): the last is the sum of weight * |value|, what rounding of weights is relative to."""
        tokens, heads, dim = self.q.shape
        group = heads // self.k[0].shape[1]
        out, magnitude = np.zeros((2, tokens, heads, dim))
        lse = np.full((tokens, heads), -np.inf)
        for b, (begin, end) in enumerate(itertools.pairwise(self.cu_q_lens)):
            for t, h in itertools.product(range(begin, end), range(heads)):
                position = self.kv_lens[b] - (end - begin) + t - begin
                last = position + 1 if causal or window else self.kv_lens[b]
                if window_right is not None:
                    last = min(position + 1 + window_right, self.kv_lens[b])
                seen = slice(max(0, position - window + 1) if window else 0, max(last, 0))
                k, v = (x[b][seen, h // group].astype(np.float64) for x in (self.k, self.v))
                logits = k @ self.q[t, h].astype(np.float64) * (1 / math.sqrt(dim) if scale is None else scale)
                if soft_cap:
                    logits = soft_cap * np.tanh(logits / soft_cap)
                everything = logits if sinks is None else np.append(logits, sinks[h])
                if everything.size:
                    lse[t, h] = np.logaddexp.reduce(everything)
                    weights = np.exp(logits - lse[t, h])
                    out[t, h], magnitude[t, h] = weights @ v, weights @ np.abs(v)
        return out, lse, magnitude

    def check(self, out, lse, **options):
        expected, expected_lse, magnitude = self.reference(**options)
        # Arithmetic in float32; weights rounded to bfloat16 where q and KV are; then the rounding of the result.
        bound = 2e-5 * (1 + magnitude)
        if self.q.dtype == self.keys.dtype == BFLOAT16:
            bound += 2.0**-8 * magnitude
        bound += {F32: 0, F16: 2.0**-11, BFLOAT16: 2.0**-8}[self.q.dtype] * np.abs(expected)
        assert out.dtype == self.q.dtype and lse.dtype == np.float32
        assert (np.abs(out.astype(np.float64) - expected) <= bound).all()
        np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=2e-5)

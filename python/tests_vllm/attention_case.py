"""One layer's calls on random batches: by vLLM's own backend, by Riffle's, and by plain arithmetic in double."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from riffle.vllm._attention_backend import RiffleAttentionImpl, RiffleAttentionMetadataBuilder
from vllm import _custom_ops as ops
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionType, CommonAttentionMetadata
from vllm.v1.attention.backends import cpu_attn
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, CPUAttentionMetadata
from vllm.v1.kv_cache_interface import EncoderOnlyAttentionSpec, FullAttentionSpec

current_platform.import_kernels()

CACHE_DTYPES = {"auto": None, "int8_per_token_head": torch.int8, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class Case:
    q_lens: list[int]
    kv_lens: list[int]
    dtype: torch.dtype = torch.float32
    q_heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    block_size: int = 32
    causal: bool | list[int] = True
    window: int | None = None
    cap: float | None = None
    alibi: list[float] | None = None
    sinks: torch.Tensor | None = None
    kv_cache_dtype: str = "auto"
    k_scale: float = 1.0
    v_scale: float = 1.0
    attn_type: AttentionType = AttentionType.DECODER
    padding: int = 0  # tokens behind the last sequence
    seed: int = 0
    layer: SimpleNamespace = field(init=False)

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(self.seed)

        def normal(*shape):
            return torch.randn(*shape, generator=random).to(self.dtype)

        self.tokens = sum(self.q_lens)
        self.q = normal(self.tokens + self.padding, self.q_heads, self.head_size)
        self.keys, self.values = ([normal(n, self.kv_heads, self.head_size) for n in self.kv_lens] for _ in range(2))
        self.cu = torch.tensor([0, *self.q_lens]).cumsum(0).int()
        self.lens = torch.tensor(self.kv_lens, dtype=torch.int32)
        blocks = [-(-n // self.block_size) for n in self.kv_lens]
        numbers = torch.randperm(sum(blocks), generator=random).int() + 1  # page 0 belongs to nobody
        self.pages = 1 + sum(blocks)
        self.table = torch.zeros(len(blocks), max(blocks) + 1, dtype=torch.int32)
        for row, count, end in zip(self.table, blocks, torch.tensor(blocks).cumsum(0).tolist()):
            row[:count] = numbers[end - count : end]
        self.layer = SimpleNamespace(_k_scale_float=self.k_scale, _v_scale_float=self.v_scale, layer_name="a layer",
                                     isa="vec" if self.head_size % 32 == 0 and self.block_size % 32 == 0 else "vec16")  # fmt: skip

    def slots(self, b: int) -> torch.Tensor:
        position = torch.arange(self.kv_lens[b])
        return self.table[b, position // self.block_size].long() * self.block_size + position % self.block_size

    def cache(self) -> torch.Tensor:
        content = 2 * self.head_size + (8 if self.kv_cache_dtype.endswith("per_token_head") else 0)
        dtype = CACHE_DTYPES.get(self.kv_cache_dtype, torch.uint8) or self.dtype
        cache = torch.zeros(self.pages, self.kv_heads, self.block_size, content, dtype=dtype)
        return cache if dtype.is_floating_point else cache.view(torch.uint8).fill_(0x55).view(dtype)

    def common(self) -> CommonAttentionMetadata:
        causal = torch.tensor(self.causal, dtype=torch.int32) if isinstance(self.causal, list) else self.causal
        return CommonAttentionMetadata(
            query_start_loc=self.cu, query_start_loc_cpu=self.cu, seq_lens=self.lens, num_reqs=len(self.q_lens),
            num_actual_tokens=self.tokens, max_query_len=max(self.q_lens), max_seq_len=max(self.kv_lens), block_table_tensor=self.table,
            slot_mapping=torch.zeros(self.tokens, dtype=torch.int64), causal=causal,
        )  # fmt: skip

    def implementation(self, kind: type):
        # The implementations ask vLLM's configuration for nothing but the dtype.
        original = cpu_attn.get_current_vllm_config
        cpu_attn.get_current_vllm_config = lambda: SimpleNamespace(model_config=SimpleNamespace(dtype=self.dtype))
        try:
            return kind(self.q_heads, self.head_size, self.head_size**-0.5, self.kv_heads, self.alibi, self.window, self.kv_cache_dtype,
                        self.cap, self.attn_type, None, self.sinks)  # fmt: skip
        finally:
            cpu_attn.get_current_vllm_config = original

    def is_encoder(self) -> bool:
        return self.attn_type in (AttentionType.ENCODER, AttentionType.ENCODER_ONLY)

    def run(self, impl, metadata, cache) -> torch.Tensor:
        """Writes all keys and values and attends; padding tokens stay as they are."""
        if not self.is_encoder():
            for b, (keys, values) in enumerate(zip(self.keys, self.values)):
                impl.do_kv_cache_update(self.layer, keys, values, cache, self.slots(b))
        key, value = torch.cat(self.keys), torch.cat(self.values)
        out = torch.full_like(self.q, 7)
        assert impl.forward(self.layer, self.q, key, value, cache, metadata, out) is out
        assert (out[self.tokens :] == 7).all()
        return out[: self.tokens]

    def metadata(self):
        """What Riffle's builder makes of the batch."""
        spec = EncoderOnlyAttentionSpec if self.is_encoder() else FullAttentionSpec
        config = SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context={}))
        form = spec(block_size=self.block_size, num_kv_heads=self.kv_heads, head_size=self.head_size, dtype=self.dtype)
        return RiffleAttentionMetadataBuilder(form, [], config, None).build(0, self.common())

    def native_metadata(self) -> CPUAttentionMetadata:
        """What vLLM's own makes of it."""
        flags = torch.tensor(self.causal, dtype=torch.int32) if isinstance(self.causal, list) else None
        causal = flags is None and self.causal
        plan = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=len(self.q_lens), num_heads=self.q_heads, num_kv_heads=self.kv_heads, head_dim=self.head_size, seq_lens=self.lens,
            dtype=self.dtype, query_start_loc=self.cu, causal=causal, sliding_window_size=self.window or -1, isa=self.layer.isa,
            enable_kv_split=True, dynamic_causal=flags, kv_cache_dtype=self.kv_cache_dtype,
        )  # fmt: skip
        return CPUAttentionMetadata(self.tokens, max(self.q_lens), self.cu, max(self.kv_lens), self.lens, self.table, None, plan,
                                    causal=causal, dynamic_causal=flags)  # fmt: skip

    def by_riffle(self) -> torch.Tensor:
        return self.run(self.implementation(RiffleAttentionImpl), self.metadata(), self.cache())

    def by_vllm(self, kind: type = CPUAttentionBackendImpl) -> torch.Tensor:
        return self.run(self.implementation(kind), self.native_metadata(), self.cache())

    def by_arithmetic(self) -> torch.Tensor:
        """In double, from keys and values as they were before they went into a cache."""
        outs = []
        for b, (q_len, kv_len) in enumerate(zip(self.q_lens, self.kv_lens)):
            q = self.q[self.cu[b] : self.cu[b + 1]].double()
            keys, values = (x[b].double().repeat_interleave(self.q_heads // self.kv_heads, 1) for x in (self.keys, self.values))
            logits = torch.einsum("qhd,khd->hqk", q, keys) * self.head_size**-0.5
            if self.cap:
                logits = self.cap * torch.tanh(logits / self.cap)
            distance = torch.arange(kv_len) - (torch.arange(q_len) + kv_len - q_len)[:, None]
            if self.alibi:
                logits = logits + torch.tensor(self.alibi).double()[:, None, None] * distance
            causal = bool(self.causal[b]) if isinstance(self.causal, list) else self.causal
            hidden = distance > 0 if causal else torch.zeros_like(distance, dtype=torch.bool)
            if self.window:
                hidden |= distance.abs() >= self.window
            logits = logits.masked_fill(hidden, float("-inf"))
            if self.sinks is not None:
                logits = torch.cat([logits, self.sinks.double()[:, None, None].expand(-1, q_len, 1)], 2)
            outs.append(torch.einsum("hqk,khd->qhd", logits.softmax(2)[..., :kv_len], values))
        return torch.cat(outs)

"""DeepGEMM's scores for sparse attention and FlashMLA's sparse attention, on CPUs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from riffle import _core
from riffle._arguments import as_bool, as_float, short_repr
from riffle._sparse_arguments import e4m3_codes
from riffle.torch._library import LIBRARY, call, check_tensors, integer

_LOGITS = "fp8_mqa_logits(Tensor q, Tensor keys, Tensor scales, Tensor weights, Tensor starts, Tensor ends) -> Tensor"
_PAGED = (
    "fp8_paged_mqa_logits(Tensor q, Tensor pages, Tensor weights, Tensor context_lens, Tensor block_table, int max_context_len)"
    " -> Tensor"
)
_PREFILL = (
    "flash_mla_sparse_fwd(Tensor q, Tensor kv, Tensor indices, float sm_scale, int d_v, Tensor? attn_sink, Tensor? topk_length)"
    " -> (Tensor, Tensor)"
)
_DECODE = (
    "flash_mla_sparse_decode(Tensor q, Tensor[] pools, Tensor[] indices, Tensor?[] lengths, str row_format, float scale,"
    " int d_v, Tensor? attn_sink) -> (Tensor, Tensor)"
)
for _schema in (_LOGITS, _PAGED, _PREFILL, _DECODE):
    LIBRARY.define(_schema)


def _int32(x: Tensor) -> Tensor:
    return x.to(torch.int32).contiguous()


def _logits_cpu(q, keys, scales, weights, starts, ends):
    n = keys.shape[0]
    low, high = starts.clamp(0, n), ends.clamp(0, n)
    return call(_core.indexer_range_logits, e4m3_codes(q)[0], e4m3_codes(q)[1], weights.float().contiguous(), e4m3_codes(keys)[0],
                                      e4m3_codes(keys)[1], scales.reshape(-1).float(), _int32(low), _int32(high))


def _logits_fake(q, keys, scales, weights, starts, ends):
    return q.new_empty((q.shape[0], keys.shape[0]), dtype=torch.float32)


def _paged_cpu(q, pages, weights, context_lens, block_table, max_context_len):
    batch, next_n, heads, dim = q.shape
    codes, q_e4m3 = e4m3_codes(q.reshape(batch * next_n, heads, dim))
    size = pages.shape[1]
    flat = pages.view(torch.uint8).as_strided((pages.shape[0], size * (dim + 4)), (pages.stride(0), 1))
    out = q.new_full((batch * next_n, max_context_len), -math.inf, dtype=torch.float32)
    seen = context_lens.reshape(batch, -1).to(torch.int64)
    if seen.shape[1] == 1:  # of the last query; those before it see one less each
        seen = seen + torch.arange(1 - next_n, 1, device="cpu")
    for i in range(next_n):  # a query a sequence: lengths need not differ by one
        rows = slice(i, None, next_n)
        lens = seen[:, i].clamp(0, min(max_context_len, block_table.shape[1] * size))
        scores = call(_core.indexer_logits, codes[rows], q_e4m3, weights[rows].float().contiguous(), flat, _int32(lens),
                                   _int32(block_table), None, None, "deepgemm", 1, "relu", None)
        out[rows, : scores.shape[1]] = scores
    return out


def _paged_fake(q, pages, weights, context_lens, block_table, max_context_len):
    return q.new_empty((q.shape[0] * q.shape[1], max_context_len), dtype=torch.float32)


def _attend(q, scopes, scale, d_v, attn_sink):
    sinks = None if attn_sink is None else attn_sink.float()
    out, lse = call(_core.sparse_attention, q.contiguous(), scopes, d_v, scale, sinks, False, True, None, True)
    return out, torch.where(lse == -math.inf, math.inf, lse)


def _prefill_cpu(q, kv, indices, sm_scale, d_v, attn_sink, topk_length):
    lengths = None if topk_length is None else _int32(topk_length)
    return _attend(q, [(kv[:, 0], _int32(indices[:, 0]), lengths, "plain", None)], sm_scale, d_v, attn_sink)


def _prefill_fake(q, kv, indices, sm_scale, d_v, attn_sink, topk_length):
    return q.new_empty((*q.shape[:2], d_v)), q.new_empty(q.shape[:2], dtype=torch.float32)


def _decode_cpu(q, pools, indices, lengths, row_format, scale, d_v, attn_sink):
    batch, s_q, heads, dim = q.shape
    scopes = []
    for pool, index, length in zip(pools, indices, lengths):
        rows = pool.view(torch.uint8) if row_format != "plain" else pool
        rows = rows.as_strided((rows.shape[0], rows.shape[1], rows.shape[-1]), (rows.stride(0), rows.shape[-1], 1))
        token_lengths = None if length is None else _int32(length).repeat_interleave(s_q)
        scopes.append((rows, _int32(index).reshape(batch * s_q, -1), token_lengths, row_format, None))
    out, lse = _attend(q.reshape(batch * s_q, heads, dim), scopes, scale, d_v, attn_sink)
    return out.view(batch, s_q, heads, d_v), lse.view(batch, s_q, heads).transpose(1, 2).contiguous()


def _decode_fake(q, pools, indices, lengths, row_format, scale, d_v, attn_sink):
    batch, s_q, heads, _ = q.shape
    return q.new_empty((batch, s_q, heads, d_v)), q.new_empty((batch, heads, s_q), dtype=torch.float32)


for _name, _cpu, _fake in (
    ("fp8_mqa_logits", _logits_cpu, _logits_fake),
    ("fp8_paged_mqa_logits", _paged_cpu, _paged_fake),
    ("flash_mla_sparse_fwd", _prefill_cpu, _prefill_fake),
    ("flash_mla_sparse_decode", _decode_cpu, _decode_fake),
):
    LIBRARY.impl(_name, _cpu, "CPU")
    torch.library.register_fake(f"riffle::{_name}", _fake, lib=LIBRARY)


def _length(name: str, value: int) -> int:
    value = integer(name, value)
    torch._check(value < 2**31, lambda: f"{name} = {value} is not below 2^31")
    return value


def _as_finite_float(name: str, value: float) -> float:
    if is_compiling():
        return value
    value = call(as_float, name, value)
    torch._check(math.isfinite(value), lambda: f"{name} = {value} is not finite")
    return value


def _value_dim(name: str, value: int, q: Tensor) -> int:
    value = integer(name, value)
    dim = q.shape[-1]
    torch._check(16 <= value <= dim and value % 16 == 0, lambda: f"{name} = {value} is not a multiple of 16 from 16 to {dim}")
    return value


def fp8_mqa_logits(
    q: Tensor,
    kv: tuple[Tensor, Tensor],
    weights: Tensor,
    cu_seq_len_k_start: Tensor,
    cu_seq_len_k_end: Tensor,
    clean_logits: bool = True,
    max_seqlen_k: int = 0,
) -> Tensor:
    """deep_gemm.fp8_mqa_logits for CPU tensors: scores of a lightning indexer over one matrix of keys.

    Args:
      q: float8_e4m3fn [M, H, D]; float32, float16, bfloat16 and int8 too.
      kv: keys [N, D] of those dtypes, and their scales, float32 [N].
      weights: [M, H], with q's scale in it.
      cu_seq_len_k_start, cu_seq_len_k_end: [M], the keys that a query sees.
      clean_logits: columns outside of a query's keys are always -inf.
      max_seqlen_k: above 0, the result has so many columns, and row i holds its own range from column 0 on.

    Returns:
      float32 [M, N], or [M, max_seqlen_k].
    """
    keys: Any
    scales: Any
    try:
        keys, scales = kv
    except Exception:  # whatever an object's own code raises
        keys = scales = None
    if not all(isinstance(x, Tensor) or hasattr(type(x), "__torch_function__") for x in (keys, scales)):
        raise TypeError(f"fp8_mqa_logits(): argument 'kv' must be (keys, scales), two tensors, not {short_repr(kv)}")
    max_seqlen_k = _length("max_seqlen_k", max_seqlen_k)
    check_tensors("fp8_mqa_logits", {"q": q, "weights": weights,
                                     "cu_seq_len_k_start": cu_seq_len_k_start, "cu_seq_len_k_end": cu_seq_len_k_end})
    logits = torch.ops.riffle.fp8_mqa_logits(q, keys, scales, weights, cu_seq_len_k_start, cu_seq_len_k_end)
    if max_seqlen_k <= 0:
        return logits
    start, end = cu_seq_len_k_start.to(torch.int64), cu_seq_len_k_end.to(torch.int64)
    columns = start[:, None] + torch.arange(max_seqlen_k, device=logits.device)
    own = logits.gather(1, columns.clamp(0, max(keys.shape[0] - 1, 0)))
    return torch.where(columns < end[:, None], own, -math.inf)


def fp8_paged_mqa_logits(
    q: Tensor,
    fused_kv_cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    schedule_meta: Tensor | None = None,
    max_context_len: int = 0,
    clean_logits: bool = True,
) -> Tensor:
    """deep_gemm.fp8_paged_mqa_logits for CPU tensors: the scores of decoding over paged keys.

    Args:
      q: float8_e4m3fn [B, next_n, H, D].
      fused_kv_cache: uint8 [pages, page_size, 1, D + 4]: a page is page_size x D float8_e4m3fn, then page_size float32 scales.
      weights: [B * next_n, H], with q's scale in it.
      context_lens: [B], query i of next_n sees context_lens - next_n + i + 1 keys; or [B, next_n], of each query.
      block_table: [B, max_pages].
      schedule_meta: without effect.
      max_context_len: columns of the result.
      clean_logits: columns after a query's keys are always -inf.

    Returns:
      float32 [B * next_n, max_context_len].
    """
    max_context_len = _length("max_context_len", max_context_len)
    check_tensors("fp8_paged_mqa_logits", {"q": q, "fused_kv_cache": fused_kv_cache, "weights": weights,
                                           "context_lens": context_lens, "block_table": block_table})
    return torch.ops.riffle.fp8_paged_mqa_logits(q, fused_kv_cache, weights, context_lens, block_table, max_context_len)


def flash_mla_sparse_fwd(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    sm_scale: float,
    d_v: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """flash_mla.flash_mla_sparse_fwd for CPU tensors: prefill over named rows.

    Args:
      q: [s_q, h_q, d] bfloat16, float16 or float32.
      kv: [s_kv, 1, d]; the first d_v elements of a row are its value.
      indices: int32 [s_q, 1, topk]; numbers that are no row are ignored.
      sm_scale: of the logits.
      d_v: elements of a value.
      attn_sink: [h_q], a logit that takes part in the softmax.
      topk_length: [s_q]; indices past it are not read.

    Returns:
      out [s_q, h_q, d_v]; max_logits float32 [s_q, h_q], the largest of the scaled logits, which here is computed from the
      rows; lse float32 [s_q, h_q], natural, without the sink, +inf for a query without rows.
    """
    check_tensors("flash_mla_sparse_fwd", {"q": q, "kv": kv, "indices": indices},
                  {"attn_sink": attn_sink, "topk_length": topk_length})
    sm_scale, d_v = _as_finite_float("sm_scale", sm_scale), _value_dim("d_v", d_v, q)
    out, lse = torch.ops.riffle.flash_mla_sparse_fwd(q, kv, indices, sm_scale, d_v, attn_sink, topk_length)
    return out, _max_logits(q, kv, indices, sm_scale, topk_length), lse


def _max_logits(q, kv, indices, sm_scale, topk_length):
    row_indices = indices[:, 0].to(torch.int64)
    seen = (row_indices >= 0) & (row_indices < kv.shape[0])
    if topk_length is not None:
        seen &= torch.arange(row_indices.shape[1], device=row_indices.device) < topk_length[:, None]
    largest = q.new_full(q.shape[:2], -math.inf, dtype=torch.float32)
    for t in range(q.shape[0]):  # the rows of all queries at once would be gigabytes
        rows = kv[row_indices[t][seen[t]], 0].float()
        if rows.shape[0] > 0:
            largest[t] = (q[t].float() @ rows.T * sm_scale).amax(-1)
    return largest


def flash_mla_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor | None,
    cache_seqlens: Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata=None,
    num_splits=None,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: Tensor | None = None,
    attn_sink: Tensor | None = None,
    extra_k_cache: Tensor | None = None,
    extra_indices_in_kvcache: Tensor | None = None,
    topk_length: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """flash_mla.flash_mla_with_kvcache for CPU tensors, its sparse form: decoding over named slots.

    Args:
      q: [B, s_q, h_q, 576 or 512] bfloat16, float16 or float32.
      k_cache: [pages, page_size, 1, row]: rows of 656 bytes (DeepSeek-V3.2) or pages of 584 bytes a row (V4) with
        is_fp8_kvcache, else elements of q's width.
      block_table, cache_seqlens, tile_scheduler_metadata, num_splits, causal: without effect where indices are given, as there.
      head_dim_v: 512.
      softmax_scale: None: 1 / sqrt(d).
      indices: int32 [B, s_q, topk], slots; numbers that are no slot are ignored. Must be given; dense attention is
        riffle.torch.paged_attention.
      attn_sink: [h_q], a logit that takes part in the softmax.
      extra_k_cache, extra_indices_in_kvcache, extra_topk_length: a second pool, with rows of the same kind.
      topk_length: [B]; indices past it are not read.

    Returns:
      out [B, s_q, h_q, head_dim_v]; lse float32 [B, h_q, s_q], natural, without the sink, +inf for a query without rows.
    """
    if indices is None:
        raise NotImplementedError("flash_mla_with_kvcache(): indices is None; dense attention is riffle.torch.paged_attention")
    check_tensors("flash_mla_with_kvcache", {"q": q, "k_cache": k_cache, "indices": indices},
                  {"attn_sink": attn_sink, "extra_k_cache": extra_k_cache, "topk_length": topk_length,
                   "extra_indices_in_kvcache": extra_indices_in_kvcache, "extra_topk_length": extra_topk_length})
    formats = {656: "mla656", 584: "mla584"}
    if not is_compiling():
        is_fp8_kvcache = call(as_bool, "is_fp8_kvcache", is_fp8_kvcache)
    if is_fp8_kvcache and k_cache.shape[-1] not in formats:
        raise RuntimeError(f"is_fp8_kvcache = True but k_cache has shape {tuple(k_cache.shape)}; its last axis must be 656 or 584 bytes")
    row_format = formats[k_cache.shape[-1]] if is_fp8_kvcache else "plain"
    pools, index_lists, lengths = [k_cache], [indices], [topk_length]
    if extra_k_cache is not None:
        if extra_indices_in_kvcache is None:
            raise RuntimeError("extra_indices_in_kvcache is None but extra_k_cache is given")
        pools.append(extra_k_cache)
        index_lists.append(extra_indices_in_kvcache)
        lengths.append(extra_topk_length)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else _as_finite_float("softmax_scale", softmax_scale)
    head_dim_v = _value_dim("head_dim_v", head_dim_v, q)
    return torch.ops.riffle.flash_mla_sparse_decode(q, pools, index_lists, lengths, row_format, scale, head_dim_v, attn_sink)

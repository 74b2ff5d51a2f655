// The compressors of DeepSeek-V4: windows of tokens become one entry each, which sparse attention
// (riffle/sparse_attention.h) and the indexer (riffle/indexer.h) read in their place.
#pragma once

#include <cstdint>

#include "riffle/export.h"
#include "riffle/indices.h"
#include "riffle/runtime.h"
#include "riffle/types.h"

namespace riffle {

// Rotary embedding of the last `dim` elements of a row, interleaved: elements 2i and 2i + 1 are a
// pair. Row p has dim / 2 cosines, then dim / 2 sines, of position p.
struct RopeTable {
  const float* cos_sin = nullptr;  // [positions, dim]; null: none
  int64_t positions = 0;
  int64_t dim = 0;         // even, at most an entry's dim
  int64_t row_stride = 0;  // elements
};

struct CompressOptions {
  int64_t ratio = 4;  // tokens of a window
  // An entry combines two windows: the first half of the columns in the window before its own, the
  // second half in its own. Entry 0 of a sequence has its own window alone.
  bool overlap = false;
  const float* gate_bias = nullptr;    // [ratio, cols], contiguous, added to gates; null: none
  bool norm = true;                    // RMS norm of each entry
  const float* norm_weight = nullptr;  // [dim]; null: all 1
  float norm_eps = 1e-6f;
  RopeTable rope;  // entry i of a sequence takes row i * ratio
  // Sequence b has tokens [cu_lens[b], cu_lens[b + 1]) of kv. Empty: one sequence.
  IndexSpan cu_lens;
  // [B] the number of the first entry to make in each sequence; empty: 0. With overlap, where it is
  // not 0, the tokens must begin with the window before that entry's own.
  IndexSpan first_entries;
  ThreadPool* pool = nullptr;
};

// The number of entries that CompressKv makes of `tokens` tokens: only complete windows count.
// Throws Error(kBadShape, kBadOption, kBadRange).
RIFFLE_API int64_t CompressedEntries(int64_t tokens, const CompressOptions& options);

// Entry i of a sequence, before norm and RoPE, in each channel:
//   sum over tokens j of softmax_j(gates[j] + gate_bias[j % ratio]) * kv[j]
//   kv, gates  [tokens, cols] f32|f16|bf16, cols = dim, with overlap 2 * dim; dim is a multiple of
//              16 up to 1024
//   out        [CompressedEntries, dim] in the dtype of kv, sequence after sequence; row_stride in
//              elements
// Tokens of an incomplete last window are not read. A token whose gate is -inf does not count; a
// channel in which no token counts is NaN. Sums are in f32; an entry has the same bits whatever
// else is in the call, on one SIMD target. Throws Error: kBadShape, kBadDType, kBadOption,
// kBadRange, kOverlap, kOutOfMemory. Nothing is written on error.
// Source of the method: DeepSeek-V4 (its attention's and its indexer's compressors).
RIFFLE_API void CompressKv(const MatrixView& kv, const MatrixView& gates, const OutView<void>& out,
                           const CompressOptions& options);

}  // namespace riffle

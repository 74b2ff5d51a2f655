// What the kernels of sparse attention are given: checked once at the entry point.
#pragma once

#include <cstdint>
#include <span>

#include "core/scratch_layout.h"
#include "riffle/sparse_attention.h"

namespace riffle::sparse {

inline constexpr int kAttendBlock = 128;  // rows of a block
inline constexpr int kMaxRowDim = 1024;
inline constexpr int kColumnChunk = 32;  // value columns that are multiplied at a time
inline constexpr int kMaxScopes = 8;

struct AttendArgs {
  const uint8_t* q = nullptr;  // strides in bytes
  DType q_dtype = DType::kF32;
  int64_t q_token_stride = 0;
  int64_t q_head_stride = 0;
  int heads = 0;
  int row_dim = 0;
  int value_dim = 0;
  float scale = 1;
  const float* sinks = nullptr;  // or null
  bool lse_with_sinks = true;
  bool bf16 = false;  // rows and probabilities are bf16
  std::span<const SparseScope> scopes;
  uint8_t* out = nullptr;  // strides in bytes
  int64_t out_token_stride = 0;
  int64_t out_head_stride = 0;
  float* lse = nullptr;  // or null
  int64_t lse_token_stride = 0;

  int per_word() const { return bf16 ? 2 : 1; }
  int row_words() const { return row_dim / per_word(); }
};

// Heads of a token; a work item.
struct AttendItem {
  int64_t token = 0;
  int head_begin = 0;
  int head_end = 0;
};

// A thread's memory.
struct AttendScratch {
  core::ScratchArray<const uint8_t*> rows;  // [named rows] where they are, in order
  core::ScratchArray<uint8_t> formats;      // [named rows] the scope of each
  core::ScratchArray<int32_t> slots;        // [2][columns of the widest scope]: sorting
  core::ScratchArray<uint32_t> q;           // [head groups][row words][heads of a group]
  core::ScratchArray<uint32_t> decoded;     // [kAttendBlock][row words]
  core::ScratchArray<uint32_t> keys;        // [panels][row words][keys of a panel]
  core::ScratchArray<uint32_t> values;      // [chunks][words of keys][kColumnChunk]
  core::ScratchArray<float> scores;         // [heads][kAttendBlock], then probabilities as words
  core::ScratchArray<float> sums;           // [heads][padded value_dim]
  core::ScratchArray<float> max;            // [heads]
  core::ScratchArray<float> weight;         // [heads]
  core::ScratchArray<float> correction;     // [heads]
  int64_t padded_dim = 0;
  size_t bytes = 0;
};
AttendScratch PlanAttendScratch(const AttendArgs& args, int heads);

struct AttendKernels {
  void (*attend)(const AttendArgs& args, const AttendItem& item, const AttendScratch& layout,
                 uint8_t* scratch);
};
bool HasBF16Attend();
const AttendKernels& GetAttendKernels(bool bf16);

}  // namespace riffle::sparse

// The prefilter of the LM head. Products of int8, with a proven bound of their error, tell which
// columns may be among the k best of a row, and only those are multiplied exactly.
// docs/prefilter.md proves |approximate - exact| <= ErrorBound::relative * |w| +
// ErrorBound::absolute.
#pragma once

#include <atomic>
#include <cstdint>

#include "lm_head/linear_args.h"

namespace riffle::lm_head {

// 32 inputs of a row as step * q, |q| <= 127. A lane holds four q, the first in its lowest byte.
struct Int8Block {
  int32_t lanes[kQ8Block / 4];
  int32_t initial_sum;  // -Int8Dot::kBias times the sum of q
  float step;
};

// At most this many rows read W in place (inplace_int8-inl.h), more read it packed
// (packed_int8-inl.h). (262144 x 640 and three rows of f32: 7.7 ms in place, 8.7 ms packed.)
inline constexpr int kInplaceRows = 3;
inline constexpr int32_t kMaxInplaceQ = 127 * 128;  // the largest |q| in place: q has two int8

// In place: the factors for 64 bytes of a column of W, in which scales (2 bytes) and weights (32)
// alternate. Every lane of four bytes belongs to one block; q is zero where the column has a scale.
struct InplaceLine {
  int8_t high[64];  // q = 128 * high + low
  int8_t low[64];
  int32_t initial_sum[16];  // -kBias / 128 * sum of the lane's q: added before the shift left by 7
  float step[16];
};

// How many blocks of W are packed together: those of a panel fill half of L1.
inline constexpr int kPrefilterBlocks = 20;
// Keeps every error bound from overflowing.
inline constexpr int64_t kMaxPrefilterInputs = 1 << 16;

constexpr int64_t InplaceLines(int64_t d) { return (d / kQ8Block * kQ8BlockBytes + 63) / 64; }

// The error bound of one row. A bias adds its own rounding.
struct ErrorBound {
  float relative;  // to be multiplied by the Euclidean norm of a column
  float absolute;
};

struct PrefilterArgs {
  LinearArgs linear;
  Int8Block* x = nullptr;          // [groups()][rows][kPrefilterBlocks]; unused in place
  InplaceLine* inplace = nullptr;  // [rows][lines()]; unused if packed
  ErrorBound* errors = nullptr;    // [rows]

  bool in_place() const { return linear.rows <= kInplaceRows; }
  int64_t lines() const { return InplaceLines(linear.d); }
  int blocks() const { return static_cast<int>(linear.d / kQ8Block); }
  int groups() const { return (blocks() + kPrefilterBlocks - 1) / kPrefilterBlocks; }
};

// The candidates of all rows, shared by all chunks. An exact logit lies between its two bounds.
struct SharedCandidates {
  std::atomic<int32_t>* bounds = nullptr;     // [rows] a key that k logits reach
  std::atomic<int32_t>* locks = nullptr;      // [rows] 1 while a chunk appends to the row
  std::atomic<int32_t>* fell_back = nullptr;  // [rows] 1: too many candidates, or not quantisable
  std::atomic<int32_t>* remaining = nullptr;  // how many rows have not fallen back
  int64_t* counts = nullptr;                  // [rows] candidates, in any order
  int32_t* lowers = nullptr;                  // [rows][stride] keys
  float* uppers = nullptr;                    // likewise
  int32_t* columns = nullptr;                 // likewise
  int64_t stride = 0;

  void FallBack(int64_t row) const {
    if (fell_back[row].exchange(1, std::memory_order_relaxed) == 0) {
      remaining->fetch_sub(1, std::memory_order_relaxed);
    }
  }
  bool FellBack(int64_t row) const { return fell_back[row].load(std::memory_order_relaxed) != 0; }
};

}  // namespace riffle::lm_head

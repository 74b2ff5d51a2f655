// The prefilter of the LM head: int8 products tell, with a proven bound of their error, which
// columns may be among the k best of a row; only those are multiplied exactly. docs/prefilter.md
// has the proof of |approximate - exact| <= ErrorBound::relative * |w| + ErrorBound::absolute.
#pragma once

#include <atomic>
#include <cstdint>

#include "lm_head/linear_args.h"

namespace riffle::lm_head {

// 32 inputs of a row, as step * q with |q| <= 127. Four q to a lane, the first in its lowest byte.
struct Int8Block {
  int32_t lanes[kQ8Block / 4];
  int32_t start;  // -128 times the sum of q: packed weights are w + 128, as the instruction wants
  float step;
};

// Up to so many rows read W in place (inplace_int8-inl.h), more read it packed (packed_int8-inl.h).
// (262144 x 640, three rows of f32: 7.7 instead of 8.7 ms.)
inline constexpr int kInplaceRows = 3;
inline constexpr int32_t kMaxInplaceQ = 127 * 128;  // the largest |q| in place: 14 bits

// In place: what multiplies 64 bytes of a column of W, in which scales (2 bytes) and weights (32)
// alternate. Every lane of four bytes belongs to one block; q is zero where the column has scales.
struct InplaceLine {
  int8_t high[64];  // q = 128 * high + low
  int8_t low[64];
  int32_t start[16];  // minus the sum of the lane's q; becomes -128 times it when high is shifted
  float step[16];
};

// Blocks of W that are packed together: those of a panel fill half of L1.
inline constexpr int kPrefilterBlocks = 20;
// So that no error bound overflows.
inline constexpr int64_t kMaxPrefilterInputs = 1 << 16;

constexpr int64_t InplaceLines(int64_t d) { return (d / kQ8Block * kQ8BlockBytes + 63) / 64; }

// Of one row. A bias adds its own rounding.
struct ErrorBound {
  float relative;  // to the Euclidean norm of a column
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

// The candidates of all rows, which all chunks share. An exact logit lies between its two bounds.
struct SharedCandidates {
  std::atomic<int32_t>* bounds = nullptr;     // [rows] a key that k logits are known to reach
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

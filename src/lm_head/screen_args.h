// The screen of the LM head: products of int8, with a bound of how far from the logits they are,
// tell which columns may be among the k best of a row; only those are multiplied as Linear does.
//
// The bound. x is a row as the exact chains take it (rounded to bf16 where they do), w a column of
// W, x' = step * q the row in int8, and |.| the Euclidean norm. The exact logit differs from the
// real number x . w, and the approximate one from x' . w, by roundings of 2^-24 each to sums that
// |x| |w| and |x'| |w| bound (Cauchy and Schwarz): fewer than 2 (33 + blocks) and 2 blocks + 8 of
// them, where one more for each product is for targets without FMA. And |x . w - x' . w| is at most
// |x - x'| |w|. So with r = 2^-21 (32 + blocks), more than twice what is needed,
//   |approximate - exact| <= (|x - x'| + r (|x| + |x - x'|)) |w| + a,
// where a = 2^-96 blocks is for results that underflow, or that VDPBF16PS takes for zeros: at most
// 2^-113 in a block before its scale, below 2^16, multiplies it. A bias b adds 2^-20 |b|.
// |x - x'| and |x| are sums of squares per block in units of its step, made when x is quantised;
// their own roundings, some 2^-19 |x|, are within r. |w| comes from the sum of squares of int8.
// Few rows go in 14 bits and a sign, a hundred times closer, so that there |w| may be two or three
// times too large: it comes from the squares of the scales, as if all weights were -128. Their sums
// run along a column: an addition a vector of it, so at most 2.2 blocks + 1, 4 for its lanes and
// two products, also within r. Sums of integers stay below 2^24. Rows with NaN, infinities or
// numbers from 2^64 on, and more than kMostScreenedInputs inputs, are not screened, so nothing
// overflows; a scale or bias that is not finite makes the bound infinite or NaN, and such a column
// is always multiplied.
#pragma once

#include <atomic>
#include <cstdint>

#include "lm_head/linear_args.h"

namespace riffle::lm_head {

// 32 inputs of a row: step * q[i], q of -127 to 127, four to a word, lowest first.
struct ScreenBlock {
  int32_t words[kQ8Block / 4];
  int32_t start;  // -128 times the sum of q: words of W hold weights + 128
  float step;
};

// Up to so many rows read W as it lies (screen_few-inl.h), more as it is laid out.
// (262144 x 640 of f32, three rows: 7.7 instead of 8.7 ms.)
inline constexpr int kFewScreenRows = 3;
inline constexpr int32_t kFewScreenMost = 127 * 128;  // the largest |q|: 14 bits

// Few rows: 64 bytes of a column of W, two bytes of scale and 32 weights a block, in turn. Every
// word of four bytes belongs to one block; the row is zero where scales are.
struct FewScreenChunk {
  int8_t high[64];  // q = 128 * high + low
  int8_t low[64];
  int32_t start[16];  // minus the sum of q of each word: -128 times it, before high is shifted
  float step[16];
};

// Blocks of W that are laid out together; those of a panel then fill half of L1.
inline constexpr int kScreenBlocks = 20;
inline constexpr int64_t kMostScreenedInputs = 1 << 16;

constexpr int64_t FewScreenChunks(int64_t d) { return (d / kQ8Block * kQ8BlockBytes + 63) / 64; }

// |approximate - exact| <= relative * |w| + absolute, but for the bias.
struct ScreenError {
  float relative;
  float absolute;
};

struct ScreenArgs {
  LinearArgs linear;
  ScreenBlock* x = nullptr;       // [spans][rows][kScreenBlocks]; few rows: unused
  FewScreenChunk* few = nullptr;  // [rows][chunks]; many rows: unused
  ScreenError* errors = nullptr;  // [rows]

  bool few_rows() const { return linear.rows <= kFewScreenRows; }
  int64_t chunks() const { return FewScreenChunks(linear.d); }
  int blocks() const { return static_cast<int>(linear.d / kQ8Block); }
  int spans() const { return (blocks() + kScreenBlocks - 1) / kScreenBlocks; }
};

// What all pieces share. A candidate's exact logit lies from its lower to its upper bound.
struct ScreenLists {
  std::atomic<int32_t>* bounds = nullptr;  // [rows]; a key that k logits are known to reach
  std::atomic<int32_t>* locks = nullptr;   // [rows] 1: a piece adds to the row's candidates
  std::atomic<int32_t>* given_up =
      nullptr;                           // [rows] 1: too many candidates, or not screened at all
  std::atomic<int32_t>* left = nullptr;  // rows that are not given up
  int64_t* counts = nullptr;             // [rows] candidates, in any order
  int32_t* lowers = nullptr;             // [rows][stride] keys
  float* uppers = nullptr;               // likewise
  int32_t* columns = nullptr;            // likewise
  int64_t stride = 0;

  void GiveUp(int64_t row) const {
    if (given_up[row].exchange(1, std::memory_order_relaxed) == 0) {
      left->fetch_sub(1, std::memory_order_relaxed);
    }
  }
};

}  // namespace riffle::lm_head

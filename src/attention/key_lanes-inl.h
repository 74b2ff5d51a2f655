// Scores of the few rows of a decode by dot products of bf16, 16 keys in the lanes of a vector: a
// step multiplies an operand of 16 keys by the operand of a row of q, which the instruction
// broadcasts from memory. Codes of 8 and 4 bits are transposed first (key_steps-inl.h) and decoded
// in registers afterwards. Every score is the same chain as in dot-inl.h, so the bits are those of
// prefill. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_KEY_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_KEY_LANES_INL_H_
#undef RIFFLE_ATTENTION_KEY_LANES_INL_H_
#else
#define RIFFLE_ATTENTION_KEY_LANES_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "attention/dot-inl.h"
#include "attention/key_steps-inl.h"
#include "attention/kv_rows.h"
#include "attention/small_m-inl.h"
#include "core/bf16_dot.h"

#if RIFFLE_BF16_DOT && HWY_CAP_GE512

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
// Rows of keys, which of their steps to multiply, and rows to prefetch meanwhile.
struct LaneKeys {
  const uint8_t* const* rows;  // [16 * sets]
  int begin_step;              // steps [begin_step, end_step) of KeySteps
  int end_step;
  // For rows of more than one block, scale g of key i is scales[g * kBlock + i]. Else null.
  const float* scales;
  const uint8_t* const* ahead;  // as many as rows
  int ahead_lines;              // of 64 bytes, of each of them

  int Steps() const { return end_step - begin_step; }
};

// Prefetches rows while others are multiplied: all lines of a few rows every few products.
// (Prefetching the first lines of all rows, then the second ones, made decode over Q8_0 a tenth
// slower: each row's pointer is then loaded once per line, and the kernels are bound by loads.)
class RowPrefetch {
 public:
  // `count` rows of `lines` lines of 64 bytes; PrefetchNext is called `times` times.
  HWY_INLINE RowPrefetch(const uint8_t* const* rows, int count, int lines, int times)
      : next_(rows),
        end_(rows + count),
        lines_(lines),
        at_once_((count + times - 1) / times),
        every_(HWY_MAX(1, times / count)) {}

  HWY_INLINE void PrefetchNext() {
    if (--wait_ > 0) {
      return;
    }
    wait_ = every_;
    for (int i = 0; i < at_once_ && next_ != end_; ++i, ++next_) {
      const uint8_t* row = *next_;
      for (int line = 0; line < lines_; ++line) {
        PrefetchAt(row, line * 64);
      }
    }
  }

 private:
  const uint8_t* const* next_;
  const uint8_t* const* const end_;
  const int lines_;
  const int at_once_;
  const int every_;  // calls
  int wait_ = 1;
};

// The scales of 16 keys in the order of lanes that StoreLanes expects.
HWY_INLINE hn::Vec<FloatTag<16>> LaneScales(const float* scales) {
  const FloatTag<16> df;
  alignas(64) static constexpr int32_t kKeys[16] = {0, 4, 8,  12, 1, 5, 9,  13,
                                                    2, 6, 10, 14, 3, 7, 11, 15};
  return hn::TableLookupLanes(hn::Load(df, scales), hn::SetTableIndices(df, kKeys));
}

// Sums of kSets sets of 16 keys and kRows rows.
template <int kRows, int kSets>
struct LaneSums {
  hn::Vec<FloatTag<16>> vec[kSets][kRows];

  HWY_INLINE LaneSums() {
    for (auto& set : vec) {
      for (auto& sum : set) {
        sum = hn::Zero(FloatTag<16>());
      }
    }
  }

  // Adds the products of a step's operands.
  //   q      [operands of the step][kRows]
  //   codes  [kSets][64 * kVectors], as Transpose stores them
  template <class Steps>
  HWY_INLINE void AddStep(const Steps& steps, const uint32_t* HWY_RESTRICT q,
                          const uint8_t* HWY_RESTRICT codes, RowPrefetch& prefetch) {
    const FloatTag<16> df;
#pragma GCC unroll 1
    for (int i = 0; i < Steps::kStepOperands / 2; ++i, q += 2 * kRows) {
      prefetch.PrefetchNext();
      TwoOperands x[kSets];
      for (int set = 0; set < kSets; ++set) {
        x[set] = steps.Operands(codes + set * 64 * Steps::kVectors, i);
      }
      for (int j = 0; j < 2; ++j) {
        for (int row = 0; row < kRows; ++row) {
          for (int set = 0; set < kSets; ++set) {
            vec[set][row] =
                BF16Math::Step(df, q[j * kRows + row], x[set].operand[j], vec[set][row]);
          }
        }
      }
    }
  }

  HWY_INLINE void Store(float* HWY_RESTRICT scores) const {
    for (int set = 0; set < kSets; ++set) {
      StoreLanes<kRows>(vec[set], scores + 16 * set * kRows);
    }
  }
};

// Transposes a step of kSets times 16 keys.
template <class Steps, int kSets>
HWY_INLINE void TransposeStep(const Steps& steps, const LaneKeys& keys, int step,
                              uint8_t* HWY_RESTRICT codes) {
  for (int set = 0; set < kSets; ++set) {
    steps.Transpose(keys.rows + 16 * set, step, codes + set * 64 * Steps::kVectors);
  }
}

// Scores of kSets times 16 keys against kRows rows.
//   q  [operands][kRows]; scores [keys][kRows], aligned
template <RowCode kCode, int kRows, int kSets>
HWY_INLINE void KeyLaneScores(const uint32_t* HWY_RESTRICT q, const LaneKeys& keys,
                              float* HWY_RESTRICT scores) {
  using Steps = KeySteps<kCode>;
  constexpr int kStepWords = Steps::kStepOperands * kRows;
  const Steps steps;
  alignas(64) uint8_t codes[kSets * 64 * Steps::kVectors];
  LaneSums<kRows, kSets> sums;
  RowPrefetch prefetch(keys.ahead, 16 * kSets, keys.ahead_lines,
                       keys.Steps() * Steps::kStepOperands / 2);
  for (int step = keys.begin_step; step < keys.end_step; ++step) {
    TransposeStep<Steps, kSets>(steps, keys, step, codes);
    sums.AddStep(steps, q + step * kStepWords, codes, prefetch);
  }
  sums.Store(scores);
}

// KeyLaneScores where each step is a block with scales of its own.
template <RowCode kCode, int kRows, int kSets>
HWY_INLINE void ScaledLaneScores(const uint32_t* HWY_RESTRICT q, const LaneKeys& keys,
                                 float* HWY_RESTRICT scores) {
  using Steps = KeySteps<kCode>;
  constexpr int kStepWords = Steps::kStepOperands * kRows;
  const FloatTag<16> df;
  const Steps steps;
  alignas(64) uint8_t codes[kSets * 64 * Steps::kVectors];
  alignas(64) float total[kSets][kRows][16] = {};
  RowPrefetch prefetch(keys.ahead, 16 * kSets, keys.ahead_lines,
                       keys.Steps() * Steps::kStepOperands / 2);
  for (int step = keys.begin_step; step < keys.end_step; ++step) {
    TransposeStep<Steps, kSets>(steps, keys, step, codes);
    LaneSums<kRows, kSets> sums;
    sums.AddStep(steps, q + step * kStepWords, codes, prefetch);
    for (int set = 0; set < kSets; ++set) {
      const auto scale = LaneScales(keys.scales + step * kBlock + 16 * set);
      for (int row = 0; row < kRows; ++row) {
        float* at = total[set][row];
        hn::Store(hn::MulAdd(sums.vec[set][row], scale, hn::Load(df, at)), df, at);
      }
    }
  }
  LaneSums<kRows, kSets> sums;
  for (int set = 0; set < kSets; ++set) {
    for (int row = 0; row < kRows; ++row) {
      sums.vec[set][row] = hn::Load(df, total[set][row]);
    }
  }
  sums.Store(scores);
}

template <RowCode kCode, int kRows, int kSets>
HWY_INLINE void LaneScores(const uint32_t* q, const LaneKeys& keys, float* scores) {
  if constexpr (IsBlocks(kCode)) {
    if (keys.scales != nullptr) {
      return ScaledLaneScores<kCode, kRows, kSets>(q, keys, scores);
    }
  }
  KeyLaneScores<kCode, kRows, kSets>(q, keys, scores);
}

// Scores of `sets` sets of 16 keys, at most four.
template <RowCode kCode>
void LaneScoresOfSets(const uint32_t* q, int lanes, LaneKeys keys, int sets, float* scores) {
  if (lanes == 4 && sets == 4) {
    return LaneScores<kCode, 4, 4>(q, keys, scores);
  }
  if (lanes == 4 && sets == 2) {
    return LaneScores<kCode, 4, 2>(q, keys, scores);
  }
  for (int set = 0; set < sets; ++set) {
    if (lanes == 4) {
      LaneScores<kCode, 4, 1>(q, keys, scores);
    } else if (lanes == 8) {
      LaneScores<kCode, 8, 1>(q, keys, scores);
    } else {
      LaneScores<kCode, 16, 1>(q, keys, scores);
    }
    keys.rows += kGroupKeys;
    keys.ahead += kGroupKeys;
    keys.scales += keys.scales != nullptr ? kGroupKeys : 0;
    scores += kGroupKeys * lanes;
  }
}

using LaneScoresKernel = void (*)(const uint32_t* q, int lanes, LaneKeys keys, int sets,
                                  float* scores);
struct LaneKernel {
  LaneScoresKernel run = nullptr;
  int step_operands = 0;
};
template <RowCode kCode>
constexpr LaneKernel LaneKernelOf() {
  return {&LaneScoresOfSets<kCode>, KeySteps<kCode>::kStepOperands};
}

// The kernel that reads rows of this code in place; none if the code, or the head_dim, means that
// rows are decoded into memory first.
inline LaneKernel FindLaneKernel(RowCode code, int dim) {
  if (code == RowCode::kBF16) {
    return dim % 16 == 0 ? LaneKernelOf<RowCode::kBF16>() : LaneKernel{};
  }
  if (dim % 32 != 0) {
    return {};
  }
  switch (code) {
    case RowCode::kE4M3:
      return LaneKernelOf<RowCode::kE4M3>();
    case RowCode::kE5M2:
      return LaneKernelOf<RowCode::kE5M2>();
    case RowCode::kI8:
      return LaneKernelOf<RowCode::kI8>();
    case RowCode::kQ8_0:
      return LaneKernelOf<RowCode::kQ8_0>();
    case RowCode::kQ4_0:
      return LaneKernelOf<RowCode::kQ4_0>();
    case RowCode::kIQ4NL:
      return LaneKernelOf<RowCode::kIQ4NL>();
    default:
      return {};
  }
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // native bf16 dot products, vectors of 512 bits

#endif  // per-target include guard

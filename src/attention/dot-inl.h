// The two products of attention as register-blocked outer products: every result is one chain of
// fused multiply-adds in the order of its inner index, in a lane of its own, whatever the blocking
// and the vector length. That is what makes decode and prefill agree to the last bit.
// Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_DOT_INL_H_
#undef RIFFLE_ATTENTION_DOT_INL_H_
#else
#define RIFFLE_ATTENTION_DOT_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <type_traits>

#include "attention/attention_plan.h"
#include "core/bf16_dot.h"
#include "core/dot_operands-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::F32Fma;
using core::HWY_NAMESPACE::kHas32Vectors;
using core::HWY_NAMESPACE::PrefetchAt;
#if RIFFLE_BF16_DOT
using core::HWY_NAMESPACE::BF16PairDot;
#endif

template <int kLanes>
using FloatTag = hn::CappedTag<float, kLanes>;

// kHasInPlaceKernels: whether kernels of small_m-inl.h serve this arithmetic.
struct F32Math : F32Fma {
  static constexpr bool kHasInPlaceKernels = HWY_CAP_GE512;
};

#if RIFFLE_BF16_DOT
struct BF16Math : BF16PairDot {
  static constexpr bool kHasInPlaceKernels = HWY_CAP_GE512;
};
#endif

// Operands from a packed key to the next: not a multiple of 4 KiB, or keys would share few L1 sets.
template <class Math>
constexpr int KeyStride(int dim) {
  return PaddedDim(dim) / Math::kPerOperand + 16;
}

// Rows that will be needed next, prefetched into L2 while a kernel runs: one prefetch every few
// products keeps memory busy all the time, whereas bursts between kernels leave it idle while these
// run (decode at four rows then reached 0.6 of the read bandwidth).
struct RowsToPrefetch {
  const uint8_t* const* rows = nullptr;  // as many as the kernel has rows of keys or values
  int step = 0;                          // bytes of 16 operands in memory
  int offset = 0;                        // bytes from a row's start to the columns in hand
};

// Keys as operands, and which of a row's are multiplied: [begin, end), multiples of 4.
template <class Math>
struct PackedKeys {
  const typename Math::Operand* keys;  // [keys][stride], aligned
  int stride;
  int begin;
  int end;
};

// scores[key][lane] = sum over w in [k.begin, k.end) of keys[key][w] * q[w][lane], kKeys keys from
// `key0` on, kVecs vectors of lanes.
//   q       [operands][lanes], aligned
//   scores  [kKeys][lanes], aligned
//   kAhead  prefetch ahead.rows[0, 16)
template <class Math, int kKeys, int kVecs, bool kAhead, class DF,
          typename Operand = typename Math::Operand>
HWY_INLINE void ScoreKernel(DF df, const Operand* HWY_RESTRICT q, int lanes,
                            const PackedKeys<Math>& k, int key0, float* HWY_RESTRICT scores,
                            const RowsToPrefetch& ahead) {
  const hn::Rebind<Operand, DF> dw;
  constexpr size_t kN = hn::MaxLanes(DF());
  const int stride = k.stride;
  const Operand* HWY_RESTRICT keys = k.keys + key0 * stride;
  hn::Vec<DF> sum[kKeys][kVecs];
  for (auto& key : sum) {
    for (auto& s : key) {
      s = hn::Zero(df);
    }
  }
  q += k.begin * lanes;
  for (int w = k.begin; w < k.end; ++w, q += lanes) {
    hn::Vec<decltype(dw)> x[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      x[v] = hn::Load(dw, q + v * kN);
    }
    if constexpr (kAhead) {
      PrefetchAt(ahead.rows[w & 15], (w >> 4) * ahead.step);
    }
    for (int key = 0; key < kKeys; ++key) {
      const Operand a = keys[key * stride + w];
      for (int v = 0; v < kVecs; ++v) {
        sum[key][v] = Math::Step(df, a, x[v], sum[key][v]);
      }
    }
  }
  for (int key = 0; key < kKeys; ++key) {
    for (int v = 0; v < kVecs; ++v) {
      hn::Store(sum[key][v], df, scores + key * lanes + v * kN);
    }
  }
}

// Scores of 16 keys against a tile of `lanes` rows; those outside `seen` may be left out.
// Tiles of up to 16 lanes prefetch.
template <class Math, typename Operand = typename Math::Operand>
HWY_INLINE void Scores16(const Operand* q, int lanes, const PackedKeys<Math>& keys, KeyRange seen,
                         float* scores, const RowsToPrefetch& ahead) {
  // Sums in registers: 16 of 32, or 8 of 16.
  constexpr int kSums = kHas32Vectors ? 16 : 8;
  const auto all = [&](auto df, auto vecs, auto prefetch) HWY_ATTR {
    constexpr int kVecs = decltype(vecs)::value;
    constexpr int kKeys = kSums / kVecs;
    constexpr int kStep = kVecs * static_cast<int>(hn::MaxLanes(df));
    for (int lane = 0; lane < lanes; lane += kStep) {
      for (int key = seen.begin / kKeys * kKeys; key < seen.end; key += kKeys) {
        ScoreKernel<Math, kKeys, kVecs, decltype(prefetch)::value>(
            df, q + lane, lanes, keys, key, scores + key * lanes + lane, ahead);
      }
    }
  };
  // Arm's vectors are short: up to four of them share the load of a key's operand.
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, 2>;
  using Four = std::integral_constant<int, 4>;
  if (lanes == 4) {
    all(FloatTag<4>(), One(), std::true_type());
  } else if (lanes == 8) {
    all(FloatTag<8>(), std::conditional_t<HWY_ARCH_ARM_A64, Two, One>(), std::true_type());
  } else if (lanes == 16) {
    all(FloatTag<16>(), std::conditional_t<HWY_ARCH_ARM_A64, Four, One>(), std::true_type());
  } else {
    all(FloatTag<16>(), std::conditional_t<HWY_ARCH_ARM_A64, Four, Two>(), std::false_type());
  }
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard

// What masks and slopes add to the logits of a tile. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_BIAS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_BIAS_INL_H_
#undef RIFFLE_ATTENTION_BIAS_INL_H_
#else
#define RIFFLE_ATTENTION_BIAS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "attention/attention_plan.h"
#include "attention/decode_f32-inl.h"
#include "attention/dot-inl.h"
#include "attention/mask_args.h"
#include "attention/query_block-inl.h"
#include "attention/softmax-inl.h"
#include "core/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Copies a mask row's elements for keys [0, n), n <= kBlock, without conversion.
inline void CopyMaskRow(const MaskArgs& mask, const uint8_t* row, int n, uint8_t* to) {
  const size_t element = SizeOf(mask.dtype);
  if (mask.key_stride == static_cast<int64_t>(element)) {
    std::memcpy(to, row, static_cast<size_t>(n) * element);
    return;
  }
  for (int i = 0; i < n; ++i) {
    std::memcpy(to + static_cast<size_t>(i) * element, row + i * mask.key_stride, element);
  }
}

// What is added to a logit, in units of log2. A finite element stays finite, so that it does not
// hide its key.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V MaskBias(DF df, V element) {
  const V lowest = hn::Set(df, std::numeric_limits<float>::lowest());
  const V minus_inf = hn::Set(df, kMinusInf);
  const V scaled = hn::Mul(element, hn::Set(df, kLog2E));
  const V finite = hn::IfThenElse(hn::Lt(scaled, lowest), lowest, scaled);  // a NaN stays one
  return hn::IfThenElse(hn::Eq(element, minus_inf), minus_inf, finite);
}

// MaskBias of a single f32.
inline float MaskBiasScalar(float element) {
  const float scaled = element * kLog2E;
  const float lowest = std::numeric_limits<float>::lowest();
  return element == kMinusInf ? kMinusInf : scaled < lowest ? lowest : scaled;
}

// bias[0, n) = the bias of n neighbouring elements; n is a multiple of 16.
HWY_INLINE void MaskElementsToBias(DType dtype, const uint8_t* elements, int n, float* bias) {
  const FloatTag<16> df;
  const auto make = [&](const auto& load) HWY_ATTR {
    for (int i = 0; i < n; i += static_cast<int>(hn::MaxLanes(df))) {
      hn::StoreU(MaskBias(df, load(i)), df, bias + i);
    }
  };
  if (dtype == DType::kF32) {
    make([&](int i) HWY_ATTR { return LoadElements<RowCode::kF32>(df, elements + 4 * i); });
  } else if (dtype == DType::kBF16) {
    make([&](int i) HWY_ATTR { return LoadElements<RowCode::kBF16>(df, elements + 2 * i); });
  } else if (dtype == DType::kF16) {
    make([&](int i) HWY_ATTR { return LoadElements<RowCode::kF16>(df, elements + 2 * i); });
  } else {
    const hn::Rebind<uint8_t, decltype(df)> d8;
    const hn::RebindToUnsigned<decltype(df)> du;
    const auto minus_inf = hn::Set(df, kMinusInf);
    for (int i = 0; i < n; i += static_cast<int>(hn::MaxLanes(df))) {
      const auto seen = hn::PromoteTo(du, LoadAny(d8, elements + i));
      const auto hidden = hn::RebindMask(df, hn::Eq(seen, hn::Zero(du)));
      hn::StoreU(hn::IfThenElseZero(hidden, minus_inf), df, bias + i);
    }
  }
}

// bias[0, n) = the bias of n keys from `row` on; has room for n rounded up to a multiple of 16.
HWY_INLINE void MaskRowToBias(const MaskArgs& mask, const uint8_t* row, int n, float* bias) {
  const auto element = static_cast<int>(SizeOf(mask.dtype));
  if (mask.key_stride != element) {
    alignas(64) uint8_t elements[kBlock * 4] = {};
    CopyMaskRow(mask, row, n, elements);
    MaskElementsToBias(mask.dtype, elements, (n + 15) / 16 * 16, bias);
    return;
  }
  const int whole = n / 16 * 16;
  MaskElementsToBias(mask.dtype, row, whole, bias);
  // For a few elements, scalar code is faster than a padded vector of 16.
  if (n <= 4 && mask.dtype == DType::kF32) {
    for (int i = 0; i < n; ++i) {
      float x;
      std::memcpy(&x, row + 4 * i, sizeof(x));
      bias[i] = MaskBiasScalar(x);
    }
  } else if (n <= 4 && mask.dtype == DType::kU8) {
    for (int i = 0; i < n; ++i) {
      bias[i] = row[i] != 0 ? 0.0f : kMinusInf;
    }
  } else if (whole < n) {
    alignas(64) uint8_t elements[16 * 4] = {};
    CopyMaskRow(mask, row + whole * element, n - whole, elements);
    MaskElementsToBias(mask.dtype, elements, 16, bias + whole);
  }
}

// to[i] = base[i] + slope * (distance + i) for i in [0, n), n a multiple of 16.
HWY_INLINE void AddSlope(const float* base, float slope, int distance, int n, float* to) {
  const FloatTag<16> df;
  const hn::RebindToSigned<decltype(df)> di;
  const auto s = hn::Set(df, slope);
  for (int i = 0; i < n; i += static_cast<int>(hn::MaxLanes(df))) {
    const auto distances = hn::ConvertTo(df, hn::Iota(di, distance + i));
    hn::Store(hn::Add(hn::Load(df, base + i), hn::Mul(s, distances)), df, to + i);
  }
}

// Loads rows of floats for TransposeTile, in place of a query.
struct BiasLoader {
  HWY_INLINE hn::Vec<FloatTag<4>> Load(const uint8_t* row, int w) const {
    return LoadAny(FloatTag<4>(), row + 4 * w);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> Signed(D, hn::Vec<D> x) const {
    return x;
  }
};

// A row of a tile: where its bias comes from.
struct BiasRow {
  int64_t token;  // of q
  int64_t head;   // of q
  int position;   // of the query, in its sequence
};

// bias[key][lane], for keys [begin, end) of the block at `key0`. Keys from `known` on are past the
// sequence's end, where a mask need not have elements; these keys and lanes without a row get 0.
//   masked  whether the mask is to be read; else it adds nothing here
template <class F>
HWY_INLINE void FillBias(const MaskArgs& mask, bool masked, const float* slopes, int key0,
                         int begin, int end, int known, int rows, int lanes, const F& row_at,
                         float* bias) {
  // The biases of each row side by side, transposed at the end: stores of single floats, each to
  // another cache line, took 3 % of a prefill over a block-diagonal mask.
  alignas(64) float biases[kTileRows][kBlock];
  alignas(64) float mask_biases[kBlock];
  alignas(64) static constexpr float kNothing[kBlock] = {};
  const uint8_t* row_of_lane[kTileRows];
  const uint8_t* last = nullptr;
  const float* mask_bias = kNothing;
  for (int lane = 0; lane < lanes; ++lane) {
    if (lane >= rows) {
      row_of_lane[lane] = reinterpret_cast<const uint8_t*>(kNothing);
      continue;
    }
    const BiasRow row = row_at(lane);
    if (masked) {
      const uint8_t* from = mask.Row(row.token, row.head) + (key0 + begin) * mask.key_stride;
      if (lane == 0 || from != last) {  // rows of a group mostly share a mask row
        float* to = slopes != nullptr ? mask_biases : biases[lane];
        const int n = std::min(end, known) - begin;
        MaskRowToBias(mask, from, n, to);
        std::fill(to + n, to + end - begin, 0.0f);
        last = from;
        mask_bias = to;
      }
    }
    if (slopes != nullptr) {
      AddSlope(mask_bias, slopes[row.head] * kLog2E, key0 + begin - row.position, end - begin,
               biases[lane]);
    }
    row_of_lane[lane] =
        reinterpret_cast<const uint8_t*>(slopes != nullptr ? biases[lane] : mask_bias);
  }
  TransposeTile(BiasLoader(), row_of_lane, end - begin, lanes, bias + begin * lanes);
}

// scores[key][lane] = scores[key][lane] * factor + bias[key][lane] for keys [begin, end) of the
// block; -inf where the bias is -inf, whatever the score.
template <class DF>
HWY_INLINE void AddBias(DF df, int lanes, int begin, int end, float factor, const float* bias,
                        float* scores) {
  const auto f = hn::Set(df, factor);
  const auto minus_inf = hn::Set(df, kMinusInf);
  for (int i = begin * lanes; i < end * lanes; i += static_cast<int>(hn::MaxLanes(df))) {
    const auto b = hn::Load(df, bias + i);
    const auto logit = hn::Add(hn::Mul(hn::Load(df, scores + i), f), b);
    hn::Store(hn::IfThenElse(hn::Eq(b, minus_inf), minus_inf, logit), df, scores + i);
  }
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kv_cache/round_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include <cstring>

#include "core/dispatch.h"
#include "core/round-inl.h"
#include "kv_cache/round_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::kv_cache::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::RoundToBF16;
using core::HWY_NAMESPACE::RoundToF16;

template <bool kF16, class DF>
HWY_INLINE void RoundVector(DF df, const float* in, uint16_t* out) {
  const hn::Rebind<uint16_t, DF> d16;
  const auto value = hn::LoadU(df, in);
  if constexpr (kF16) {
    hn::StoreU(RoundToF16(df, value), d16, out);
  } else {
    hn::StoreU(RoundToBF16(df, value), d16, out);
  }
}

template <bool kF16>
void RoundRow(const uint8_t* in, uint8_t* out, size_t n) {
  const hn::CappedTag<float, 16> df;
  const size_t lanes = hn::Lanes(df);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    RoundVector<kF16>(df, reinterpret_cast<const float*>(in) + i,
                      reinterpret_cast<uint16_t*>(out) + i);
  }
  if (i < n) {
    HWY_ALIGN float wide[16] = {};
    HWY_ALIGN uint16_t narrow[16];
    std::memcpy(wide, in + i * sizeof(float), (n - i) * sizeof(float));
    RoundVector<kF16>(df, wide, narrow);
    std::memcpy(out + i * sizeof(uint16_t), narrow, (n - i) * sizeof(uint16_t));
  }
}

template <bool kF16>
void RoundAll(const RoundTask& task) {
  for (int64_t token = 0; token < task.tokens; ++token) {
    for (int64_t head = 0; head < task.heads; ++head) {
      RoundRow<kF16>(task.in + token * task.in_token + head * task.in_head,
                     task.out + token * task.out_token + head * task.out_head,
                     static_cast<size_t>(task.head_dim));
    }
  }
}

void RoundToBF16Tokens(const RoundTask& task) { RoundAll<false>(task); }
void RoundToF16Tokens(const RoundTask& task) { RoundAll<true>(task); }

}  // namespace riffle::kv_cache::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::kv_cache {

HWY_EXPORT(RoundToBF16Tokens);
HWY_EXPORT(RoundToF16Tokens);

void RoundTokens(const RoundTask& task, DType dtype) {
  HWY_DASSERT(dtype == DType::kF16 || dtype == DType::kBF16);
  if (dtype == DType::kF16) {
    core::ForTarget(HWY_DISPATCH_TABLE(RoundToF16Tokens))(task);
  } else {
    core::ForTarget(HWY_DISPATCH_TABLE(RoundToBF16Tokens))(task);
  }
}

}  // namespace riffle::kv_cache
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/read_max.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include <algorithm>
#include <atomic>

#include "core/atomic_max.h"
#include "core/dispatch.h"
#include "core/entry_point.h"
#include "core/lease.h"
#include "core/targets.h"
#include "riffle/roofline.h"
#include "riffle/runtime.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::core::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

uint8_t ReadMaxPart(const uint8_t* data, size_t bytes) {
  const hn::ScalableTag<uint8_t> d;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);
  V max0 = hn::Zero(d);
  V max1 = max0;
  V max2 = max0;
  V max3 = max0;
  size_t i = 0;
  for (; i + 4 * lanes <= bytes; i += 4 * lanes) {
    max0 = hn::Max(max0, hn::LoadU(d, data + i));
    max1 = hn::Max(max1, hn::LoadU(d, data + i + lanes));
    max2 = hn::Max(max2, hn::LoadU(d, data + i + 2 * lanes));
    max3 = hn::Max(max3, hn::LoadU(d, data + i + 3 * lanes));
  }
  uint8_t result = hn::ReduceMax(d, hn::Max(hn::Max(max0, max1), hn::Max(max2, max3)));
  for (; i < bytes; ++i) {
    result = std::max(result, data[i]);
  }
  return result;
}

}  // namespace riffle::core::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::core {
namespace {

HWY_EXPORT(ReadMaxPart);

uint8_t ReadMaxOf(const uint8_t* from, size_t bytes) {
  return ForTarget(HWY_DISPATCH_TABLE(ReadMaxPart))(from, bytes);
}

}  // namespace
}  // namespace riffle::core

namespace riffle {

uint8_t ReadMax(const void* data, size_t bytes, const CallOptions& options) try {
  const core::EntryPoint entry;
  core::EnsureTarget();
  const auto* begin = static_cast<const uint8_t*>(data);
  core::Lease lease(options.pool);
  const size_t parts = static_cast<size_t>(lease.threads());
  std::atomic<uint8_t> max{0};
  lease.Run(static_cast<int64_t>(parts), [&](int64_t part, uint8_t*) {
    const size_t from = bytes / parts * static_cast<size_t>(part);
    const size_t to = static_cast<size_t>(part) + 1 == parts ? bytes : from + bytes / parts;
    core::AtomicMax(max, core::ReadMaxOf(begin + from, to - from));
  });
  return max.load(std::memory_order_relaxed);
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
#endif  // HWY_ONCE

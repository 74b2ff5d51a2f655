#include "topk/bucket_maxima/bucket_plan.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/order.h"
#include "select/limits.h"
#include "topk/topk_kernels.h"

namespace riffle::topk {

BucketPlan PlanBuckets(int64_t n, int64_t k, DType dtype) {
  if (n < 2048) {
    return {};
  }
  // To find the bound, every maximum is counted some ten times; then the elements of about k
  // buckets are read again. The sum of both costs is smallest near sqrt(n / k) (bench/topk;
  // docs/lab/top-k.md).
  const double balance = std::sqrt(static_cast<double>(n) / static_cast<double>(k));
  const int64_t min_size = std::max(kMinBucket, 64 / static_cast<int64_t>(SizeOf(dtype)));
  const int64_t size = std::clamp(
      static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(balance))), min_size, kMaxBucket);
  const int64_t buckets = (n + size - 1) / size;
  if (BucketLimit(static_cast<size_t>(k)) * 4 > static_cast<size_t>(buckets) * 3) {
    return {};
  }
  return {size, buckets};
}

SamplePlan PlanSample(size_t n, size_t k) {
  constexpr size_t kSample = 4096;
  if (n < 4 * kSample || k > n / 2) {
    return {};
  }
  const size_t stride = n / (kSample / kMinBucket);
  const double expected = static_cast<double>(k) * kSample / static_cast<double>(n);
  const auto enough = static_cast<size_t>(expected + 4 * std::sqrt(expected) + 4);
  return {kSample, stride, std::min(enough, kSample)};
}

BucketScratch PlanBucketScratch(const RowTask& task) {
  HWY_DASSERT(0 < task.k && task.k <= task.n);
  constexpr auto kSlack = static_cast<int64_t>(select::kSlack);
  const auto k = static_cast<size_t>(task.k);
  const auto limit = static_cast<int64_t>(BucketLimit(k));
  const int64_t buckets = task.plan.buckets;
  const int64_t candidates =
      buckets == 0
          ? task.n
          : std::max(buckets,
                     std::min(task.n, limit * task.plan.size + int64_t{BucketBounds::kMaxLead}));
  const auto sorted = static_cast<int64_t>(
      std::max(select::SortLimit(k, /*sorted=*/true), select::SortLimit(k, /*sorted=*/false)));
  const auto key = static_cast<int64_t>(core::KeyBytes(task.dtype));
  const auto pair = static_cast<int64_t>(select::PairBytes(task.dtype) / sizeof(uint64_t));
  core::ScratchLayout layout;
  BucketScratch scratch;
  scratch.row.keys = layout.Place<uint8_t>((candidates + kSlack) * key);
  scratch.row.indices = layout.Place<int32_t>(candidates + kSlack);
  scratch.row.buckets = layout.Place<int32_t>(std::min(buckets, limit) + kSlack);
  scratch.row.ties = layout.Place<int32_t>(task.k + kSlack);
  scratch.row.pairs = layout.Place<uint64_t>(2 * std::min(candidates, sorted) * pair);
  scratch.maxima = layout.Place<uint8_t>(static_cast<int64_t>(MaximaBytes(task)));
  scratch.bytes = layout.bytes();
  return scratch;
}

size_t BucketMaximaScratch(const RowTask& task) { return PlanBucketScratch(task).bytes; }

size_t MaximaBytes(const RowTask& task) {
  core::ScratchLayout layout;
  layout.Place<uint8_t>((task.plan.buckets + static_cast<int64_t>(select::kSlack)) *
                        static_cast<int64_t>(core::KeyBytes(task.dtype)));
  return layout.bytes();
}

}  // namespace riffle::topk

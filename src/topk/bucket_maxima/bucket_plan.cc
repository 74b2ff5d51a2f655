#include <algorithm>
#include <bit>
#include <cmath>

#include "core/order.h"
#include "topk/finish.h"

namespace riffle::topk {
namespace {

size_t Aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

BucketPlan PlanBuckets(int64_t n, int64_t k, DType dtype) {
  if (n < 2048) {
    return {};
  }
  // Every maximum is counted some ten times to find the bound, and the elements of some k buckets
  // are looked at again: their sum is least near sqrt(n / k) (bench/topk; docs/performance.md).
  const double balance = std::sqrt(static_cast<double>(n) / static_cast<double>(k));
  const int64_t least = std::max(kMinBucket, 64 / static_cast<int64_t>(SizeOf(dtype)));
  const int64_t size = std::clamp(
      static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(balance))), least, kMaxBucket);
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

FinishLayout PlanFinish(const RowTask& task) {
  const auto n = static_cast<size_t>(task.n);
  const auto k = static_cast<size_t>(task.k);
  const auto size = static_cast<size_t>(task.plan.size);
  const auto buckets = static_cast<size_t>(task.plan.buckets);
  const size_t candidates =
      buckets == 0 ? n : std::max(buckets, std::min(n, BucketLimit(k) * size));
  const size_t to_sort = std::min(candidates, std::max(SortLimit(k, true), SortLimit(k, false)));
  FinishLayout layout;
  size_t end = 0;
  const auto place = [&end](size_t count, size_t width) {
    const size_t begin = end;
    end += Aligned(count * width);
    return begin;
  };
  layout.keys = place(candidates + kSlack, core::KeyBytes(task.dtype));
  layout.indices = place(candidates + kSlack, sizeof(int32_t));
  layout.ids = place(std::min(buckets, BucketLimit(k)) + kSlack, sizeof(int32_t));
  layout.ties = place(k + kSlack, sizeof(int32_t));
  layout.pairs = place(2 * to_sort, PairBytes(task.dtype));
  layout.maxima = place(buckets + kSlack, core::KeyBytes(task.dtype));
  layout.bytes = end;
  return layout;
}

size_t BucketMaximaScratch(const RowTask& task) { return PlanFinish(task).bytes; }

size_t MaximaBytes(const RowTask& task) {
  return Aligned((static_cast<size_t>(task.plan.buckets) + kSlack) * core::KeyBytes(task.dtype));
}

}  // namespace riffle::topk

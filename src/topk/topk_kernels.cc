#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "topk/topk_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include "topk/finish-inl.h"
#include "topk/narrow-inl.h"
#include "topk/topk_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::HWY_NAMESPACE {

template <typename TI>
bool First(const RowTask& task, int64_t begin, int64_t end, bool keyed, Format<TI> format,
           uint8_t* maxima) {
  const auto run = task.largest
                       ? (keyed ? BucketMaxima<TI, true, false> : BucketMaxima<TI, false, false>)
                       : (keyed ? BucketMaxima<TI, true, true> : BucketMaxima<TI, false, true>);
  return run(static_cast<const TI*>(task.x), static_cast<size_t>(task.n),
             static_cast<size_t>(task.plan.size), static_cast<size_t>(begin),
             static_cast<size_t>(end), format, reinterpret_cast<TI*>(maxima));
}

template <typename TI>
int64_t Positive(int64_t buckets, uint8_t* maxima) {
  TI* keys = reinterpret_cast<TI*>(maxima);
  Pad(Tag<TI>(), keys, static_cast<size_t>(buckets));
  return static_cast<int64_t>(CountGe(keys, static_cast<size_t>(buckets), TI{1}));
}

template <typename TI>
void Finish(const RowTask& task, bool keyed, Format<TI> format, uint8_t* maxima, uint8_t* scratch) {
  format.smallest = !task.largest;
  Row<TI> row(task, format, PlanFinish(task), scratch);
  if (task.plan.buckets == 0) {
    SelectFromAll(row);
  } else {
    SelectFromBuckets(row, keyed, reinterpret_cast<TI*>(maxima));
  }
  FillStats(row);
  WidenIndices(task);
}

int64_t PositiveAny(const RowTask& task, int64_t buckets, uint8_t* maxima) {
  return task.dtype == DType::kF32 ? Positive<int32_t>(buckets, maxima)
                                   : Positive<int16_t>(buckets, maxima);
}

bool FirstAny(const RowTask& task, int64_t begin, int64_t end, bool keyed, uint8_t* maxima) {
  switch (task.dtype) {
    case DType::kF32:
      return First<int32_t>(task, begin, end, keyed, kF32Format, maxima);
    case DType::kF16:
      return First<int16_t>(task, begin, end, keyed, kF16Format, maxima);
    case DType::kBF16:
      break;
  }
  return First<int16_t>(task, begin, end, keyed, kBF16Format, maxima);
}

void FinishAny(const RowTask& task, bool keyed, uint8_t* maxima, uint8_t* scratch) {
  switch (task.dtype) {
    case DType::kF32:
      return Finish<int32_t>(task, keyed, kF32Format, maxima, scratch);
    case DType::kF16:
      return Finish<int16_t>(task, keyed, kF16Format, maxima, scratch);
    case DType::kBF16:
      return Finish<int16_t>(task, keyed, kBF16Format, maxima, scratch);
  }
}

// The first pass of a whole row; returns whether it had to be made with keys. A sixteenth of the
// row, and where that is low, as in a sorted row, others from its middle and end, tell whether the
// bound will come out positive, so that a row of log-probabilities, which are all negative, is not
// read twice.
bool FirstPass(const RowTask& task, uint8_t* maxima) {
  const int64_t buckets = task.plan.buckets;
  const int64_t part = std::max(buckets / 16 / kMinBucket, int64_t{1}) * kMinBucket;
  const int64_t middle = buckets / 2 / kMinBucket * kMinBucket;
  const int64_t last = std::max<int64_t>(0, buckets - part) / kMinBucket * kMinBucket;
  const size_t element = SizeOf(task.dtype);
  int64_t seen = 0;
  int64_t positive = 0;
  bool in_order = true;
  for (const int64_t begin : {int64_t{0}, middle, last}) {
    const int64_t end = std::min(begin + part, buckets);
    in_order &= FirstAny(task, begin, end, false, maxima);
    positive += PositiveAny(task, end - begin, maxima + static_cast<size_t>(begin) * element);
    seen += end - begin;
    if (positive * buckets >= task.k * seen) {
      break;
    }
  }
  if (positive * buckets >= task.k * seen && in_order &&
      FirstAny(task, part, buckets, false, maxima) &&
      PositiveAny(task, buckets, maxima) >= task.k) {
    return false;
  }
  FirstAny(task, 0, buckets, true, maxima);
  return true;
}

void WholeRow(const RowTask& task, uint8_t* scratch) {
  if (task.plan.buckets == 0) {
    FinishAny(task, false, nullptr, scratch);
    return;
  }
  uint8_t* maxima = scratch + PlanFinish(task).maxima;
  FinishAny(task, FirstPass(task, maxima), maxima, scratch);
}

void NarrowAny(const NarrowRows& rows, size_t begin, size_t end, uint8_t* scratch) {
  switch (rows.dtype) {
    case DType::kF32:
      return SelectNarrow<int32_t>(rows, begin, end, kF32Format, scratch);
    case DType::kF16:
      return SelectNarrow<int16_t>(rows, begin, end, kF16Format, scratch);
    case DType::kBF16:
      return SelectNarrow<int16_t>(rows, begin, end, kBF16Format, scratch);
  }
}

int64_t NarrowLanes(DType dtype) {
  return static_cast<int64_t>(dtype == DType::kF32 ? hn::Lanes(Tag<Packed<int32_t>>())
                                                   : hn::Lanes(Tag<Packed<int16_t>>()));
}

const TopKKernels* GetKernels() {
  static constexpr TopKKernels kKernels{WholeRow, NarrowAny,   NarrowLanes,
                                        FirstAny, PositiveAny, FinishAny};
  return &kKernels;
}

}  // namespace riffle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle {
HWY_EXPORT(GetKernels);

const TopKKernels& Kernels() { return *HWY_DYNAMIC_DISPATCH(GetKernels)(); }

}  // namespace riffle
#endif  // HWY_ONCE

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "topk/topk_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include "core/dispatch.h"
#include "topk/finish-inl.h"
#include "topk/narrow-inl.h"
#include "topk/topk_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::topk::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Tag;

template <typename TI, FirstPass kPass>
bool FirstOf(const RowTask& task, int64_t begin, int64_t end, core::Format<TI> format,
             uint8_t* maxima) {
  const auto run = task.largest ? BucketMaxima<TI, kPass, false> : BucketMaxima<TI, kPass, true>;
  return run(static_cast<const TI*>(task.x), static_cast<size_t>(task.n),
             static_cast<size_t>(task.plan.size), static_cast<size_t>(begin),
             static_cast<size_t>(end), format, reinterpret_cast<TI*>(maxima));
}

template <typename TI>
bool First(const RowTask& task, int64_t begin, int64_t end, FirstPass pass, core::Format<TI> format,
           uint8_t* maxima) {
  format.smallest = !task.largest;
  switch (pass) {
    case FirstPass::kPositive:
      return FirstOf<TI, FirstPass::kPositive>(task, begin, end, format, maxima);
    case FirstPass::kNegative:
      return FirstOf<TI, FirstPass::kNegative>(task, begin, end, format, maxima);
    case FirstPass::kKeyed:
      break;
  }
  return FirstOf<TI, FirstPass::kKeyed>(task, begin, end, format, maxima);
}

// How many of the maxima are >= bound.
template <typename TI>
int64_t Reaching(int64_t buckets, TI bound, uint8_t* maxima) {
  TI* keys = reinterpret_cast<TI*>(maxima);
  Pad(Tag<TI>(), keys, static_cast<size_t>(buckets));
  return static_cast<int64_t>(CountGe(keys, static_cast<size_t>(buckets), bound));
}

template <typename TI>
void Finish(const RowTask& task, FirstPass pass, core::Format<TI> format, uint8_t* maxima,
            uint8_t* scratch) {
  format.smallest = !task.largest;
  Row<TI> row(task, format, PlanFinish(task), scratch);
  if (task.plan.buckets == 0) {
    SelectFromAll(row);
  } else {
    SelectFromBuckets(row, pass, reinterpret_cast<TI*>(maxima));
  }
  FillStats(row);
  WidenIndices(task);
}

int64_t ReachingAny(const RowTask& task, int64_t buckets, int bound, uint8_t* maxima) {
  return task.dtype == DType::kF32
             ? Reaching<int32_t>(buckets, bound, maxima)
             : Reaching<int16_t>(buckets, static_cast<int16_t>(bound), maxima);
}

bool FirstAny(const RowTask& task, int64_t begin, int64_t end, FirstPass pass, uint8_t* maxima) {
  switch (task.dtype) {
    case DType::kF32:
      return First<int32_t>(task, begin, end, pass, core::kF32Format, maxima);
    case DType::kF16:
      return First<int16_t>(task, begin, end, pass, core::kF16Format, maxima);
    case DType::kBF16:
      break;
  }
  return First<int16_t>(task, begin, end, pass, core::kBF16Format, maxima);
}

void FinishAny(const RowTask& task, FirstPass pass, uint8_t* maxima, uint8_t* scratch) {
  switch (task.dtype) {
    case DType::kF32:
      return Finish<int32_t>(task, pass, core::kF32Format, maxima, scratch);
    case DType::kF16:
      return Finish<int16_t>(task, pass, core::kF16Format, maxima, scratch);
    case DType::kBF16:
      return Finish<int16_t>(task, pass, core::kBF16Format, maxima, scratch);
  }
}

FirstPass Suited(const RowTask& task, uint8_t* maxima) {
  const int64_t buckets = task.plan.buckets;
  return ReachingAny(task, buckets, 1, maxima) >= task.k  ? FirstPass::kPositive
         : ReachingAny(task, buckets, 0, maxima) < task.k ? FirstPass::kNegative
                                                          : FirstPass::kKeyed;
}

// The first sixteenth of a row, by its bits, and where few of it are positive, as in a sorted row,
// a little of its middle and end tell what its bound will be, so that a row of log-probabilities,
// which are all negative, is not read twice. Where the first part was enough it counts.
struct Guess {
  FirstPass pass;
  int64_t done;  // buckets that the first pass has done already
};

Guess GuessPass(const RowTask& task, uint8_t* maxima) {
  const int64_t buckets = task.plan.buckets;
  const auto whole = [](int64_t count) { return count / kMinBucket * kMinBucket; };
  const int64_t part = std::max(whole(buckets / 16), kMinBucket);
  const int64_t less = std::max(whole(buckets / 64), kMinBucket);
  int64_t seen = 0;
  int64_t positive = 0;
  int64_t not_negative = 0;
  const auto many = [&](int64_t count) { return count * buckets >= task.k * seen; };
  for (const int64_t begin :
       {int64_t{0}, whole(buckets / 2), whole(std::max<int64_t>(0, buckets - less))}) {
    const int64_t end = std::min(begin + (begin == 0 ? part : less), buckets);
    uint8_t* here = maxima + static_cast<size_t>(begin) * SizeOf(task.dtype);
    if (!FirstAny(task, begin, end, FirstPass::kPositive, maxima)) {
      return {FirstPass::kKeyed, 0};
    }
    seen += end - begin;
    positive += ReachingAny(task, end - begin, 1, here);
    not_negative += ReachingAny(task, end - begin, 0, here);
    if (many(positive)) {
      return {FirstPass::kPositive, std::min(part, buckets)};
    }
  }
  return {many(not_negative) ? FirstPass::kKeyed : FirstPass::kNegative, 0};
}

// The first pass of a whole row; returns how it was made.
FirstPass RunFirstPass(const RowTask& task, uint8_t* maxima) {
  const int64_t buckets = task.plan.buckets;
  Guess guess = GuessPass(task, maxima);
  if (guess.pass == FirstPass::kPositive) {
    const bool in_order = FirstAny(task, guess.done, buckets, FirstPass::kPositive, maxima);
    guess.pass = in_order ? Suited(task, maxima) : FirstPass::kKeyed;
    if (guess.pass == FirstPass::kPositive) {
      return guess.pass;
    }
  }
  if (guess.pass == FirstPass::kNegative &&
      FirstAny(task, 0, buckets, FirstPass::kNegative, maxima) &&
      ReachingAny(task, buckets, 1, maxima) < task.k) {
    return guess.pass;
  }
  FirstAny(task, 0, buckets, FirstPass::kKeyed, maxima);
  return FirstPass::kKeyed;
}

void WholeRow(const RowTask& task, uint8_t* scratch) {
  if (task.plan.buckets == 0) {
    FinishAny(task, FirstPass::kKeyed, nullptr, scratch);
    return;
  }
  uint8_t* maxima = scratch + PlanFinish(task).maxima;
  FinishAny(task, RunFirstPass(task, maxima), maxima, scratch);
}

void NarrowAny(const NarrowRows& rows, size_t begin, size_t end, uint8_t* scratch) {
  switch (rows.dtype) {
    case DType::kF32:
      return SelectNarrow<int32_t>(rows, begin, end, core::kF32Format, scratch);
    case DType::kF16:
      return SelectNarrow<int16_t>(rows, begin, end, core::kF16Format, scratch);
    case DType::kBF16:
      return SelectNarrow<int16_t>(rows, begin, end, core::kBF16Format, scratch);
  }
}

int64_t NarrowLanes(DType dtype) {
  return static_cast<int64_t>(dtype == DType::kF32 ? hn::Lanes(Tag<Packed<int32_t>>())
                                                   : hn::Lanes(Tag<Packed<int16_t>>()));
}

const TopKKernels* GetKernels() {
  static constexpr TopKKernels kKernels{WholeRow, NarrowAny, NarrowLanes,
                                        FirstAny, Suited,    FinishAny};
  return &kKernels;
}

}  // namespace riffle::topk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::topk {
HWY_EXPORT(GetKernels);

const TopKKernels& Kernels() { return *core::ForTarget(HWY_DISPATCH_TABLE(GetKernels))(); }

}  // namespace riffle::topk
#endif  // HWY_ONCE

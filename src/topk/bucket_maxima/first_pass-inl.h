// Which first pass suits a row of floating-point values, and the first pass over a whole row.
// Included once per SIMD target.
#if defined(RIFFLE_TOPK_FIRST_PASS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_TOPK_FIRST_PASS_INL_H_
#undef RIFFLE_TOPK_FIRST_PASS_INL_H_
#else
#define RIFFLE_TOPK_FIRST_PASS_INL_H_
#endif

#include <algorithm>

#include "select/bound-inl.h"
#include "topk/bucket_maxima/bucket_maxima-inl.h"
#include "topk/topk_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::topk::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Tag;
using select::HWY_NAMESPACE::CountGe;
using select::HWY_NAMESPACE::Pad;

template <typename TI, FirstPass kPass>
bool RunFirstPassOf(const RowTask& task, int64_t begin, int64_t end, core::Format<TI> format,
                    TI* maxima) {
  const auto run = [&](auto reader) {
    return BucketMaxima(reader, static_cast<const TI*>(task.x), BucketBounds(task),
                        static_cast<size_t>(begin), static_cast<size_t>(end), maxima);
  };
  return task.largest ? run(ElementReader<TI, kPass, false>(format))
                      : run(ElementReader<TI, kPass, true>(format));
}

// Stores the maxima of buckets [begin, end): see TopKKernels::first_pass.
template <typename TI>
bool RunFirstPass(const RowTask& task, int64_t begin, int64_t end, FirstPass pass,
                  core::Format<TI> format, TI* maxima) {
  switch (pass) {
    case FirstPass::kPositive:
      return RunFirstPassOf<TI, FirstPass::kPositive>(task, begin, end, format, maxima);
    case FirstPass::kNegative:
      return RunFirstPassOf<TI, FirstPass::kNegative>(task, begin, end, format, maxima);
    case FirstPass::kKeyed:
      break;
  }
  return RunFirstPassOf<TI, FirstPass::kKeyed>(task, begin, end, format, maxima);
}
template <typename TElement, typename TKey>
bool RunFirstPass(const RowTask& task, int64_t begin, int64_t end, FirstPass /*pass*/,
                  core::IntegerFormat<TElement, TKey> format, TKey* maxima) {
  return BucketMaxima(IntegerElementReader<core::IntegerFormat<TElement, TKey>>(format),
                      static_cast<const TElement*>(task.x), BucketBounds(task),
                      static_cast<size_t>(begin), static_cast<size_t>(end), maxima);
}

// How many of the maxima are >= bound.
template <typename TI>
int64_t CountReaching(int64_t buckets, TI bound, TI* maxima) {
  Pad(Tag<TI>(), maxima, static_cast<size_t>(buckets));
  return static_cast<int64_t>(CountGe(maxima, static_cast<size_t>(buckets), bound));
}

// Chooses the first pass of a row from the maxima that a kPositive pass has left.
template <typename TI>
FirstPass ChooseFirstPass(const RowTask& task, core::Format<TI> /*format*/, TI* maxima) {
  const int64_t buckets = task.plan.buckets;
  return CountReaching(buckets, TI{1}, maxima) >= task.k  ? FirstPass::kPositive
         : CountReaching(buckets, TI{0}, maxima) < task.k ? FirstPass::kNegative
                                                          : FirstPass::kKeyed;
}
template <typename TElement, typename TKey>
FirstPass ChooseFirstPass(const RowTask& /*task*/, core::IntegerFormat<TElement, TKey> /*format*/,
                          TKey* /*maxima*/) {
  return FirstPass::kKeyed;
}

// Guesses which pass suits a row, so that a row of log-probabilities, which are all negative, is
// not read twice. It takes the first sixteenth of the buckets by kPositive. If few of their maxima
// are positive, as in a sorted row, it looks at a few buckets in the middle and at the end too. The
// first sixteenth need not be repeated if kPositive is the answer.
struct PassGuess {
  FirstPass pass;
  int64_t done;  // buckets whose maxima by `pass` are stored already
};

template <typename TI>
PassGuess GuessPass(const RowTask& task, core::Format<TI> format, TI* maxima) {
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
    TI* here = maxima + begin;
    if (!RunFirstPass(task, begin, end, FirstPass::kPositive, format, maxima)) {
      return {FirstPass::kKeyed, 0};
    }
    seen += end - begin;
    positive += CountReaching(end - begin, TI{1}, here);
    not_negative += CountReaching(end - begin, TI{0}, here);
    if (many(positive)) {
      return {FirstPass::kPositive, std::min(part, buckets)};
    }
  }
  return {many(not_negative) ? FirstPass::kKeyed : FirstPass::kNegative, 0};
}

// Makes the first pass over a whole row. Returns which pass its maxima are from.
template <typename TI>
FirstPass FirstPassOfRow(const RowTask& task, core::Format<TI> format, TI* maxima) {
  const int64_t buckets = task.plan.buckets;
  PassGuess guess = GuessPass(task, format, maxima);
  if (guess.pass == FirstPass::kPositive) {
    const bool in_order =
        RunFirstPass(task, guess.done, buckets, FirstPass::kPositive, format, maxima);
    guess.pass = in_order ? ChooseFirstPass(task, format, maxima) : FirstPass::kKeyed;
    if (guess.pass == FirstPass::kPositive) {
      return guess.pass;
    }
  }
  if (guess.pass == FirstPass::kNegative &&
      RunFirstPass(task, 0, buckets, FirstPass::kNegative, format, maxima) &&
      CountReaching(buckets, TI{1}, maxima) < task.k) {
    return guess.pass;
  }
  RunFirstPass(task, 0, buckets, FirstPass::kKeyed, format, maxima);
  return FirstPass::kKeyed;
}
template <typename TElement, typename TKey>
FirstPass FirstPassOfRow(const RowTask& task, core::IntegerFormat<TElement, TKey> format,
                         TKey* maxima) {
  RunFirstPass(task, 0, task.plan.buckets, FirstPass::kKeyed, format, maxima);
  return FirstPass::kKeyed;
}

}  // namespace riffle::topk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard

// Makes a table of the kernels for one format. Included once per SIMD target.
#if defined(RIFFLE_TOPK_KERNEL_TABLE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_TOPK_KERNEL_TABLE_INL_H_
#undef RIFFLE_TOPK_KERNEL_TABLE_INL_H_
#else
#define RIFFLE_TOPK_KERNEL_TABLE_INL_H_
#endif

#include "topk/bucket_maxima/finish-inl.h"
#include "topk/bucket_maxima/first_pass-inl.h"
#include "topk/narrow-inl.h"
#include "topk/topk_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::topk::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Tag;

template <class F>
struct KernelTable {
  using Key = typename F::Key;
  using Element = typename F::Element;

  static F FormatOf(const RowTask& task) { return F::Of(task.dtype, !task.largest); }

  static void Row(const RowTask& task, uint8_t* scratch) {
    if (task.plan.buckets == 0) {
      Finish(task, FirstPass::kKeyed, nullptr, scratch);
      return;
    }
    uint8_t* maxima = PlanBucketScratch(task).maxima.At(scratch);
    const FirstPass pass = FirstPassOfRow(task, FormatOf(task), reinterpret_cast<Key*>(maxima));
    Finish(task, pass, maxima, scratch);
  }

  static bool FirstPassOfBuckets(const RowTask& task, int64_t begin, int64_t end, FirstPass pass,
                                 uint8_t* maxima) {
    return RunFirstPass(task, begin, end, pass, FormatOf(task), reinterpret_cast<Key*>(maxima));
  }

  static FirstPass ChooseFirstPassOfRow(const RowTask& task, uint8_t* maxima) {
    return ChooseFirstPass(task, FormatOf(task), reinterpret_cast<Key*>(maxima));
  }

  static void Finish(const RowTask& task, FirstPass pass, uint8_t* maxima, uint8_t* scratch) {
    HWY_DASSERT(0 < task.k && task.k <= task.n);
    HWY_NAMESPACE::Row<F> row(task, FormatOf(task), PlanBucketScratch(task).row, scratch);
    if (task.plan.buckets == 0) {
      SelectFromAll(row);
    } else {
      SelectFromBuckets(row, pass, reinterpret_cast<Key*>(maxima));
    }
    FillStats(row);
    WidenIndices(task);
  }

  static void Narrow(const NarrowRows& rows, size_t begin, size_t end, uint8_t* scratch) {
    if constexpr (kHasNarrow<Element>) {
      SelectNarrow(rows, begin, end, F::Of(rows.dtype, !rows.largest), scratch);
    }
  }

  static int64_t NarrowLanes() {
    if constexpr (kHasNarrow<Element>) {
      return static_cast<int64_t>(hn::Lanes(Tag<Packed<Element>>()));
    }
    return 0;
  }

  static constexpr TopKKernels kKernels{
      Row, Narrow, NarrowLanes, FirstPassOfBuckets, ChooseFirstPassOfRow, Finish, HWY_TARGET};
};

}  // namespace riffle::topk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard

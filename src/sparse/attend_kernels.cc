#include "sparse/attend_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sparse/attend_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include <algorithm>
#include <cstring>

#include "core/dispatch.h"
#include "sparse/decode_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {

HWY_INLINE const uint8_t* RowAt(const SparseRows& rows, int32_t slot) {
  const auto element = static_cast<int64_t>(SizeOf(rows.dtype));
  const int64_t stride = rows.format == SparseRowFormat::kMla584 ? 576 : rows.row_stride * element;
  const int64_t page = rows.page_size == 0 ? 0 : slot / rows.page_size;
  const int64_t row = rows.page_size == 0 ? slot : slot % rows.page_size;
  return static_cast<const uint8_t*>(rows.data) + page * rows.page_stride * element + row * stride;
}

HWY_INLINE void PrefetchRow(const SparseRows& rows, int32_t slot) {
  if (slot < 0) {
    return;
  }
  const uint8_t* at = RowAt(rows, slot);
  const int64_t bytes = rows.format == SparseRowFormat::kPlain
                            ? rows.row_dim * static_cast<int64_t>(SizeOf(rows.dtype))
                        : rows.format == SparseRowFormat::kMla656 ? 656
                                                                  : 576;
  for (int64_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(at + i, 0, 2);
  }
}

// Rows ahead of the one that is decoded: random rows of 1 KiB come at 20 GB/s so; more gain
// nothing.
constexpr int64_t kPrefetchRows = 24;

template <typename T>
void GatherScope(const SparseRows& rows, const int32_t* slots, int64_t count, T* to) {
  for (int64_t i = 0; i < std::min(count, kPrefetchRows); ++i) {
    PrefetchRow(rows, slots[i]);
  }
  for (int64_t i = 0; i < count; ++i, to += rows.row_dim) {
    if (i + kPrefetchRows < count) {
      PrefetchRow(rows, slots[i + kPrefetchRows]);
    }
    HWY_DASSERT(slots[i] >= -1 && slots[i] < rows.slots);
    if (slots[i] < 0) {
      std::fill_n(to, rows.row_dim, T{0});
    } else {
      DecodeRow(rows, RowAt(rows, slots[i]), to);
    }
  }
}

void Gather(std::span<const SparseScope> scopes, const int32_t* slots, const int32_t* counts,
            int64_t begin, int64_t end, DType dtype, uint8_t* to) {
  HWY_DASSERT(dtype == DType::kF32 || dtype == DType::kBF16);
  int64_t first = 0;  // of the scope
  for (size_t s = 0; s < scopes.size(); ++s) {
    const int64_t from = std::max(begin, first);
    const int64_t stop = std::min(end, first + counts[s]);
    first += counts[s];
    if (from >= stop) {
      continue;
    }
    const SparseRows& rows = scopes[s].rows;
    uint8_t* at = to + (from - begin) * rows.row_dim * static_cast<int64_t>(SizeOf(dtype));
    if (dtype == DType::kBF16) {
      GatherScope(rows, slots + from, stop - from, reinterpret_cast<uint16_t*>(at));
    } else {
      GatherScope(rows, slots + from, stop - from, reinterpret_cast<float*>(at));
    }
  }
}

const GatherKernels* GatherKernelsForTarget() {
  static constexpr GatherKernels kKernels = {Gather};
  return &kKernels;
}

}  // namespace riffle::sparse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::sparse {
HWY_EXPORT(GatherKernelsForTarget);

const GatherKernels& GetGatherKernels() {
  return *(*core::ForTarget(HWY_DISPATCH_TABLE(GatherKernelsForTarget)))();
}

}  // namespace riffle::sparse
#endif  // HWY_ONCE

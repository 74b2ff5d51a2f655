#include "sparse/attend_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sparse/attend_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include <algorithm>
#include <cstring>

#include "attention/decode_f32-inl.h"
#include "attention/scales-inl.h"
#include "core/dispatch.h"
#include "sparse/attend_check.h"
#include "sparse/decode_rows-inl.h"
#include "sparse/row_pages.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {

HWY_INLINE void PrefetchRow(const SparseRows& rows, int32_t slot) {
  if (slot < 0) {
    return;
  }
  const uint8_t* at = AddressOf(rows, slot).row;
  const int64_t bytes = rows.format == SparseRowFormat::kPlain ? PlainRowBytes(rows, rows.row_dim)
                        : rows.format == SparseRowFormat::kMla656 ? 656
                                                                  : 576;
  for (int64_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(at + i, 0, 2);
  }
}

// How many rows ahead are prefetched: random rows of 1 KiB then come at 20 GB/s; more gain nothing.
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
      DecodeRow(rows, AddressOf(rows, slots[i]).row, to);
    }
  }
}

// The same for coded rows, by attention's decoders.
void GatherCoded(const SparseRows& rows, const int32_t* slots, int64_t count, float* to) {
  namespace kernels = attention::HWY_NAMESPACE;
  using attention::kGroupKeys;
  static_assert(kGatherRows == kGroupKeys);
  const attention::KvPages pages = PagesInPlace(rows, static_cast<int>(rows.row_dim));
  const auto decode = kernels::FindDecoder(kernels::F32Math(), pages.code);
  // Scales, then offsets, of groups of at least 32 elements.
  alignas(64) float scales[2 * kMaxRowDim / 32 * kGroupKeys];
  for (int64_t i = 0; i < count; i += kGroupKeys, to += kGroupKeys * rows.row_dim) {
    attention::KvRows at = attention::ZeroRows(), scales_at = attention::ZeroRows();
    for (int64_t j = i; j < std::min<int64_t>(count, i + kGroupKeys); ++j) {
      if (j + kPrefetchRows < count) {
        PrefetchRow(rows, slots[j + kPrefetchRows]);
      }
      if (slots[j] < 0) {
        continue;
      }
      const RowAddress address = AddressOf(rows, slots[j]);
      at.row[j - i] = address.row;
      scales_at.row[j - i] = attention::IsBlocks(pages.code) ? address.row
                             : address.scales != nullptr     ? address.scales
                                                             : pages.scales.data;
    }
    kernels::LoadScales(pages, kGroupKeys, scales, [&](int64_t offset, float* numbers) HWY_ATTR {
      kernels::LoadNumbers(pages.scale_dtype, scales_at, offset, numbers);
    });
    decode(pages, at, scales, static_cast<int>(rows.row_dim), to);
  }
}

void Gather(std::span<const SparseScope> scopes, const int32_t* slots, const int32_t* counts,
            int64_t begin, int64_t end, DType dtype, uint8_t* to) {
  HWY_DASSERT(dtype == DType::kF32 || dtype == DType::kBF16);
  int64_t first = 0;  // the scope's first row
  for (size_t s = 0; s < scopes.size(); ++s) {
    const int64_t from = std::max(begin, first);
    const int64_t stop = std::min(end, first + counts[s]);
    first += counts[s];
    if (from >= stop) {
      continue;
    }
    const SparseRows& rows = scopes[s].rows;
    uint8_t* at = to + (from - begin) * rows.row_dim * static_cast<int64_t>(SizeOf(dtype));
    if (IsCoded(rows)) {
      HWY_DASSERT(dtype == DType::kF32);
      GatherCoded(rows, slots + from, stop - from, reinterpret_cast<float*>(at));
    } else if (dtype == DType::kBF16) {
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

#include "sparse/row_pages.h"

#include <algorithm>
#include <cstring>

#include "core/strided.h"

namespace riffle::sparse {
namespace {

using attention::KvPages;

// The scale of a pool that has a divisor but no scales in memory.
constexpr float kUnitScale = 1.0f;

// How many rows ahead are prefetched while rows are copied: as many as gathers prefetch.
constexpr int64_t kPrefetchRows = 24;

int64_t Element(const SparseRows& rows) { return static_cast<int64_t>(SizeOf(rows.dtype)); }
int64_t ScaleElement(const SparseRows& rows) {
  return static_cast<int64_t>(SizeOf(rows.scales.dtype));
}

bool IsOnePage(const SparseRows& rows) {
  return rows.page_size == 0 || rows.slots <= rows.page_size;
}

bool CanReadInPlace(const SparseRows& rows) {
  if (rows.format != SparseRowFormat::kPlain) {
    return false;
  }
  const KvScales& scales = rows.scales;
  return IsOnePage(rows) ||
         (rows.page_stride == rows.page_size * rows.row_stride &&
          (scales.data == nullptr || scales.page_stride == rows.page_size * scales.token_stride));
}

bool HaveSameFormat(const SparseRows& a, const SparseRows& b) {
  return a.format == b.format && a.dtype == b.dtype && a.blocks == b.blocks &&
         (a.scales.data == nullptr) == (b.scales.data == nullptr) &&
         a.scales.dtype == b.scales.dtype && a.scales.group == b.scales.group &&
         a.scales.divisor == b.scales.divisor;
}

// The KvPages of rows, without strides and addresses.
KvPages DescribeRows(const SparseRows& rows, int dim) {
  KvPages pages{};
  pages.code = attention::RowCodeOf(rows.dtype, rows.blocks);
  pages.dim = pages.elements_per_scale = dim;
  pages.row_bytes = static_cast<size_t>(PlainRowBytes(rows, dim));
  pages.scale_divisor = 1.0f;
  if (attention::IsBlocks(pages.code)) {
    pages.elements_per_scale = attention::kBlockElements;
    pages.scales_per_row = dim / pages.elements_per_scale;
    pages.scale_group_stride = BlockBytes(rows.blocks);
    pages.scale_dtype = DType::kF16;
  } else if (rows.scales.data != nullptr) {
    pages.elements_per_scale = rows.scales.group == 0 ? dim : static_cast<int>(rows.scales.group);
    pages.scales_per_row = dim / pages.elements_per_scale;
    pages.scale_group_stride = rows.scales.group_stride * ScaleElement(rows);
    pages.scale_dtype = rows.scales.dtype;
    pages.scale_divisor = rows.scales.divisor;
  } else if (rows.scales.divisor != 1.0f) {
    pages.scales_per_row = 1;
    pages.scales.data = reinterpret_cast<const uint8_t*>(&kUnitScale);
    pages.scale_dtype = DType::kF32;
    pages.scale_divisor = rows.scales.divisor;
  }
  return pages;
}

bool HasScaleArray(const KvPages& pages) {
  return !attention::IsBlocks(pages.code) && pages.scales_per_row > 0 &&
         pages.scales.data != reinterpret_cast<const uint8_t*>(&kUnitScale);
}

void Prefetch(const uint8_t* at, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(at + i, 0, 2);
  }
}

}  // namespace

RowAccess ChooseRowAccess(std::span<const SparseScope> scopes) {
  const SparseRows& first = scopes[0].rows;
  if (scopes.size() == 1 && CanReadInPlace(first)) {
    return RowAccess::kInPlace;
  }
  const bool alike =
      IsCoded(first) && std::all_of(scopes.begin(), scopes.end(), [&](const SparseScope& scope) {
        return HaveSameFormat(scope.rows, first);
      });
  return alike ? RowAccess::kCopied : RowAccess::kDecoded;
}

KvPages PagesInPlace(const SparseRows& rows, int dim) {
  KvPages pages = DescribeRows(rows, dim);
  pages.data = static_cast<const uint8_t*>(rows.data);
  pages.page_stride = core::SaturatingMul(rows.row_stride, Element(rows));
  if (attention::IsBlocks(pages.code)) {
    pages.scales = pages;
  } else if (HasScaleArray(pages)) {
    pages.scales.data = static_cast<const uint8_t*>(rows.scales.data);
    pages.scales.page_stride = core::SaturatingMul(rows.scales.token_stride, ScaleElement(rows));
  }
  return pages;
}

KvPages PagesOfCopies(const SparseRows& rows, int dim) {
  KvPages pages = DescribeRows(rows, dim);
  pages.token_stride = PlainRowBytes(rows, rows.row_dim);
  if (HasScaleArray(pages)) {
    pages.scale_group_stride = ScaleElement(rows);
    const int64_t groups = rows.scales.group == 0 ? 1 : rows.row_dim / rows.scales.group;
    pages.scales.token_stride = groups * ScaleElement(rows);
  }
  return pages;
}

KvPages PagesOfDecoded(DType dtype, int64_t row_dim, int dim) {
  KvPages pages{};
  pages.code = attention::RowCodeOf(dtype, KvFormat::kPlain);
  pages.dim = pages.elements_per_scale = dim;
  pages.row_bytes = static_cast<size_t>(dim) * SizeOf(dtype);
  pages.scale_divisor = 1.0f;
  pages.token_stride = row_dim * static_cast<int64_t>(SizeOf(dtype));
  return pages;
}

void PlaceRows(const uint8_t* rows, const uint8_t* scales, KvPages* pages) {
  pages->data = rows;
  if (attention::IsBlocks(pages->code)) {
    pages->scales = *pages;
  } else if (HasScaleArray(*pages)) {
    pages->scales.data = scales;
  }
}

int64_t CopiedScaleBytes(const KvPages& pages) {
  return HasScaleArray(pages) ? pages.scales.token_stride : 0;
}

RowAddress AddressOf(const SparseRows& rows, int32_t slot) {
  const int64_t page = rows.page_size == 0 ? 0 : slot / rows.page_size;
  const int64_t token = rows.page_size == 0 ? slot : slot % rows.page_size;
  const int64_t stride = rows.format == SparseRowFormat::kMla584
                             ? 576
                             : core::SaturatingMul(rows.row_stride, Element(rows));
  RowAddress address{};
  address.row = static_cast<const uint8_t*>(rows.data) + page * rows.page_stride * Element(rows) +
                token * stride;
  if (rows.scales.data != nullptr) {
    address.scales =
        static_cast<const uint8_t*>(rows.scales.data) +
        (page * rows.scales.page_stride + token * rows.scales.token_stride) * ScaleElement(rows);
  }
  return address;
}

const uint8_t* Mla584Scales(const SparseRows& rows, int32_t slot) {
  return static_cast<const uint8_t*>(rows.data) + slot / rows.page_size * rows.page_stride +
         rows.page_size * 576 + slot % rows.page_size * 8;
}

void CopyRows(std::span<const SparseScope> scopes, const int32_t* slots, const int32_t* counts,
              int64_t begin, int64_t end, const KvPages& pages, uint8_t* rows, uint8_t* scales) {
  const int64_t scale_bytes = CopiedScaleBytes(pages);
  int64_t first = 0;  // the scope's first row
  for (size_t s = 0; s < scopes.size(); ++s) {
    const SparseRows& pool = scopes[s].rows;
    const int64_t element = ScaleElement(pool);
    const int64_t stop = std::min(end, first + counts[s]);
    for (int64_t i = std::max(begin, first); i < stop; ++i) {
      if (i + kPrefetchRows < stop) {
        Prefetch(AddressOf(pool, slots[i + kPrefetchRows]).row, pages.row_bytes);
      }
      const RowAddress from = AddressOf(pool, slots[i]);
      std::memcpy(rows + (i - begin) * pages.token_stride, from.row, pages.row_bytes);
      uint8_t* to = scales + (i - begin) * scale_bytes;
      for (int64_t offset = 0; offset < scale_bytes; offset += element) {
        const int64_t group = offset / element;
        std::memcpy(to + offset, from.scales + group * pool.scales.group_stride * element,
                    static_cast<size_t>(element));
      }
    }
    first += counts[s];
  }
}

}  // namespace riffle::sparse

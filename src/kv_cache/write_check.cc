#include "kv_cache/write_check.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <span>
#include <utility>

#include "core/check.h"
#include "core/strided.h"

namespace riffle::kv_cache {
namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxHeads = 1 << 16;

using core::SaturatingMul;

bool IsQuantised(DType dtype) {
  return dtype == DType::kE4M3 || dtype == DType::kE5M2 || dtype == DType::kI8;
}

int64_t ElementBytes(const PagedKvOut& pages) { return static_cast<int64_t>(SizeOf(pages.dtype)); }

int64_t NumGroups(const PagedKvOut& pages) {
  const int64_t group = pages.scales.group;
  return group == 0 ? 1 : (pages.head_dim + group - 1) / group;
}

bool HasScales(const PagedKvOut& pages) {
  return pages.scales.data != nullptr || pages.computed_scales != nullptr;
}

void CheckScales(const char* name, const PagedKvOut& pages) {
  const KvScales& scales = pages.scales;
  core::Check(scales.dtype <= DType::kBF16 || scales.dtype == DType::kE8M0, Code::kBadDType, name,
              ".scales are ", Name(scales.dtype),
              ", not float32, float16, bfloat16 or float8_e8m0fnu");
  core::Check(scales.group == 0 || scales.group == 32 || scales.group == 64 || scales.group == 128,
              Code::kBadOption, name, ".scales.group = ", scales.group,
              " is none of 0, 32, 64, 128");
  core::Check(scales.divisor > 0 && std::isfinite(scales.divisor), Code::kBadOption, name,
              ".scales.divisor = ", scales.divisor, " is not positive and finite");
}

void CheckHeads(const char* name, const HeadsView& x, const char* pages_name,
                const PagedKvOut& pages) {
  core::Check(x.dtype <= DType::kBF16, Code::kBadDType, name, " has dtype ", Name(x.dtype),
              ", not float32, float16 or bfloat16");
  core::Check(x.tokens >= 0 && x.tokens <= kMaxInt, Code::kBadShape, name, ".tokens = ", x.tokens,
              " is not in 0..", kMaxInt);
  core::Check(x.heads == pages.kv_heads, Code::kBadShape, name, ".heads = ", x.heads, " but ",
              pages_name, ".kv_heads = ", pages.kv_heads);
  core::Check(x.head_dim == pages.head_dim, Code::kBadShape, name, ".head_dim = ", x.head_dim,
              " but ", pages_name, ".head_dim = ", pages.head_dim);
  core::Check(x.data != nullptr || x.tokens == 0, Code::kBadShape, name, ".data is null");
}

void CheckPages(const char* name, const PagedKvOut& pages) {
  CheckFormat(name, pages);
  core::Check(pages.num_pages >= 0 && pages.num_pages <= kMaxInt, Code::kBadShape, name,
              ".num_pages = ", pages.num_pages, " is not in 0..", kMaxInt);
  core::Check(pages.page_size >= 1, Code::kBadShape, name, ".page_size = ", pages.page_size,
              " is not at least 1");
  core::Check(pages.kv_heads >= 1 && pages.kv_heads <= kMaxHeads, Code::kBadShape, name,
              ".kv_heads = ", pages.kv_heads, " is not in 1..", kMaxHeads);
  core::Check(pages.data != nullptr || pages.num_pages == 0, Code::kBadShape, name,
              ".data is null");
}

core::Strided Rows(const HeadsView& x) {
  const auto element = static_cast<int64_t>(SizeOf(x.dtype));
  return {x.data,
          {x.tokens, x.heads, 1},
          {SaturatingMul(x.token_stride, element), SaturatingMul(x.head_stride, element), 0},
          SaturatingMul(x.head_dim, element)};
}

core::Strided Rows(const PagedKvOut& pages) {
  const int64_t element = ElementBytes(pages);
  const int64_t width = pages.format == KvFormat::kPlain
                            ? SaturatingMul(pages.head_dim, element)
                            : SaturatingMul(pages.head_dim / 32, BlockBytes(pages.format));
  return {pages.data,
          {pages.page_size, pages.num_pages, pages.kv_heads},
          {SaturatingMul(pages.token_stride, element), SaturatingMul(pages.page_stride, element),
           SaturatingMul(pages.head_stride, element)},
          width};
}

// The number of regions that the scales of a pool form: one if the scales of a row's groups are
// contiguous or the same scale, else one per group.
int64_t NumScaleRegions(const PagedKvOut& pages) {
  if (!HasScales(pages)) {
    return 0;
  }
  const int64_t stride = pages.scales.group_stride;
  return stride == 0 || stride == 1 ? 1 : NumGroups(pages);
}

core::Strided Scales(const PagedKvOut& pages, int64_t region) {
  const KvScales& scales = pages.scales;
  const auto element = static_cast<int64_t>(SizeOf(scales.dtype));
  const void* data = pages.computed_scales != nullptr ? pages.computed_scales : scales.data;
  const int64_t offset =
      region == 0 ? 0 : SaturatingMul(SaturatingMul(scales.group_stride, region), element);
  return {reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(data) +
                                        static_cast<uintptr_t>(offset)),
          {pages.page_size, pages.num_pages, pages.kv_heads},
          {SaturatingMul(scales.token_stride, element), SaturatingMul(scales.page_stride, element),
           SaturatingMul(scales.head_stride, element)},
          scales.group_stride == 1 ? NumGroups(pages) * element : element};
}

// Whether no two rows share a byte: each axis must step over all rows within the axes of smaller
// strides. Every layout in use does; strides that interleave rows in other ways are refused.
bool RowsAreDisjoint(std::span<std::pair<int64_t, int64_t>> axes, int64_t width) {
  std::sort(axes.begin(), axes.end());
  for (const auto& [stride, size] : axes) {
    if (size <= 1) {
      continue;
    }
    if (stride < width) {
      return false;
    }
    width += stride * (size - 1);  // fits, as all addresses have been checked
  }
  return true;
}

std::pair<int64_t, int64_t> Axis(int64_t stride, int64_t size) {
  return {std::abs(std::max(stride, -std::numeric_limits<int64_t>::max())), size};
}

void CheckRowsDisjoint(const char* name, const core::Strided& x, int64_t more_stride,
                       int64_t more_size) {
  std::pair<int64_t, int64_t> axes[] = {Axis(x.stride[0], x.size[0]), Axis(x.stride[1], x.size[1]),
                                        Axis(x.stride[2], x.size[2]), Axis(more_stride, more_size)};
  core::Check(x.empty() || RowsAreDisjoint(axes, x.width), Code::kOverlap, name,
              " overlaps itself: its rows of ", x.width, " bytes are ", x.stride[1], " (pages), ",
              x.stride[0], " (tokens) and ", x.stride[2], " (heads) bytes apart");
}

struct Named {
  const char* name;
  core::Strided bytes;
};

void CheckPool(const char* name, const char* scales_name, const PagedKvOut& pages) {
  const core::Strided rows = Rows(pages);
  core::CheckAddressable(name, rows);
  CheckRowsDisjoint(name, rows, 0, 1);
  if (!HasScales(pages)) {
    return;
  }
  const auto element = static_cast<int64_t>(SizeOf(pages.scales.dtype));
  const int64_t group_stride = SaturatingMul(pages.scales.group_stride, element);
  const int64_t groups = NumGroups(pages);
  // All bytes between the first and the last group of the first row must be addressable too.
  const core::Strided first = {
      Scales(pages, 0).data, {groups, 1, 1}, {group_stride, 0, 0}, element};
  core::CheckAddressable(scales_name, first);
  for (int64_t i = 0; i < NumScaleRegions(pages); ++i) {
    core::CheckAddressable(scales_name, Scales(pages, i));
  }
  if (pages.computed_scales != nullptr) {
    core::Strided one = Scales(pages, 0);
    one.width = element;
    CheckRowsDisjoint(scales_name, one, group_stride, groups);
  }
}

void CheckNoOverlap(const Named& output, const Named& other) {
  core::Check(!core::Overlaps(output.bytes, other.bytes), Code::kOverlap, output.name,
              " shares memory with ", other.name);
}

// Checks that what is written shares no byte with anything else.
void CheckOverlaps(const HeadsView& keys, const HeadsView& values, const IndexSpan& slots,
                   const PagedKvOut& key_pages, const PagedKvOut& value_pages) {
  const core::Strided list = {slots.data(), {1, 1, 1}, {0, 0, 0}, slots.size_bytes()};
  const Named inputs[] = {{"keys", Rows(keys)}, {"values", Rows(values)}, {"slots", list}};
  const Named rows[] = {{"key_pages", Rows(key_pages)}, {"value_pages", Rows(value_pages)}};
  CheckNoOverlap(rows[0], rows[1]);
  for (const Named& input : inputs) {
    CheckNoOverlap(rows[0], input);
    CheckNoOverlap(rows[1], input);
  }
  const auto check_scales = [&](const char* name, const PagedKvOut& pages) {
    for (int64_t i = 0; i < NumScaleRegions(pages); ++i) {
      const Named scales = {name, Scales(pages, i)};
      CheckNoOverlap(rows[0], scales);
      CheckNoOverlap(rows[1], scales);
      for (size_t input = 0; pages.computed_scales != nullptr && input < std::size(inputs);
           ++input) {
        CheckNoOverlap(scales, inputs[input]);
      }
    }
  };
  check_scales("key_pages.scales", key_pages);
  check_scales("value_pages.scales", value_pages);
  if (key_pages.computed_scales == nullptr && value_pages.computed_scales == nullptr) {
    return;
  }
  for (int64_t i = 0; i < NumScaleRegions(key_pages); ++i) {
    for (int64_t j = 0; j < NumScaleRegions(value_pages); ++j) {
      CheckNoOverlap({"key_pages.scales", Scales(key_pages, i)},
                     {"value_pages.scales", Scales(value_pages, j)});
    }
  }
}

}  // namespace

void CheckFormat(const char* name, const PagedKvOut& pages) {
  core::Check(static_cast<int>(pages.format) < kNumKvFormats, Code::kBadDType, name,
              " have the unknown format ", static_cast<int>(pages.format));
  core::Check(pages.head_dim >= 1, Code::kBadShape, name, ".head_dim = ", pages.head_dim,
              " is not at least 1");
  if (pages.format == KvFormat::kPlain) {
    core::Check(pages.dtype <= DType::kBF16 || IsQuantised(pages.dtype), Code::kBadDType, name,
                " are ", Name(pages.dtype),
                ", not float32, float16, bfloat16, float8_e4m3fn, float8_e5m2 or int8");
    core::Check(IsQuantised(pages.dtype) || !HasScales(pages), Code::kBadOption, name, " are ",
                Name(pages.dtype), ", which has no scales, but scales are given");
    core::Check(pages.dtype != DType::kI8 || HasScales(pages), Code::kBadOption, name,
                " are int8 and have no scales: give some, or have them computed");
  } else {
    core::Check(pages.dtype == DType::kU8, Code::kBadDType, name, " of format ", Name(pages.format),
                " are ", Name(pages.dtype), ", not uint8");
    core::Check(pages.head_dim % 32 == 0, Code::kBadShape, name, ".head_dim = ", pages.head_dim,
                " is not a multiple of 32, the block of ", Name(pages.format));
    core::Check(!HasScales(pages), Code::kBadOption, name, " of format ", Name(pages.format),
                " have scales in their blocks, but others are given");
  }
  if (HasScales(pages)) {
    CheckScales(name, pages);
  }
}

void CheckWrite(const HeadsView& keys, const HeadsView& values, const IndexSpan& slots,
                const PagedKvOut& key_pages, const PagedKvOut& value_pages) {
  CheckPages("key_pages", key_pages);
  CheckPages("value_pages", value_pages);
  const auto same = [](const char* what, int64_t value, const char* other, int64_t of_other) {
    core::Check(value == of_other, Code::kBadShape, what, " = ", value, " but ", other, " = ",
                of_other);
  };
  same("value_pages.num_pages", value_pages.num_pages, "key_pages.num_pages", key_pages.num_pages);
  same("value_pages.page_size", value_pages.page_size, "key_pages.page_size", key_pages.page_size);
  same("value_pages.kv_heads", value_pages.kv_heads, "key_pages.kv_heads", key_pages.kv_heads);
  CheckHeads("keys", keys, "key_pages", key_pages);
  CheckHeads("values", values, "value_pages", value_pages);
  same("values.tokens", values.tokens, "keys.tokens", keys.tokens);
  same("the number of slots", static_cast<int64_t>(slots.size()), "keys.tokens", keys.tokens);
  core::Check(slots.data() != nullptr || slots.empty(), Code::kBadShape, "slots is null");
  if (keys.tokens == 0) {
    return;
  }
  core::CheckAddressable("keys", Rows(keys));
  core::CheckAddressable("values", Rows(values));
  CheckPool("key_pages", "key_pages.scales", key_pages);
  CheckPool("value_pages", "value_pages.scales", value_pages);

  CheckOverlaps(keys, values, slots, key_pages, value_pages);
}

}  // namespace riffle::kv_cache

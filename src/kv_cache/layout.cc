#include "kv_cache/layout.h"

#include <limits>
#include <string>

#include "core/check.h"
#include "kv_cache/write_check.h"

namespace riffle::kv_cache {
namespace {

constexpr int64_t kMaxBytes = std::numeric_limits<int64_t>::max();

void CheckDimension(const char* name, int64_t value) {
  core::Check(value >= 1, Code::kBadShape, name, " = ", value, " is not 1 or more");
}

bool HasScales(DType dtype) {
  return dtype == DType::kE4M3 || dtype == DType::kE5M2 || dtype == DType::kI8;
}

SideLayout Side(const char* name, const KvCacheOptions& options, int64_t head_dim, DType dtype,
                KvFormat format) {
  CheckDimension(name[0] == 'k' ? "head_dim" : "value_dim", head_dim);
  SideLayout side;
  side.format = format;
  side.dtype = format == KvFormat::kPlain ? dtype : DType::kU8;
  side.head_dim = head_dim;
  PagedKvOut like;  // with only the members that CheckFormat reads
  like.dtype = side.dtype;
  like.format = format;
  like.head_dim = head_dim;
  if (format == KvFormat::kPlain && HasScales(dtype)) {
    like.scales = {name, options.scale_dtype, 0, 0, 0, 0, options.scale_group, 1.0f};
    side.groups = 1;
  }
  CheckFormat(name, like);
  if (side.groups > 0 && options.scale_group > 0) {
    side.groups = (head_dim - 1) / options.scale_group + 1;
  }
  return side;
}

// Multiplies and adds sizes, and records whether a result overflows int64.
class Size {
 public:
  int64_t Times(int64_t a, int64_t b) {
    int64_t product = 0;
    fits_ = !__builtin_mul_overflow(a, b, &product) && fits_;
    return product;
  }
  int64_t Plus(int64_t a, int64_t b) {
    int64_t sum = 0;
    fits_ = !__builtin_add_overflow(a, b, &sum) && fits_;
    return sum;
  }
  int64_t RoundUp(int64_t a, int64_t unit) { return Plus(a, unit - 1) / unit * unit; }
  bool fits() const { return fits_; }

 private:
  bool fits_ = true;
};

}  // namespace

KvLayout KvLayout::FromOptions(const KvCacheOptions& options) {
  CheckDimension("layers", options.layers);
  CheckDimension("kv_heads", options.kv_heads);
  CheckDimension("head_dim", options.head_dim);
  CheckDimension("pages", options.pages);
  CheckDimension("page_size", options.page_size);
  constexpr int64_t kMaxPages = std::numeric_limits<int32_t>::max();
  core::Check(options.pages <= kMaxPages, Code::kBadShape, "pages = ", options.pages, " is above ",
              kMaxPages);
  const int64_t value_dim = options.value_dim == 0 ? options.head_dim : options.value_dim;
  const KvFormat value_format =
      options.value_format.value_or(options.value_dtype ? KvFormat::kPlain : options.format);
  KvLayout layout;
  layout.keys = Side("keys", options, options.head_dim, options.dtype, options.format);
  layout.values =
      Side("values", options, value_dim, options.value_dtype.value_or(options.dtype), value_format);

  // Keys and values of one dtype without scales form one array; else each part is 64-byte aligned.
  const bool is_plain = layout.keys.groups == 0 && layout.values.groups == 0 &&
                        layout.keys.dtype == layout.values.dtype;
  const int64_t unit = is_plain ? 1 : 64;
  const auto scale_bytes = static_cast<int64_t>(SizeOf(options.scale_dtype));
  Size size;
  for (SideLayout* side : {&layout.keys, &layout.values}) {
    side->row = side->format == KvFormat::kPlain
                    ? size.Times(side->head_dim, static_cast<int64_t>(SizeOf(side->dtype)))
                    : size.Times(side->head_dim / 32, BlockBytes(side->format));
    side->head = size.Times(side->row, options.page_size);
    side->begin = layout.page;
    side->scales =
        size.RoundUp(size.Plus(side->begin, size.Times(side->head, options.kv_heads)), unit);
    const int64_t row_scales = size.Times(side->groups, scale_bytes);
    const int64_t rows = size.Times(options.page_size, options.kv_heads);
    layout.page = size.RoundUp(size.Plus(side->scales, size.Times(row_scales, rows)), unit);
  }
  layout.layer = size.RoundUp(size.Times(layout.page, options.pages), 64);
  layout.total = size.Times(layout.layer, options.layers);
  core::Check(size.fits(), Code::kOutOfMemory,
              "layers x pages x 2 x kv_heads x page_size x head_dim = ", options.layers, " x ",
              options.pages, " x 2 x ", options.kv_heads, " x ", options.page_size, " x ",
              options.head_dim, " elements of ", SizeOf(layout.keys.dtype), " bytes are more than ",
              kMaxBytes, " bytes");
  return layout;
}

PagedKvOut KvLayout::View(const KvCacheOptions& options, const SideLayout& side,
                          uint8_t* data) const {
  const auto element = static_cast<int64_t>(SizeOf(side.dtype));
  PagedKvOut view;
  view.data = data + side.begin;
  view.dtype = side.dtype;
  view.format = side.format;
  view.num_pages = options.pages;
  view.page_size = options.page_size;
  view.kv_heads = options.kv_heads;
  view.head_dim = side.head_dim;
  view.page_stride = page / element;
  view.token_stride = side.row / element;
  view.head_stride = side.head / element;
  if (side.groups > 0) {
    view.computed_scales = data + side.scales;
    view.scales.data = view.computed_scales;
    view.scales.dtype = options.scale_dtype;
    view.scales.page_stride = page / static_cast<int64_t>(SizeOf(options.scale_dtype));
    view.scales.token_stride = side.groups;
    view.scales.head_stride = options.page_size * side.groups;
    view.scales.group_stride = side.groups > 1 ? 1 : 0;
    view.scales.group = options.scale_group;
  }
  return view;
}

}  // namespace riffle::kv_cache

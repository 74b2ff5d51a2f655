#include "kv_cache/layout.h"

#include <limits>

#include "core/check.h"

namespace riffle::kv_cache {
namespace {

constexpr int64_t kMaxBytes = std::numeric_limits<int64_t>::max();

void CheckDimension(const char* name, int64_t value) {
  core::Check(value >= 1, Code::kBadShape, name, " = ", value, " is not 1 or more");
}

}  // namespace

KvLayout KvLayout::Of(const KvCacheOptions& options) {
  CheckDimension("layers", options.layers);
  CheckDimension("kv_heads", options.kv_heads);
  CheckDimension("head_dim", options.head_dim);
  CheckDimension("pages", options.pages);
  CheckDimension("page_size", options.page_size);
  constexpr int64_t kMaxPages = std::numeric_limits<int32_t>::max();
  core::Check(options.pages <= kMaxPages, Code::kBadShape, "pages = ", options.pages, " is above ",
              kMaxPages);
  core::Check(
      options.dtype == DType::kF32 || options.dtype == DType::kF16 || options.dtype == DType::kBF16,
      Code::kBadDType, "dtype = ", static_cast<int>(options.dtype),
      " is none of float32, float16, bfloat16");

  bool fits = true;
  const auto times = [&fits](int64_t a, int64_t b) {
    int64_t product = 0;
    fits = fits && !__builtin_mul_overflow(a, b, &product);
    return product;
  };
  KvLayout layout;
  layout.token = times(options.head_dim, static_cast<int64_t>(SizeOf(options.dtype)));
  layout.head = times(layout.token, options.page_size);
  layout.values = times(layout.head, options.kv_heads);
  layout.page = times(layout.values, 2);
  const int64_t used = times(layout.page, options.pages);
  fits = fits && used <= kMaxBytes - 63;
  layout.layer = fits ? (used + 63) / 64 * 64 : 0;
  layout.total = times(layout.layer, options.layers);
  core::Check(fits, Code::kOutOfMemory,
              "layers x pages x 2 x kv_heads x page_size x head_dim = ", options.layers, " x ",
              options.pages, " x 2 x ", options.kv_heads, " x ", options.page_size, " x ",
              options.head_dim, " elements of ", SizeOf(options.dtype), " bytes are more than ",
              kMaxBytes, " bytes");
  return layout;
}

}  // namespace riffle::kv_cache

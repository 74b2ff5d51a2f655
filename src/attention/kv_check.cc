#include "attention/kv_check.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>

#include "attention/attention_plan.h"
#include "attention/row_code.h"
#include "core/check.h"

namespace riffle::attention {
namespace {

constexpr int64_t kMaxHeads = 1 << 16;
constexpr int64_t kMaxGroupStride = int64_t{1} << 48;  // so that a row's extent is an int64
constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();

bool IsScaled(DType dtype) {
  return dtype == DType::kE4M3 || dtype == DType::kE5M2 || dtype == DType::kI8;
}

void CheckCode(const char* name, const PagedKv& kv) {
  const int format = static_cast<int>(kv.format);
  core::Check(format < kNumKvFormats, Code::kBadDType, name, ".format = ", format, " is unknown");
  const int dtype = static_cast<int>(kv.dtype);
  core::Check(dtype < kNumDTypes, Code::kBadDType, name, " has the unknown dtype ", dtype);
  if (kv.format == KvFormat::kPlain) {
    core::Check(kv.dtype <= DType::kBF16 || IsScaled(kv.dtype), Code::kBadDType, name, " are ",
                Name(kv.dtype),
                ", not float32, float16, bfloat16, float8_e4m3fn, float8_e5m2 or int8");
    return;
  }
  core::Check(kv.dtype == DType::kU8, Code::kBadDType, name, " of format ", Name(kv.format),
              " are ", Name(kv.dtype), ", not uint8, the bytes of its blocks");
  core::Check(kv.head_dim % kBlockElements == 0, Code::kBadShape, name, ".head_dim = ", kv.head_dim,
              " is not a multiple of ", kBlockElements, ", the elements of a block of ",
              Name(kv.format));
}

void CheckScales(const char* name, const PagedKv& kv) {
  const KvScales& scales = kv.scales;
  core::Check(scales.divisor > 0 && std::isfinite(scales.divisor), Code::kBadOption, name,
              ".scales.divisor = ", scales.divisor, " is not positive and finite");
  if (scales.data == nullptr && scales.divisor == 1.0f) {
    return;
  }
  core::Check(kv.format == KvFormat::kPlain, Code::kBadDType, name, " of format ", Name(kv.format),
              " have scales in their blocks; they take no others");
  core::Check(IsScaled(kv.dtype), Code::kBadDType, name, " are ", Name(kv.dtype),
              " and have scales; only float8_e4m3fn, float8_e5m2 and int8 take them");
  core::Check(scales.dtype <= DType::kBF16 || scales.dtype == DType::kE8M0, Code::kBadDType, name,
              ".scales are ", Name(scales.dtype),
              ", not float32, float16, bfloat16 or float8_e8m0fnu");
  const int64_t group = scales.group;
  core::Check(group == 0 || group == 32 || group == 64 || group == 128, Code::kBadShape, name,
              ".scales.group = ", group, " is not 0 (a row has one scale), 32, 64 or 128");
  core::Check(group == 0 || kv.head_dim % group == 0, Code::kBadShape, name,
              ".scales.group = ", group, " does not divide ", name, ".head_dim = ", kv.head_dim);
  core::Check(scales.group_stride > -kMaxGroupStride && scales.group_stride < kMaxGroupStride,
              Code::kBadShape, name, ".scales.group_stride = ", scales.group_stride,
              " does not fit an address");
}

// Strides of a block format are in bytes. Rows that share bytes are a mistake, such as strides
// given in elements.
void CheckBlockStride(const char* name, const char* axis, const PagedKv& kv, int64_t extent,
                      int64_t stride) {
  core::Check(kv.format == KvFormat::kPlain || extent <= 1 || stride == 0 ||
                  stride >= RowBytes(kv) || stride <= -RowBytes(kv),
              Code::kBadShape, name, ".", axis, "_stride = ", stride,
              " bytes cannot hold a row of ", kv.head_dim, " elements of ", Name(kv.format), ", ",
              RowBytes(kv), " bytes");
}

}  // namespace

void CheckHeadDim(const char* name, int64_t dim) {
  core::Check(dim >= 8 && dim <= kMaxHeadDim && dim % 8 == 0, Code::kBadShape, name,
              ".head_dim = ", dim, " is not a multiple of 8 from 8 to ", kMaxHeadDim);
}

void CheckKvShape(const char* name, const PagedKv& kv) {
  CheckHeadDim(name, kv.head_dim);
  CheckCode(name, kv);
  core::Check(kv.num_pages >= 0 && kv.num_pages <= kMaxInt, Code::kBadShape, name,
              ".num_pages = ", kv.num_pages, " is not in 0..", kMaxInt);
  core::Check(kv.page_size >= 1, Code::kBadShape, name, ".page_size = ", kv.page_size,
              " is not at least 1");
  core::Check(kv.kv_heads >= 1 && kv.kv_heads <= kMaxHeads, Code::kBadShape, name,
              ".kv_heads = ", kv.kv_heads, " is not in 1..", kMaxHeads);
}

void CheckKv(const char* name, const PagedKv& kv) {
  CheckKvShape(name, kv);
  core::Check(kv.data != nullptr || kv.num_pages == 0, Code::kBadShape, name, ".data is null");
  CheckScales(name, kv);
  CheckBlockStride(name, "page", kv, kv.num_pages, kv.page_stride);
  CheckBlockStride(name, "token", kv, kv.page_size, kv.token_stride);
  CheckBlockStride(name, "head", kv, kv.kv_heads, kv.head_stride);
  core::CheckAddressable(name, KvRowBytes(kv));
  const std::string scales = std::string(name) + ".scales";
  core::CheckAddressable(scales.c_str(), KvScaleBytes(kv));
}

core::Strided KvRowBytes(const PagedKv& kv) {
  const auto unit = static_cast<int64_t>(SizeOf(kv.dtype));
  return {kv.data,
          {kv.page_size, kv.num_pages, kv.kv_heads},
          {core::SaturatingMul(kv.token_stride, unit), core::SaturatingMul(kv.page_stride, unit),
           core::SaturatingMul(kv.head_stride, unit)},
          RowBytes(kv)};
}

// Treats a row's scales as one range of bytes, including the gaps between groups.
core::Strided KvScaleBytes(const PagedKv& kv) {
  const KvScales& scales = kv.scales;
  if (scales.data == nullptr) {
    return {};
  }
  const auto unit = static_cast<int64_t>(SizeOf(scales.dtype));
  const int64_t groups = scales.group == 0 ? 1 : kv.head_dim / scales.group;
  const int64_t last = scales.group_stride * unit * (groups - 1);
  const auto address =
      reinterpret_cast<uintptr_t>(scales.data) + static_cast<uintptr_t>(std::min<int64_t>(last, 0));
  return {reinterpret_cast<const void*>(address),
          {kv.page_size, kv.num_pages, kv.kv_heads},
          {core::SaturatingMul(scales.token_stride, unit),
           core::SaturatingMul(scales.page_stride, unit),
           core::SaturatingMul(scales.head_stride, unit)},
          std::abs(last) + unit};
}

}  // namespace riffle::attention

#include "sparse/write_rows_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sparse/write_rows_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include <bit>
#include <cmath>
#include <cstring>

#include "core/dispatch.h"
#include "sparse/quantize_e4m3-inl.h"
#include "sparse/store_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {

void WriteMla656(const CodedRow& row) {
  float x[576];
  RowToF32(row.from_dtype, row.from, 576, x);
  for (int group = 0; group < 4; ++group) {
    const float scale =
        QuantizeE4M3(x + group * 128, 128, row.power_of_two_scales, row.to + group * 128);
    std::memcpy(row.to + 512 + group * sizeof(scale), &scale, sizeof(scale));
  }
  StoreRow(DType::kBF16, x + 512, 64, row.to + 528);
}

void WriteMla584(const CodedRow& row) {
  float x[512];
  RowToF32(row.from_dtype, row.from, 512, x);
  for (int group = 0; group < 7; ++group) {
    const float scale = QuantizeE4M3(x + group * 64, 64, true, row.to + group * 64);
    // `scale` is a power of two from 2^-22 to 2^120, or NaN: its exponent bits are the e8m0 code.
    row.scales[group] = static_cast<uint8_t>(std::bit_cast<uint32_t>(scale) >> 23);
  }
  row.scales[7] = 0;
  StoreRow(DType::kBF16, x + 448, 64, row.to + 448);
}

void Write(const CodedRow& row) {
  if (row.format == SparseRowFormat::kMla656) {
    WriteMla656(row);
  } else {
    WriteMla584(row);
  }
}

const WriteRowsKernels* WriteRowsKernelsForTarget() {
  static constexpr WriteRowsKernels kKernels = {Write};
  return &kKernels;
}

}  // namespace riffle::sparse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::sparse {
HWY_EXPORT(WriteRowsKernelsForTarget);

const WriteRowsKernels& GetWriteRowsKernels() {
  return *(*core::ForTarget(HWY_DISPATCH_TABLE(WriteRowsKernelsForTarget)))();
}

}  // namespace riffle::sparse
#endif  // HWY_ONCE

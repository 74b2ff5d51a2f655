#include "topk/narrow.h"

#include <algorithm>

#include "topk/topk_kernels.h"

namespace riffle::topk {
namespace {

// A call of less than this is done by the calling thread, else threads take this much at a time:
// see topk.cc.
constexpr int64_t kSerialNs = 8000;
constexpr int64_t kTaskNs = 4000;

// `lanes` rows are done in the time of one. That wins up to 16 columns a lane, with eight lanes of
// float32 up to 256, and for fewer rows than lanes where their columns or k are few
// (docs/performance.md). A row comes out in order even if it need not be, as it does the other way
// where all of its elements are ranked (kRankLimit, 256): an answer may not depend on the target or
// on the rows beside it.
constexpr int64_t kMaxColumns = 256;

bool IsNarrow(int64_t rows, int64_t n, int64_t k, int64_t lanes) {
  const int64_t most = lanes >= 8 ? kMaxColumns : 16 * lanes;
  const int64_t rows_that_pay = k <= 8 ? n / 32 : n / 8;
  return n <= most && rows >= std::min(rows_that_pay, lanes);
}

// Roughly what a tile of `lanes` rows takes (AVX-512).
int64_t TileNs(int64_t n, int64_t k, int64_t lanes) {
  const int64_t column = k <= static_cast<int64_t>(kNarrowSink) ? 3 + k / 3 : 20;
  return 50 + n * column + lanes * k / 2;
}

}  // namespace

bool RunNarrow(const MatrixView& x, int64_t k, const TopKOut& out, const TopKOptions& options,
               core::Lease& lease) {
  const TopKKernels& kernels = Kernels();
  const int64_t lanes = kernels.narrow_lanes(x.dtype);
  if (out.stats != nullptr || !IsNarrow(x.rows, x.cols, k, lanes)) {
    return false;
  }
  const auto element = static_cast<int64_t>(SizeOf(x.dtype));
  const bool wide = out.wide_indices != nullptr;
  const NarrowRows rows{.x = static_cast<const uint8_t*>(x.data),
                        .row_stride = x.row_stride * element,
                        .dtype = x.dtype,
                        .n = static_cast<size_t>(x.cols),
                        .k = static_cast<size_t>(k),
                        .largest = options.largest,
                        .wide = wide,
                        .values = static_cast<uint8_t*>(out.values),
                        .values_stride = out.values_stride * element,
                        .indices = wide ? reinterpret_cast<uint8_t*>(out.wide_indices)
                                        : reinterpret_cast<uint8_t*>(out.indices),
                        .indices_stride = out.indices_stride * (wide ? 8 : 4)};
  lease.ReserveScratch(NarrowScratch(rows.n));
  const int64_t tiles = (x.rows + lanes - 1) / lanes;
  const int64_t tile_ns = TileNs(x.cols, k, lanes);
  const int64_t together =
      tiles <= kSerialNs / tile_ns ? tiles : std::max<int64_t>(1, kTaskNs / tile_ns);
  lease.Run((tiles + together - 1) / together, [&](int64_t i, uint8_t* scratch) {
    const int64_t begin = i * together * lanes;
    kernels.narrow(rows, static_cast<size_t>(begin),
                   static_cast<size_t>(std::min(x.rows, begin + together * lanes)), scratch);
  });
  return true;
}

}  // namespace riffle::topk

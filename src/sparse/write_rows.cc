// Writing coded rows of sparse attention.
#include "core/entry_point.h"
#include "core/lease.h"
#include "core/targets.h"
#include "riffle/sparse_attention.h"
#include "sparse/attend_check.h"
#include "sparse/row_pages.h"
#include "sparse/write_rows_kernels.h"

namespace riffle {
namespace {

// From this many rows on, threads pay.
constexpr int64_t kMinParallelRows = 64;

}  // namespace

void WriteSparseRows(const MatrixView& x, IndexSpan slots, const SparseRowsOut& out,
                     const WriteSparseRowsOptions& options) try {
  const core::EntryPoint entry;
  sparse::CheckWriteSparseRows(x, slots, out);
  core::EnsureTarget();
  const sparse::WriteRowsKernels& kernels = sparse::GetWriteRowsKernels();
  const SparseRows rows = out;
  const auto element = static_cast<int64_t>(SizeOf(x.dtype));
  core::Lease lease(options.pool);
  // Each task writes the slots of its residue, in order, so that of equal slots the last one wins.
  const int64_t tasks = x.rows >= kMinParallelRows ? lease.threads() : 1;
  lease.Run(tasks, [&](int64_t task, uint8_t*) {
    for (int64_t i = 0; i < x.rows; ++i) {
      const int64_t slot = slots[static_cast<size_t>(i)];
      if (slot < 0 || slot >= rows.slots || slot % tasks != task) {  // may have changed since
        continue;
      }
      const auto named = static_cast<int32_t>(slot);
      sparse::CodedRow row;
      row.from = static_cast<const uint8_t*>(x.data) + i * x.row_stride * element;
      row.from_dtype = x.dtype;
      row.format = rows.format;
      row.power_of_two_scales = options.power_of_two_scales;
      row.to = const_cast<uint8_t*>(sparse::AddressOf(rows, named).row);
      if (rows.format == SparseRowFormat::kMla584) {
        row.scales = const_cast<uint8_t*>(sparse::Mla584Scales(rows, named));
      }
      kernels.write(row);
    }
  });
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle

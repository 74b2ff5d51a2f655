// Writing index keys, and the Hadamard transform.
#include <algorithm>
#include <bit>
#include <limits>
#include <span>

#include "core/check.h"
#include "core/entry_point.h"
#include "core/lease.h"
#include "core/targets.h"
#include "riffle/indexer.h"
#include "sparse/index_keys_kernels.h"
#include "sparse/indexer_check.h"

namespace riffle {
namespace {

using sparse::NamedBytes;

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();

void CheckMatrix(const char* name, const MatrixView& x) {
  core::Check(x.dtype <= DType::kBF16, Code::kBadDType, name, " is ", Name(x.dtype),
              ", not float32, float16 or bfloat16");
  core::Check(x.rows >= 0 && x.rows <= kMaxInt, Code::kBadShape, name, ".rows = ", x.rows,
              " is not in 0..", kMaxInt);
  core::Check(x.data != nullptr || x.rows == 0 || x.cols == 0, Code::kBadShape, name,
              ".data is null");
}

core::Strided Bytes(const MatrixView& x) {
  return sparse::RowsBytes(x.data, x.rows, x.row_stride, x.cols,
                           static_cast<int64_t>(SizeOf(x.dtype)));
}

IndexKeys AsInput(const IndexKeysOut& keys) {
  return {keys.data,         keys.dtype,
          keys.num_pages,    keys.page_size,
          keys.head_dim,     keys.page_stride,
          keys.token_stride, {keys.scales.data, keys.scales.page_stride, keys.scales.token_stride},
          keys.format};
}

void CheckWrite(const MatrixView& x, const IndexSpan& slots, const IndexKeysOut& keys,
                const WriteIndexKeysOptions& options) {
  CheckMatrix("x", x);
  const IndexKeys pool = AsInput(keys);
  sparse::CheckKeys(pool);
  const bool scaled = keys.dtype == DType::kE4M3 || keys.dtype == DType::kI8;
  core::Check(keys.format != IndexKeyFormat::kPlain || keys.num_pages == 0 ||
                  scaled == (keys.scales.data != nullptr),
              Code::kBadDType, "keys are ", Name(keys.dtype),
              scaled ? " and have no scales" : " and have scales, which are not written");
  sparse::CheckSame("x.cols", x.cols, "keys.head_dim", keys.head_dim);
  sparse::CheckSame("the number of slots", static_cast<int64_t>(slots.size()), "x.rows", x.rows);
  core::Check(!options.hadamard || std::has_single_bit(static_cast<uint64_t>(x.cols)),
              Code::kBadShape, "x.cols = ", x.cols,
              " is not a power of two, as the Hadamard transform needs");
  core::CheckAddressable("x", Bytes(x));
  const NamedBytes inputs[] = {{"x", Bytes(x)}, {"slots", sparse::SpanBytes(slots)}};
  const NamedBytes outputs[] = {{"keys", sparse::KeyBytes(pool)},
                                {"keys.scales", sparse::ScaleBytes(pool)}};
  for (const NamedBytes& output : outputs) {
    sparse::CheckOutput(output, inputs);
  }
  core::Check(!core::Overlaps(outputs[0].bytes, outputs[1].bytes), Code::kOverlap,
              "keys shares memory with keys.scales");
  const int64_t slot_count = core::SaturatingMul(keys.num_pages, keys.page_size);
  for (size_t i = 0; i < slots.size(); ++i) {
    core::Check(slots[i] >= -1 && slots[i] < slot_count, Code::kBadPage, "slots[", i,
                "] = ", slots[i], " is not -1 or in 0..", slot_count - 1);
  }
}

// Where slot `slot` of a pool is.
sparse::IndexRow RowAt(const IndexKeysOut& keys, int64_t slot) {
  sparse::IndexRow row;
  const int64_t page = slot / keys.page_size;
  const int64_t token = slot % keys.page_size;
  auto* data = static_cast<uint8_t*>(keys.data);
  row.dim = static_cast<int>(keys.head_dim);
  if (keys.format != IndexKeyFormat::kPlain) {
    uint8_t* at = data + page * keys.page_stride;
    row.mxfp4 = keys.format == IndexKeyFormat::kMxFp4;
    const int64_t bytes = row.mxfp4 ? keys.head_dim / 2 : keys.head_dim;
    row.to_dtype = DType::kE4M3;
    row.to = at + token * bytes;
    row.scale = reinterpret_cast<float*>(at + keys.page_size * bytes) + token;
    return row;
  }
  const auto element = static_cast<int64_t>(SizeOf(keys.dtype));
  row.to_dtype = keys.dtype;
  row.to = data + (page * keys.page_stride + token * keys.token_stride) * element;
  if (keys.scales.data != nullptr) {
    row.scale =
        keys.scales.data + page * keys.scales.page_stride + token * keys.scales.token_stride;
  }
  return row;
}

}  // namespace

void WriteIndexKeys(const MatrixView& x, IndexSpan slots, const IndexKeysOut& keys,
                    const WriteIndexKeysOptions& options) try {
  const core::EntryPoint entry;
  CheckWrite(x, slots, keys, options);
  core::EnsureTarget();
  const sparse::IndexKeysKernels& kernels = sparse::GetIndexKeysKernels();
  const int64_t slot_count = keys.num_pages * keys.page_size;
  const auto element = static_cast<int64_t>(SizeOf(x.dtype));
  core::Lease lease(options.pool);
  // Each task writes the slots of its residue, in order, so that of equal slots the last one wins.
  const int64_t tasks = x.rows >= 256 ? lease.threads() : 1;
  lease.Run(tasks, [&](int64_t task, uint8_t*) {
    for (int64_t i = 0; i < x.rows; ++i) {
      const int64_t slot = slots[static_cast<size_t>(i)];
      if (slot < 0 || slot >= slot_count || slot % tasks != task) {  // may have changed since
        continue;
      }
      sparse::IndexRow row = RowAt(keys, slot);
      row.from = static_cast<const uint8_t*>(x.data) + i * x.row_stride * element;
      row.from_dtype = x.dtype;
      row.hadamard = options.hadamard;
      row.power_of_two_scale = options.power_of_two_scales;
      kernels.write(row);
    }
  });
} catch (...) {
  core::RethrowAsError();
}

void Hadamard(const MatrixView& x, const OutView<void>& out, const CallOptions& options) try {
  const core::EntryPoint entry;
  CheckMatrix("x", x);
  core::Check(x.cols >= 1 && x.cols <= sparse::kMaxHadamard &&
                  std::has_single_bit(static_cast<uint64_t>(x.cols)),
              Code::kBadShape, "x.cols = ", x.cols, " is not a power of two from 1 to ",
              sparse::kMaxHadamard);
  if (x.rows == 0) {
    return;
  }
  core::Check(out.data != nullptr, Code::kBadShape, "out.data is null");
  core::CheckAddressable("x", Bytes(x));
  const auto element = static_cast<int64_t>(SizeOf(x.dtype));
  const bool in_place = out.data == x.data && out.row_stride == x.row_stride;
  const NamedBytes inputs[] = {{"x", Bytes(x)}};
  sparse::CheckOutput({"out", sparse::RowsBytes(out.data, x.rows, out.row_stride, x.cols, element)},
                      std::span(inputs, in_place ? 0 : 1));
  core::EnsureTarget();
  const sparse::IndexKeysKernels& kernels = sparse::GetIndexKeysKernels();
  core::Lease lease(options.pool);
  lease.ReserveScratch(static_cast<size_t>(x.cols) * sizeof(float));
  const int64_t chunk = std::max<int64_t>(1, 16384 / x.cols);
  lease.Run((x.rows + chunk - 1) / chunk, [&](int64_t task, uint8_t* scratch) {
    for (int64_t i = task * chunk; i < std::min(x.rows, (task + 1) * chunk); ++i) {
      kernels.hadamard(x.dtype, static_cast<const uint8_t*>(x.data) + i * x.row_stride * element,
                       static_cast<uint8_t*>(out.data) + i * out.row_stride * element, x.cols,
                       reinterpret_cast<float*>(scratch));
    }
  });
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle

// CompressKv: check, list the entries, run.
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "core/check.h"
#include "core/entry_point.h"
#include "core/lease.h"
#include "core/strided.h"
#include "core/targets.h"
#include "riffle/compress_kv.h"
#include "sparse/compress_kernels.h"
#include "sparse/indexer_check.h"

namespace riffle {
namespace {

using sparse::CompressEntry;
using sparse::NamedBytes;

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxRatio = 65536;

// Calls f(first token, number of tokens, number of the first entry) for each sequence; throws where
// lengths do not fit.
template <class F>
void ForSequences(int64_t tokens, const CompressOptions& options, const F& f) {
  const IndexSpan& lens = options.cu_lens;
  const IndexSpan& first = options.first_entries;
  core::Check(lens.empty() || (lens.front() == 0 && lens.back() == tokens), Code::kBadRange,
              "cu_lens runs from ", lens.empty() ? 0 : lens.front(), " to ",
              lens.empty() ? 0 : lens.back(), ", not from 0 to the number of tokens, ", tokens);
  const size_t sequences = lens.empty() ? 1 : lens.size() - 1;
  core::Check(first.empty() || first.size() == sequences, Code::kBadShape, "first_entries has ",
              first.size(), " elements for ", sequences, " sequences");
  for (size_t b = 0; b < sequences; ++b) {
    const int64_t begin = lens.empty() ? 0 : lens[b];
    const int64_t end = lens.empty() ? tokens : lens[b + 1];
    core::Check(0 <= begin && begin <= end && end <= tokens, Code::kBadRange, "cu_lens[", b, "..",
                b + 1, "] = ", begin, ", ", end, " do not ascend from 0 to the ", tokens,
                " tokens");
    const int64_t number = first.empty() ? 0 : first[b];
    core::Check(number >= 0 && number <= kMaxInt, Code::kBadRange, "first_entries[", b,
                "] = ", number, " is not in 0..", kMaxInt);
    f(begin, end - begin, number);
  }
}

// Calls f(entry) for each entry that is made.
template <class F>
void ForEntries(int64_t tokens, const CompressOptions& options, const F& f) {
  ForSequences(tokens, options, [&](int64_t begin, int64_t length, int64_t number) {
    const int64_t before = options.overlap && number > 0 ? 1 : 0;
    for (int64_t window = before; window < length / options.ratio; ++window) {
      f(CompressEntry{begin + window * options.ratio, number + window - before});
    }
  });
}

void CheckOptions(int64_t tokens, const CompressOptions& options) {
  sparse::CheckIn("the number of tokens", tokens, 0, kMaxInt);
  core::Check(options.ratio >= 1 && options.ratio <= kMaxRatio, Code::kBadOption,
              "ratio = ", options.ratio, " is not in 1..", kMaxRatio);
}

void CheckMatrix(const char* name, const MatrixView& x) {
  core::Check(x.dtype <= DType::kBF16, Code::kBadDType, name, " is ", Name(x.dtype),
              ", not float32, float16 or bfloat16");
  core::Check(x.data != nullptr || x.rows == 0, Code::kBadShape, name, ".data is null");
}

core::Strided Bytes(const MatrixView& x) {
  return sparse::RowsBytes(x.data, x.rows, x.row_stride, x.cols,
                           static_cast<int64_t>(SizeOf(x.dtype)));
}

void CheckInputs(const MatrixView& kv, const MatrixView& gates, const CompressOptions& options) {
  CheckMatrix("kv", kv);
  CheckMatrix("gates", gates);
  CheckOptions(kv.rows, options);
  sparse::CheckSame("gates.rows", gates.rows, "kv.rows", kv.rows);
  sparse::CheckSame("gates.cols", gates.cols, "kv.cols", kv.cols);
  const int64_t unit = options.overlap ? 32 : 16;
  const int64_t max_cols = sparse::kMaxEntryDim * unit / 16;
  core::Check(kv.cols >= unit && kv.cols <= max_cols && kv.cols % unit == 0, Code::kBadShape,
              "kv.cols = ", kv.cols, " is not a multiple of ", unit, " in ", unit, "..", max_cols,
              options.overlap ? "; with overlap it is twice an entry's dim" : "");
  core::Check(options.norm_eps >= 0 && std::isfinite(options.norm_eps), Code::kBadOption,
              "norm_eps = ", options.norm_eps, " is negative or not finite");
  core::CheckAddressable("kv", Bytes(kv));
  core::CheckAddressable("gates", Bytes(gates));
}

void CheckRope(const RopeTable& rope, int64_t dim) {
  if (rope.cos_sin == nullptr) {
    return;
  }
  core::Check(rope.dim >= 2 && rope.dim <= dim && rope.dim % 2 == 0, Code::kBadShape,
              "rope.dim = ", rope.dim, " is not even in 2..", dim);
  sparse::CheckIn("rope.positions", rope.positions, 0, kMaxInt);
  core::CheckAddressable("rope.cos_sin", sparse::RowsBytes(rope.cos_sin, rope.positions,
                                                           rope.row_stride, rope.dim, 4));
}

void CheckOut(const MatrixView& kv, const MatrixView& gates, const OutView<void>& out,
              const CompressOptions& options, int64_t entries, int64_t dim) {
  core::Check(out.data != nullptr, Code::kBadShape, "out is null");
  const auto floats = [](const float* data, int64_t count) {
    return sparse::RowsBytes(data, 1, 0, count, 4);
  };
  const NamedBytes inputs[] = {
      {"kv", Bytes(kv)},
      {"gates", Bytes(gates)},
      {"gate_bias", floats(options.gate_bias, options.ratio * kv.cols)},
      {"norm_weight", floats(options.norm_weight, dim)},
      {"rope.cos_sin", sparse::RowsBytes(options.rope.cos_sin, options.rope.positions,
                                         options.rope.row_stride, options.rope.dim, 4)},
      {"cu_lens", sparse::SpanBytes(options.cu_lens)},
      {"first_entries", sparse::SpanBytes(options.first_entries)}};
  sparse::CheckOutput({"out", sparse::RowsBytes(out.data, entries, out.row_stride, dim,
                                                static_cast<int64_t>(SizeOf(kv.dtype)))},
                      inputs);
}

int64_t CountEntries(int64_t tokens, const CompressOptions& options) {
  int64_t entries = 0;
  ForEntries(tokens, options, [&](const CompressEntry& entry) {
    core::Check(
        options.rope.cos_sin == nullptr || entry.number * options.ratio < options.rope.positions,
        Code::kBadRange, "rope.positions = ", options.rope.positions, " but entry ", entry.number,
        " is at position ", entry.number * options.ratio);
    ++entries;
  });
  return entries;
}

}  // namespace

int64_t CompressedEntries(int64_t tokens, const CompressOptions& options) try {
  const core::EntryPoint entry;
  CheckOptions(tokens, options);
  CompressOptions shape = options;
  shape.rope = {};
  return CountEntries(tokens, shape);
} catch (...) {
  core::RethrowAsError();
}

void CompressKv(const MatrixView& kv, const MatrixView& gates, const OutView<void>& out,
                const CompressOptions& options) try {
  const core::EntryPoint entry_point;
  CheckInputs(kv, gates, options);
  const int64_t dim = options.overlap ? kv.cols / 2 : kv.cols;
  CheckRope(options.rope, dim);
  const int64_t count = CountEntries(kv.rows, options);
  if (count == 0) {
    return;
  }
  CheckOut(kv, gates, out, options, count, dim);
  core::EnsureTarget();
  core::Lease lease(options.pool);
  auto* entries = reinterpret_cast<CompressEntry*>(
      lease.Shared(static_cast<size_t>(count) * sizeof(CompressEntry)));
  int64_t placed = 0;
  ForEntries(kv.rows, options, [&](const CompressEntry& entry) {
    const bool fits =
        options.rope.cos_sin == nullptr || entry.number * options.ratio < options.rope.positions;
    core::Check(placed < count && fits, Code::kBadRange,
                "cu_lens or first_entries changed while the call read them");
    entries[placed++] = entry;
  });
  core::Check(placed == count, Code::kBadRange,
              "cu_lens or first_entries changed while the call read them");
  const auto bytes = [](const MatrixView& x) { return static_cast<int64_t>(SizeOf(x.dtype)); };
  sparse::CompressArgs args;
  args.kv = {static_cast<const uint8_t*>(kv.data), kv.dtype,
             core::SaturatingMul(kv.row_stride, bytes(kv))};
  args.gates = {static_cast<const uint8_t*>(gates.data), gates.dtype,
                core::SaturatingMul(gates.row_stride, bytes(gates))};
  args.dim = static_cast<int>(dim);
  args.ratio = static_cast<int>(options.ratio);
  args.overlap = options.overlap;
  args.gate_bias = options.gate_bias;
  args.norm = options.norm;
  args.norm_weight = options.norm_weight;
  args.norm_eps = options.norm_eps;
  args.rope = options.rope;
  args.out = static_cast<uint8_t*>(out.data);
  args.out_stride = core::SaturatingMul(out.row_stride, bytes(kv));
  const sparse::CompressKernels& kernels = sparse::GetCompressKernels();
  const int64_t chunk = std::max<int64_t>(1, 65536 / (options.ratio * kv.cols));
  lease.Run((count + chunk - 1) / chunk, [&](int64_t task, uint8_t*) {
    for (int64_t i = task * chunk; i < std::min(count, (task + 1) * chunk); ++i) {
      kernels.compress(args, entries[i], i);
    }
  });
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle

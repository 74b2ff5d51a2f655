// Top-k for C.
#include "riffle/topk.h"

#include <vector>

#include "c_api/convert.h"

namespace riffle::c_api {
namespace {

TopKOptions ToOptions(const riffle_topk_options* in, IndexType index_type) {
  const riffle_topk_options options = ReadOptions("options", in);
  CheckReserved("options", options.reserved);
  core::Check(options.algorithm >= RIFFLE_AUTO && options.algorithm <= RIFFLE_LANE_SORT,
              Code::kBadOption, "algorithm = ", options.algorithm,
              " is none of RIFFLE_AUTO, RIFFLE_BUCKET_MAXIMA and RIFFLE_LANE_SORT");
  TopKOptions result;
  result.algorithm = static_cast<Algorithm>(options.algorithm);
  result.sorted = !ToBool("unsorted", options.unsorted);
  result.largest = !ToBool("smallest", options.smallest);
  result.lanes = options.lanes == 0 ? result.lanes : options.lanes;
  result.pool = ToPool(options.pool);
  result.ids = {options.ids, index_type, options.ids_row_stride};
  result.index_order_if_short = ToBool("index_order_if_short", options.index_order_if_short);
  return result;
}

// Calls body with the outputs. Statistics are copied afterwards, since C and C++ have different
// structs for them.
template <typename Body>
void WithOutputs(const MatrixView& x, const riffle_topk_out* out_in, const Body& body) {
  const riffle_topk_out out = ReadSized("out", out_in);
  CheckReserved("out", out.reserved);
  std::vector<TopKStats> stats;
  if (out.stats != nullptr) {
    stats.resize(static_cast<size_t>(CheckedCount("stats", x.rows)));
  }
  body(TopKOut{out.values, out.values_stride, out.indices, out.indices_stride,
               stats.empty() ? nullptr : stats.data(), ToIndexType("index_type", out.index_type)});
  for (size_t r = 0; r < stats.size(); ++r) {
    const TopKStats& row = stats[r];
    out.stats[r] = {row.kth_value, row.ties_at_kth, row.elements_examined, row.depth, 0};
  }
}

}  // namespace
}  // namespace riffle::c_api

using namespace riffle::c_api;  // NOLINT(google-build-using-namespace): this file belongs to it

riffle_status riffle_topk(const riffle_matrix* x, int64_t k, const riffle_topk_out* out,
                          const riffle_topk_options* options) {
  return Guarded([&] {
    const riffle::MatrixView matrix = ToMatrix("x", x);
    WithOutputs(matrix, out, [&](const riffle::TopKOut& outputs) {
      riffle::TopK(matrix, k, outputs, ToOptions(options, outputs.index_type));
    });
  });
}

riffle_status riffle_topk_each(const riffle_matrix* x, const int32_t* k, const riffle_topk_out* out,
                               const riffle_topk_options* options) {
  return Guarded([&] {
    const riffle::MatrixView matrix = ToMatrix("x", x);
    const std::span<const int32_t> ks = ToSpan("k", k, matrix.rows);
    WithOutputs(matrix, out, [&](const riffle::TopKOut& outputs) {
      riffle::TopK(matrix, ks, outputs, ToOptions(options, outputs.index_type));
    });
  });
}

riffle_status riffle_topk_per_row(const riffle_matrix* x, const int32_t* starts,
                                  const int32_t* ends, int64_t k, int32_t* indices,
                                  int64_t indices_stride, const riffle_topk_options* options) {
  return Guarded([&] {
    const riffle::MatrixView matrix = ToMatrix("x", x);
    riffle::TopKPerRow(matrix, ToSpan("starts", starts, matrix.rows),
                       ToSpan("ends", ends, matrix.rows), k, {indices, indices_stride},
                       ToOptions(options, riffle::IndexType::kInt32));
  });
}

riffle_status riffle_topk_per_row_decode(const riffle_matrix* x, const int32_t* seq_lens,
                                         int32_t next_n, int64_t k, int32_t* indices,
                                         int64_t indices_stride,
                                         const riffle_topk_options* options) {
  return Guarded([&] {
    const riffle::MatrixView matrix = ToMatrix("x", x);
    riffle::core::Check(next_n >= 1, riffle::Code::kBadOption, "next_n = ", next_n,
                        " is not at least 1");
    riffle::TopKPerRowDecode(matrix, ToSpan("seq_lens", seq_lens, matrix.rows / next_n), next_n, k,
                             {indices, indices_stride},
                             ToOptions(options, riffle::IndexType::kInt32));
  });
}

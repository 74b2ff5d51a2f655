// Selection: Python's arguments to riffle/topk.h and back.
#include "riffle/topk.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "kernel_scope.h"
#include "rows.h"
#include "topk_arguments.h"

namespace riffle::python {
namespace {

struct Options {
  std::vector<int> schedule;
  TopKOptions options;

  Options(nb::handle sorted, nb::handle largest, nb::handle algorithm, nb::handle lanes,
          nb::handle depth_schedule) {
    options.sorted = Bool(sorted, "sorted");
    options.largest = Bool(largest, "largest");
    options.algorithm = AlgorithmOf(algorithm);
    options.lanes = Int32(lanes, "lanes");
    schedule = Schedule(depth_schedule);
    options.depth_schedule = schedule;
  }

  static Algorithm AlgorithmOf(nb::handle name) {
    std::string_view text;
    if (nb::try_cast(name, text)) {
      if (text == "auto") return Algorithm::kAuto;
      if (text == "bucket_maxima") return Algorithm::kBucketMaxima;
      if (text == "lane_sort") return Algorithm::kLaneSort;
    }
    ThrowValueError("algorithm = " + Repr(name) +
                    " is none of 'auto', 'bucket_maxima', 'lane_sort'");
  }

  static std::vector<int> Schedule(nb::handle depths) {
    std::vector<int> schedule;
    if (!depths.is_none()) {
      for (const nb::handle depth : Items(depths, "depth_schedule", "ints")) {
        schedule.push_back(Int32(depth, "depth_schedule"));
      }
    }
    return schedule;
  }
};

// The entry point checks the memory of each block; this checks the space between blocks.
void CheckApart(const Rows& rows, const char* name, const Rows& other, const char* other_name) {
  const auto [begin, end] = rows.Extent();
  const auto [other_begin, other_end] = other.Extent();
  if (begin < other_end && other_begin < end) {
    ThrowValueError(std::string(name) + " shares memory with " + other_name +
                    ", or lies within it");
  }
}

void CheckBlocksApart(const Rows& x, const TopKOutput& values, const TopKOutput& indices) {
  if (x.blocks() <= 1 || !values.given()) {
    return;
  }
  for (const TopKOutput* out : {&values, &indices}) {
    const char* const name = out == &values ? "out.values" : "out.indices";
    if (std::abs(out->stride()) < out->rows().cols()) {
      ThrowValueError(std::string(name) + "'s rows overlap");
    }
    CheckApart(out->rows(), name, x, "x");
  }
  CheckApart(indices.rows(), "out.indices", values.rows(), "out.values");
}

// The values and indices of `out`, both null when there is none.
struct OutPair {
  nb::object values, indices;

  explicit OutPair(nb::handle out) {
    if (out.is_none()) {
      return;
    }
    if (!(nb::isinstance<nb::tuple>(out) || nb::isinstance<nb::list>(out)) || nb::len(out) != 2) {
      ThrowTypeError("out must be a TopK, or another pair (values, indices), not " + Repr(out));
    }
    values = out[0];
    indices = out[1];
  }
};

template <typename T, typename Member>
nb::object Column(const Array& x, Element element, const std::vector<TopKStats>& stats,
                  Member member) {
  const int64_t shape[] = {static_cast<int64_t>(stats.size())};
  NewArray column = NewArrayLike(x, element, shape);
  std::transform(stats.begin(), stats.end(), static_cast<T*>(column.data),
                 [member](const TopKStats& row) { return static_cast<T>(row.*member); });
  return Finished(x, std::move(column));
}

// The bits that the library pads values with: those of -inf or the lowest integer; when selecting
// the smallest, those of +inf or the highest.
uint64_t PadBits(DType dtype, bool largest) {
  switch (dtype) {
    case DType::kF32:
      return largest ? 0xff800000u : 0x7f800000u;
    case DType::kF16:
      return largest ? 0xfc00u : 0x7c00u;
    case DType::kBF16:
      return largest ? 0xff80u : 0x7f80u;
    case DType::kF64:
      return largest ? 0xfff0000000000000u : 0x7ff0000000000000u;
    default: {
      const uint64_t lowest = IsUnsigned(dtype) ? 0 : uint64_t{1} << (8 * SizeOf(dtype) - 1);
      return largest ? lowest : ~lowest;
    }
  }
}

// Pads columns [begin, end) of a block whose largest k is below that of the whole call.
void PadColumns(const MatrixView& x, int64_t begin, int64_t end, bool largest, const TopKOut& out) {
  const uint64_t padding = PadBits(x.dtype, largest);
  const auto size = static_cast<int64_t>(SizeOf(x.dtype));
  const auto index = static_cast<int64_t>(SizeOf(out.index_type));
  for (int64_t row = 0; row < x.rows; ++row) {
    uint8_t* const values = static_cast<uint8_t*>(out.values) + row * out.values_stride * size;
    uint8_t* const indices = static_cast<uint8_t*>(out.indices) + row * out.indices_stride * index;
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(values + i * size, &padding, static_cast<size_t>(size));  // little-endian
      std::memset(indices + i * index, 0xff, static_cast<size_t>(index));
    }
  }
}

nb::object PyTopK(nb::handle x_object, nb::handle k_object, nb::handle sorted, nb::handle largest,
                  nb::handle algorithm, nb::handle lanes, nb::handle depth_schedule, nb::handle out,
                  nb::handle return_stats_object, nb::handle ids_object) {
  const bool return_stats = Bool(return_stats_object, "return_stats");
  const Array x(x_object, "x");
  const DType dtype = SelectionDType(x);
  const Rows rows(x);
  const IdsArgument ids(ids_object, x, rows);
  Options options(sorted, largest, algorithm, lanes, depth_schedule);
  const KArgument k(k_object, {x.data(), dtype, rows.rows(), rows.cols(), 0}, options.options);

  int64_t shape[kMaxAxes];
  for (int i = 0; i < x.ndim(); ++i) {
    shape[i] = x.axis(i).size;
  }
  shape[x.ndim() - 1] = k.width;
  const std::span<const int64_t> out_shape(shape, static_cast<size_t>(x.ndim()));
  const OutPair given(out);
  TopKOutput values(x, given.values, "out.values", x.element(), out_shape, rows.rows());
  TopKOutput indices(x, given.indices, "out.indices", ids.element(), out_shape, rows.rows());
  CheckBlocksApart(rows, values, indices);
  std::vector<TopKStats> stats(return_stats ? static_cast<size_t>(rows.rows()) : 0);
  {
    const KernelScope scope;
    for (int64_t block = 0; block < rows.blocks(); ++block) {
      const int64_t row = block * rows.block_rows();
      const MatrixView view{rows.Block(block), dtype, rows.block_rows(), rows.cols(),
                            rows.stride()};
      const TopKOut block_out{values.Row(row),
                              values.stride(),
                              indices.Row(row),
                              indices.stride(),
                              return_stats ? stats.data() + row : nullptr,
                              ids.At(0).type};
      options.options.ids = ids.At(row);
      if (!k.per_row) {
        TopK(view, k.width, block_out, options.options);
        continue;
      }
      const auto block_k =
          k.per_row->get().subspan(static_cast<size_t>(row), static_cast<size_t>(view.rows));
      TopK(view, block_k, block_out, options.options);
      PadColumns(view, *std::max_element(block_k.begin(), block_k.end()), k.width,
                 options.options.largest, block_out);
    }
  }
  if (!return_stats) {
    return nb::make_tuple(values.Finish(x), indices.Finish(x));
  }
  return nb::make_tuple(values.Finish(x), indices.Finish(x),
                        dtype <= DType::kBF16
                            ? Column<float>(x, Element::kF32, stats, &TopKStats::kth_value)
                            : Column<double>(x, Element::kF64, stats, &TopKStats::kth_value),
                        Column<int64_t>(x, Element::kI64, stats, &TopKStats::ties_at_kth),
                        Column<int64_t>(x, Element::kI64, stats, &TopKStats::elements_examined),
                        Column<int32_t>(x, Element::kI32, stats, &TopKStats::depth));
}

// What both per-row forms share. `call` takes (x, indices); for an x without rows it only checks k
// and throws if it is bad.
template <typename Call>
nb::object PerRow(const Array& x, int64_t k, nb::handle out, const Call& call) {
  const DType dtype = SelectionDType(x);
  CheckAxes(x, 2, "[rows, n]");
  const Rows rows(x);
  const MatrixView view{x.data(), dtype, rows.rows(), rows.cols(), rows.stride()};
  MatrixView no_rows = view;
  no_rows.rows = 0;
  call(no_rows, OutView<int32_t>{});
  const int64_t shape[] = {rows.rows(), k};
  TopKOutput indices(x, out.is_none() ? nb::handle() : out, "out", Element::kI32, shape,
                     rows.rows());
  {
    const KernelScope scope;
    call(view, OutView<int32_t>{reinterpret_cast<int32_t*>(indices.Row(0)), indices.stride()});
  }
  return indices.Finish(x);
}

nb::object PyTopKPerRow(nb::handle x_object, nb::handle starts_object, nb::handle ends_object,
                        nb::handle k_object, nb::handle sorted, nb::handle out,
                        nb::handle index_order_if_short) {
  const Array x(x_object, "x");
  const Int32Span starts(starts_object, "starts");
  const Int32Span ends(ends_object, "ends");
  const int64_t k = Int64(k_object, "k");
  TopKOptions options;
  options.sorted = Bool(sorted, "sorted");
  options.index_order_if_short = Bool(index_order_if_short, "index_order_if_short");
  return PerRow(x, k, out, [&](const MatrixView& view, const OutView<int32_t>& indices) {
    const bool empty = view.rows == 0;
    TopKPerRow(view, empty ? std::span<const int32_t>() : starts.get(),
               empty ? std::span<const int32_t>() : ends.get(), k, indices, options);
  });
}

nb::object PyTopKPerRowDecode(nb::handle x_object, nb::handle seq_lens_object, nb::handle k_object,
                              nb::handle next_n_object, nb::handle out,
                              nb::handle index_order_if_short) {
  const Array x(x_object, "x");
  const Int32Span seq_lens(seq_lens_object, "seq_lens");
  const int64_t k = Int64(k_object, "k");
  const int next_n = Int32(next_n_object, "next_n");
  TopKOptions options;
  options.index_order_if_short = Bool(index_order_if_short, "index_order_if_short");
  return PerRow(x, k, out, [&](const MatrixView& view, const OutView<int32_t>& indices) {
    const bool empty = view.rows == 0;
    TopKPerRowDecode(view, empty ? std::span<const int32_t>() : seq_lens.get(), next_n, k, indices,
                     options);
  });
}

nb::dict PyPlanTopK(nb::handle n, nb::handle k, nb::handle rows, nb::handle lanes,
                    nb::handle depth_schedule) {
  const std::vector<int> schedule = Options::Schedule(depth_schedule);
  const TopKPlan plan =
      PlanTopK(Int64(n, "n"), Int64(k, "k"), Int64(rows, "rows"), Int32(lanes, "lanes"), schedule);
  nb::list depths;
  for (const int depth : plan.depth_schedule) {
    depths.append(depth);
  }
  nb::list done;
  for (const double probability : plan.batch_done) {
    done.append(probability);
  }
  nb::dict result;
  result["algorithm"] = plan.algorithm == Algorithm::kLaneSort ? "lane_sort" : "bucket_maxima";
  result["buckets"] = plan.buckets;
  result["bucket_size"] = plan.bucket_size;
  result["depth_schedule"] = depths;
  result["batch_done"] = done;
  result["expected_depth"] = plan.expected_depth;
  result["expected_batch_depth"] = plan.expected_batch_depth;
  return result;
}

nb::object PyDepthProbabilities(nb::handle k, nb::handle lanes) {
  const std::vector<double> probabilities =
      DepthProbabilities(Int32(k, "k"), Int32(lanes, "lanes"));
  const int64_t shape[] = {static_cast<int64_t>(probabilities.size())};
  const NewArray array = NewNumPyArray(Element::kF64, shape);
  std::copy(probabilities.begin(), probabilities.end(), static_cast<double*>(array.data));
  return array.object;
}

}  // namespace

void BindTopK(nb::module_& m) {
  const auto any = nb::arg().none();  // the functions below handle None
  m.def("top_k", &PyTopK, any, any, any, any, any, any, any, any, any, any);
  m.def("top_k_per_row", &PyTopKPerRow, any, any, any, any, any, any, any);
  m.def("top_k_per_row_decode", &PyTopKPerRowDecode, any, any, any, any, any, any);
  m.def("plan_top_k", &PyPlanTopK, any, any, any, any, any);
  m.def("depth_probabilities", &PyDepthProbabilities, any, any);
}

}  // namespace riffle::python

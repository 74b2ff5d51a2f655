// The indexer of sparse attention: Python's arguments to riffle/indexer.h and back.
#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "bindings.h"
#include "index_key_pool.h"
#include "kernel_scope.h"
#include "riffle/indexer.h"
#include "sparse_arguments.h"

namespace riffle::python {
namespace {

HeadsView IndexQueries(const Array& q, bool e4m3) {
  CheckAxes(q, 3, "[tokens, heads, head_dim]");
  CheckLastAxisContiguous(q);
  return {q.data(),       IndexDType(q, e4m3), q.axis(0).size,  q.axis(1).size,
          q.axis(2).size, q.axis(0).stride,    q.axis(1).stride};
}

class Weights {
 public:
  Weights(nb::handle object, const HeadsView& q)
      : matrix_(object, "weights", Element::kF32, "[tokens, heads]") {
    if (matrix_) {
      const int64_t shape[] = {q.tokens, q.heads};
      CheckShape(matrix_.array(), shape);
    }
  }
  IndexWeights view() const { return {matrix_.data<float>(), matrix_ ? matrix_.stride() : 0}; }

 private:
  OptionalMatrix matrix_;
};

// The lengths and page table of a call.
class Batch {
 public:
  Batch(nb::handle kv_lens, nb::handle page_table, nb::handle cu_q_lens)
      : kv_lens_(kv_lens, "kv_lens"),
        table_(page_table, "page_table", Element::kI32, "[sequences, max_pages]") {
    if (!table_) {
      ThrowTypeError("page_table must be an array, not None");
    }
    view_.kv_lens = kv_lens_.get();
    table_.CheckRows(static_cast<int64_t>(view_.kv_lens.size()), "kv_lens");
    view_.page_table = table_.data<int32_t>();
    view_.max_pages = table_.cols();
    view_.page_table_stride = table_.stride();
    if (!cu_q_lens.is_none()) {
      view_.cu_q_lens = cu_q_lens_.emplace(cu_q_lens, "cu_q_lens").get();
      if (view_.cu_q_lens.empty()) {
        ThrowValueError("cu_q_lens is empty; it must have one element more than kv_lens");
      }
    }
  }
  const PagedBatch& view() const { return view_; }

 private:
  Int32Span kv_lens_;
  OptionalMatrix table_;
  std::optional<Int32Span> cu_q_lens_;
  PagedBatch view_;
};

IndexActivation ActivationOf(nb::handle name) {
  constexpr std::string_view kNames[] = {"relu", "none"};
  return static_cast<IndexActivation>(OneOf(name, "activation", kNames, "'relu', 'none'"));
}

nb::object PyIndexerLogits(nb::handle q_object, bool q_e4m3, nb::handle weights_object,
                           nb::handle keys_object, nb::handle kv_lens, nb::handle page_table,
                           nb::handle cu_q_lens, nb::handle key_scales, nb::handle key_format,
                           nb::handle ratio, nb::handle activation, nb::handle out_object) {
  const Array q(q_object, "q");
  const HeadsView view = IndexQueries(q, q_e4m3);
  const Weights weights(weights_object, view);
  const KeyPool<IndexKeys> keys(keys_object, key_scales, key_format, view.head_dim, "keys",
                                "key_scales", Access::kRead);
  const Batch batch(kv_lens, page_table, cu_q_lens);
  IndexerOptions options;
  options.ratio = Int64(ratio, "ratio");
  options.activation = ActivationOf(activation);
  // At most as many as the pages hold: the call itself rejects greater lengths.
  const int64_t cols = std::clamp<int64_t>(MaxIndexKeys(batch.view(), options.ratio), 0,
                                           batch.view().max_pages * keys.view().page_size);
  OutMatrix out(q, out_object, Element::kF32, view.tokens, cols);
  {
    const KernelScope scope;
    IndexerLogits(view, weights.view(), keys.view(), batch.view(),
                  {static_cast<float*>(out.data()), cols, out.stride()}, options);
  }
  return out.Finish();
}

// Scores over a matrix of keys [n, head_dim]; query t sees keys [starts[t], ends[t]).
nb::object PyIndexerRangeLogits(nb::handle q_object, bool q_e4m3, nb::handle weights_object,
                                nb::handle keys_object, bool key_e4m3, nb::handle scales_object,
                                nb::handle starts_object, nb::handle ends_object) {
  const Array q(q_object, "q");
  const HeadsView view = IndexQueries(q, q_e4m3);
  const Weights weights(weights_object, view);
  const Array matrix(keys_object, "keys");
  CheckAxes(matrix, 2, "[n, head_dim]");
  CheckLastAxisContiguous(matrix);
  const int64_t n = matrix.axis(0).size;
  IndexKeys keys{matrix.data(),           IndexDType(matrix, key_e4m3), 1,
                 std::max<int64_t>(n, 1), matrix.axis(1).size,          0,
                 matrix.axis(0).stride};
  std::optional<Array> scales;
  if (!scales_object.is_none()) {
    const Array& of = scales.emplace(scales_object, "key_scales");
    CheckElement(of, Element::kF32);
    CheckAxes(of, 1, "[n]");
    if (of.axis(0).size != n) {
      ThrowValueError("key_scales has shape " + of.Shape() + " but keys has " + std::to_string(n) +
                      " rows");
    }
    keys.scales = {static_cast<const float*>(of.data()), 0, of.axis(0).stride};
  }
  const Int32Span starts(starts_object, "starts");
  const Int32Span ends(ends_object, "ends");
  OutMatrix out(q, nb::none(), Element::kF32, view.tokens, n);
  if (n > 0) {
    const KernelScope scope;
    IndexerLogits(view, weights.view(), keys, starts.get(), ends.get(),
                  {static_cast<float*>(out.data()), n, out.stride()});
  }
  return out.Finish();
}

nb::object PyIndexerTopK(nb::handle q_object, bool q_e4m3, nb::handle weights_object,
                         nb::handle keys_object, nb::handle kv_lens, nb::handle page_table,
                         nb::handle k_object, nb::handle cu_q_lens, nb::handle key_scales,
                         nb::handle key_format, nb::handle ratio, nb::handle activation,
                         nb::handle block, nb::handle reduce, nb::handle first_blocks,
                         nb::handle local_blocks, nb::handle incomplete_tail,
                         nb::handle candidates_object, nb::handle candidate_span, nb::handle slots,
                         nb::handle out_object) {
  const Array q(q_object, "q");
  const HeadsView view = IndexQueries(q, q_e4m3);
  const Weights weights(weights_object, view);
  const KeyPool<IndexKeys> keys(keys_object, key_scales, key_format, view.head_dim, "keys",
                                "key_scales", Access::kRead);
  const Batch batch(kv_lens, page_table, cu_q_lens);
  const int64_t k = Int64(k_object, "k");
  constexpr std::string_view kReduce[] = {"max", "mean"};
  IndexTopKOptions options;
  options.ratio = Int64(ratio, "ratio");
  options.activation = ActivationOf(activation);
  options.block = Int64(block, "block");
  options.block_score = static_cast<BlockScore>(OneOf(reduce, "reduce", kReduce, "'max', 'mean'"));
  options.first_blocks = Int64(first_blocks, "first_blocks");
  options.local_blocks = Int64(local_blocks, "local_blocks");
  options.incomplete_tail = Bool(incomplete_tail, "incomplete_tail");
  options.slots = Bool(slots, "slots");
  options.candidate_span = Int64(candidate_span, "candidate_span");
  const OptionalMatrix candidates(candidates_object, "candidates", Element::kI32,
                                  "[tokens, candidates]");
  if (candidates) {
    candidates.CheckRows(view.tokens, "q");
    options.candidates = candidates.data<int32_t>();
    options.candidate_cols = candidates.cols();
    options.candidate_stride = candidates.stride();
  }
  // Lets the entry point check k before anything is allocated.
  PagedBatch nothing;
  HeadsView no_tokens = view;
  no_tokens.tokens = 0;
  IndexerTopK(no_tokens, {}, keys.view(), nothing, k, {}, options);
  OutMatrix out(q, out_object, Element::kI32, view.tokens, k);
  {
    const KernelScope scope;
    IndexerTopK(view, weights.view(), keys.view(), batch.view(), k,
                {static_cast<int32_t*>(out.data()), out.stride()}, options);
  }
  return out.Finish();
}

}  // namespace

void BindIndexer(nb::module_& m) {
  const auto any = nb::arg().none();  // the functions below handle None
  m.def("indexer_logits", &PyIndexerLogits, any, any, any, any, any, any, any, any, any, any, any,
        any);
  m.def("indexer_range_logits", &PyIndexerRangeLogits, any, any, any, any, any, any, any, any);
  m.def("indexer_top_k", &PyIndexerTopK, any, any, any, any, any, any, any, any, any, any, any, any,
        any, any, any, any, any, any, any, any, any);
}

}  // namespace riffle::python

// Sparse attention in XLA programs: the handlers of riffle.jax.indexer_top_k and sparse_attention.
// An operand that is not given has no elements.
#include <cstdint>
#include <string_view>
#include <vector>

#include "bindings.h"
#include "riffle/indexer.h"
#include "riffle/sparse_attention.h"
#include "xla_call.h"
#include "xla_operands.h"

namespace riffle::python {
namespace {

DType IndexDTypeOf(ffi::DataType type, bool e4m3) {
  if (e4m3) {
    Require(type == ffi::DataType::kU8, "codes of float8_e4m3fn are not uint8");
    return DType::kE4M3;
  }
  return type == ffi::DataType::kS8 ? DType::kI8 : DTypeOf(type);
}

const float* FloatsAt(const Batched& x, int64_t item, const Batched& result) {
  Require(x.type() == ffi::DataType::kF32, "an operand is not float32");
  return x.size() == 0 ? nullptr : reinterpret_cast<const float*>(x.At(item, result));
}

const int32_t* OptionalInt32s(const Batched& x, int64_t item, const Batched& result) {
  return x.size() == 0 ? nullptr : Int32sAt(x, item, result).data();
}

// `format`: 0 plain, 1 codes of float8_e4m3fn, else an IndexKeyFormat + 1.
IndexKeys KeysAt(const Batched& keys, const Batched& scales, int64_t format, int64_t head_dim,
                 int64_t item, const Batched& result) {
  IndexKeys pool;
  pool.data = keys.At(item, result);
  pool.num_pages = keys.axis(0);
  pool.head_dim = head_dim;
  if (format <= 1) {
    pool.dtype = IndexDTypeOf(keys.type(), format == 1);
    pool.page_size = keys.axis(1);
    pool.page_stride = pool.page_size * head_dim;
    pool.token_stride = head_dim;
    pool.scales = {FloatsAt(scales, item, result), pool.page_size, 1};
    return pool;
  }
  Require(keys.type() == ffi::DataType::kU8, "keys are not uint8");
  pool.format = static_cast<IndexKeyFormat>(format - 1);
  pool.dtype = DType::kU8;
  const int64_t row = pool.format == IndexKeyFormat::kMxFp4 ? head_dim / 2 : head_dim;
  pool.page_size = keys.axis(1) / (row + 4);
  pool.page_stride = keys.axis(1);
  return pool;
}

// q [tokens, heads, d], weights [tokens, heads], keys [pages, page_size, d] or [pages, bytes],
// key_scales [pages, page_size], kv_lens [B], page_table [B, max_pages], cu_q_lens [B + 1],
// candidates [tokens, c] -> [tokens, k]
ffi::Error XlaIndexerTopK(ffi::AnyBuffer q_buffer, ffi::AnyBuffer weights_buffer,
                          ffi::AnyBuffer keys_buffer, ffi::AnyBuffer scales_buffer,
                          ffi::AnyBuffer kv_lens_buffer, ffi::AnyBuffer table_buffer,
                          ffi::AnyBuffer cu_buffer, ffi::AnyBuffer candidates_buffer,
                          ffi::Result result, bool q_e4m3, int64_t key_format, int64_t ratio,
                          bool relu, int64_t block, bool mean, int64_t first_blocks,
                          int64_t local_blocks, bool incomplete_tail, int64_t candidate_span,
                          bool slots) {
  return Run([&] {
    const Batched q(q_buffer, 3), weights(weights_buffer, 2), scales(scales_buffer, 2),
        kv_lens(kv_lens_buffer, 1), table(table_buffer, 2), cu(cu_buffer, 1),
        candidates(candidates_buffer, 2), out(*result, 2);
    const Batched keys(keys_buffer, key_format <= 1 ? 3 : 2);
    const int64_t tokens = q.axis(0), heads = q.axis(1), dim = q.axis(2), k = out.axis(1);
    Require(out.type() == ffi::DataType::kS32 && out.axis(0) == tokens,
            "the result is not int32 [tokens, k]");
    for (int64_t item = 0; item < out.items(); ++item) {
      IndexTopKOptions options;
      options.activation = relu ? IndexActivation::kRelu : IndexActivation::kNone;
      options.ratio = ratio;
      options.block = block;
      options.block_score = mean ? BlockScore::kMean : BlockScore::kMax;
      options.first_blocks = first_blocks;
      options.local_blocks = local_blocks;
      options.incomplete_tail = incomplete_tail;
      options.slots = slots;
      options.candidates = OptionalInt32s(candidates, item, out);
      options.candidate_cols = options.candidate_stride = candidates.axis(1);
      options.candidate_span = candidate_span;
      PagedBatch batch;
      if (cu.size() > 0) {
        batch.cu_q_lens = {IndicesAt(cu, item, out), static_cast<size_t>(cu.size())};
      }
      batch.kv_lens = {IndicesAt(kv_lens, item, out), static_cast<size_t>(kv_lens.size())};
      batch.page_table = IndicesAt(table, item, out);
      batch.max_pages = batch.page_table_stride = table.axis(1);
      IndexerTopK(
          {q.At(item, out), IndexDTypeOf(q.type(), q_e4m3), tokens, heads, dim, heads * dim, dim},
          {FloatsAt(weights, item, out), heads}, KeysAt(keys, scales, key_format, dim, item, out),
          batch, k, {reinterpret_cast<int32_t*>(out.data()) + item * tokens * k, k}, options);
    }
  });
}

// A scope of a call, four operands: rows [slots, d or bytes] or [pages, page_size, bytes], slots
// [tokens, n], lengths [tokens], scales [slots or 1, groups of d].
struct ScopeOperands {
  static constexpr size_t kOperands = 4;
  static constexpr int64_t kFirstBlocks = 3;

  Batched rows, slots, lengths, scales;
  SparseRowFormat format;
  KvFormat blocks;

  // `format`: a SparseRowFormat, or a KvFormat that is not plain, from kFirstBlocks on.
  static ScopeOperands From(const ffi::RemainingArgs& args, size_t first, int64_t format) {
    Require(format < kFirstBlocks + kNumKvFormats - 1, "a row format is unknown");
    const bool in_blocks = format >= kFirstBlocks;
    const auto row_format =
        in_blocks ? SparseRowFormat::kPlain : static_cast<SparseRowFormat>(format);
    return {Batched(args[first], row_format == SparseRowFormat::kMla584 ? 3 : 2),
            Batched(args[first + 1], 2),
            Batched(args[first + 2], 1),
            Batched(args[first + 3], 2),
            row_format,
            in_blocks ? static_cast<KvFormat>(format - kFirstBlocks + 1) : KvFormat::kPlain};
  }

  SparseScope At(int64_t item, const Batched& result) const {
    SparseScope scope;
    scope.rows.data = rows.At(item, result);
    scope.rows.format = format;
    scope.rows.blocks = blocks;
    scope.rows.dtype = KvDTypeOf(rows.type());
    scope.rows.slots = rows.axis(0);
    scope.rows.row_dim = rows.axis(1);
    scope.rows.row_stride = rows.axis(1);
    if (blocks != KvFormat::kPlain) {
      scope.rows.row_dim = rows.axis(1) / BlockBytes(blocks) * 32;
    } else if (format == SparseRowFormat::kMla656) {
      scope.rows.row_dim = 576;
    } else if (format == SparseRowFormat::kMla584) {
      scope.rows.row_dim = 512;
      scope.rows.page_size = rows.axis(1);
      scope.rows.slots *= scope.rows.page_size;
      scope.rows.page_stride = scope.rows.page_size * 584;
    }
    if (scales.size() > 0) {
      scope.rows.scales = ScalesAt(item, result);
    }
    scope.slots = OptionalInt32s(slots, item, result);
    scope.cols = scope.slots_stride = slots.axis(1);
    scope.lengths = OptionalInt32s(lengths, item, result);
    return scope;
  }

 private:
  KvScales ScalesAt(int64_t item, const Batched& result) const {
    Require(scales.axis(0) == 1 || scales.axis(0) == rows.axis(0),
            "scales do not broadcast to their rows");
    const int64_t groups = scales.axis(1);
    KvScales view;
    view.data = scales.At(item, result);
    view.dtype = KvDTypeOf(scales.type());
    view.token_stride = scales.axis(0) == 1 ? 0 : groups;
    if (groups > 1) {
      view.group = rows.axis(1) / groups;
      view.group_stride = 1;
    }
    return view;
  }
};

// q [tokens, heads, d], sinks [heads], scopes -> out [tokens, heads, value_dim], lse [tokens,
// heads]. Each scope's row format is four bits of `formats`.
ffi::Error XlaSparseAttention(ffi::AnyBuffer q_buffer, ffi::AnyBuffer sinks_buffer,
                              ffi::RemainingArgs scopes, ffi::Result out_result,
                              ffi::Result lse_result, float scale, int64_t formats,
                              bool ignore_invalid) {
  return Run([&] {
    const Batched q(q_buffer, 3), sinks(sinks_buffer, 1), out(*out_result, 3), lse(*lse_result, 2);
    const int64_t tokens = q.axis(0), heads = q.axis(1), dim = q.axis(2), value_dim = out.axis(2);
    Require(out.type() == q.type() && lse.type() == ffi::DataType::kF32 && out.axis(0) == tokens &&
                out.axis(1) == heads && lse.size() == tokens * heads &&
                scopes.size() % ScopeOperands::kOperands == 0,
            "the results are not of q's tokens and heads");
    std::vector<ScopeOperands> operands;
    for (size_t s = 0; s < scopes.size() / ScopeOperands::kOperands; ++s) {
      operands.push_back(
          ScopeOperands::From(scopes, s * ScopeOperands::kOperands, formats >> (4 * s) & 15));
    }
    for (int64_t item = 0; item < out.items(); ++item) {
      std::vector<SparseScope> views;
      for (const ScopeOperands& scope : operands) {
        views.push_back(scope.At(item, out));
      }
      SparseAttentionOptions options;
      options.scale = scale;
      options.value_dim = value_dim;
      options.ignore_invalid = ignore_invalid;
      if (const float* logits = FloatsAt(sinks, item, out); logits != nullptr) {
        options.sinks = {logits, static_cast<size_t>(sinks.size())};
      }
      SparseAttention({q.At(item, out), DTypeOf(q.type()), tokens, heads, dim, heads * dim, dim},
                      views,
                      {out.At(item, out), heads * value_dim, value_dim,
                       reinterpret_cast<float*>(lse.data()) + item * tokens * heads, heads},
                      options);
    }
  });
}

constexpr std::string_view kTopKAttributes[] = {
    "q_e4m3",       "key_format",   "ratio",           "relu",           "block", "mean",
    "first_blocks", "local_blocks", "incomplete_tail", "candidate_span", "slots"};
constexpr std::string_view kAttentionAttributes[] = {"scale", "formats", "ignore_invalid"};

}  // namespace

void BindXlaSparse(nanobind::module_& m) {
  const auto capsule = [](xla::Handler* handler) {
    return nanobind::capsule(reinterpret_cast<void*>(handler));
  };
  nanobind::object handlers = m.attr("xla_handlers");
  handlers["riffle_indexer_top_k"] = capsule(ffi::Handler<XlaIndexerTopK, kTopKAttributes>);
  handlers["riffle_sparse_attention"] =
      capsule(ffi::Handler<XlaSparseAttention, kAttentionAttributes>);
}

}  // namespace riffle::python

#include "sparse/attend_check.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "sparse/indexer_check.h"

namespace riffle::sparse {
namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxHeads = 1024;

core::Strided RowsOf(const SparseRows& rows) {
  const auto element = static_cast<int64_t>(SizeOf(rows.dtype));
  const int64_t page = rows.page_size == 0 ? std::max<int64_t>(rows.slots, 1) : rows.page_size;
  const int64_t pages = (rows.slots + page - 1) / page;
  if (rows.format == SparseRowFormat::kMla584) {
    return {rows.data, {pages, 1, 1}, {rows.page_stride, 0, 0}, core::SaturatingMul(page, 584)};
  }
  const int64_t bytes = rows.format == SparseRowFormat::kMla656 ? 656 : rows.row_dim * element;
  return {rows.data,
          {std::min(page, rows.slots), pages, 1},
          {core::SaturatingMul(rows.row_stride, element),
           core::SaturatingMul(rows.page_stride, element), 0},
          bytes};
}

// Texts name scope `s`; they are built only where a check fails.
void CheckRows(size_t s, const SparseRows& rows, int64_t row_dim) {
  core::Check(rows.format <= SparseRowFormat::kMla584, Code::kBadOption, "scopes[", s,
              "].rows.format = ", static_cast<int>(rows.format), " is unknown");
  if (rows.format == SparseRowFormat::kPlain) {
    core::Check(rows.dtype <= DType::kBF16, Code::kBadDType, "scopes[", s, "].rows are ",
                Name(rows.dtype), ", not float32, float16 or bfloat16");
  } else {
    core::Check(rows.dtype == DType::kU8, Code::kBadDType, "scopes[", s, "].rows are ",
                Name(rows.dtype), "; the format ", Name(rows.format), " has uint8");
    const int64_t dim = rows.format == SparseRowFormat::kMla656 ? 576 : 512;
    core::Check(rows.row_dim == dim, Code::kBadShape, "scopes[", s,
                "].rows.row_dim = ", rows.row_dim, "; the format ", Name(rows.format), " has ", dim,
                " elements");
  }
  core::Check(rows.row_dim == row_dim, Code::kBadShape, "scopes[", s,
              "].rows.row_dim = ", rows.row_dim, " but q.head_dim = ", row_dim);
  core::Check(rows.slots >= 0 && rows.slots <= kMaxInt, Code::kBadShape, "scopes[", s,
              "].rows.slots = ", rows.slots, " is not in 0..", kMaxInt);
  const int64_t least = rows.format == SparseRowFormat::kMla584 ? 1 : 0;
  core::Check(rows.page_size >= least && rows.page_size <= kMaxInt, Code::kBadShape, "scopes[", s,
              "].rows.page_size = ", rows.page_size, " is not in ", least, "..", kMaxInt);
  core::Check(rows.format != SparseRowFormat::kMla584 ||
                  rows.page_stride >= core::SaturatingMul(rows.page_size, 584),
              Code::kBadShape, "scopes[", s, "].rows.page_stride = ", rows.page_stride,
              " is less than the ", rows.page_size, " rows of 584 bytes of a page");
  core::Check(rows.data != nullptr || rows.slots == 0, Code::kBadShape, "scopes[", s,
              "].rows.data is null");
  core::CheckAddressable("rows", RowsOf(rows));
}

void CheckSlots(size_t s, const SparseScope& scope, int64_t tokens, bool ignore) {
  core::Check(scope.cols >= 0 && scope.cols <= kMaxInt / 8, Code::kBadShape, "scopes[", s,
              "].cols = ", scope.cols, " is not in 0..", kMaxInt / 8);
  if (tokens == 0 || scope.cols == 0) {
    return;
  }
  core::Check(scope.slots != nullptr, Code::kBadShape, "scopes[", s, "].slots is null");
  core::CheckAddressable("slots",
                         RowsBytes(scope.slots, tokens, scope.slots_stride, scope.cols, 4));
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t length = scope.lengths == nullptr ? scope.cols : scope.lengths[t];
    core::Check(length >= 0 && length <= scope.cols, Code::kBadRange, "scopes[", s, "].lengths[", t,
                "] = ", length, " is not in 0..", scope.cols);
    const int32_t* slots = scope.slots + t * scope.slots_stride;
    for (int64_t i = 0; i < length && !ignore; ++i) {
      core::Check(slots[i] >= -1 && slots[i] < scope.rows.slots, Code::kBadPage, "scopes[", s,
                  "].slots[", t, ",", i, "] = ", slots[i], " is not -1 or in 0..",
                  scope.rows.slots - 1, "; ignore_invalid skips it");
    }
  }
}

void CheckScopes(const HeadsView& q, std::span<const SparseScope> scopes,
                 const SparseAttentionOptions& options) {
  core::Check(!scopes.empty() && scopes.size() <= kMaxScopes, Code::kBadShape, "scopes has ",
              scopes.size(), " elements, not 1 to ", kMaxScopes);
  for (size_t s = 0; s < scopes.size(); ++s) {
    CheckRows(s, scopes[s].rows, q.head_dim);
    CheckSlots(s, scopes[s], q.tokens, options.ignore_invalid);
  }
}

void CheckQuery(const HeadsView& q, const SparseAttentionOptions& options) {
  core::Check(q.dtype <= DType::kBF16, Code::kBadDType, "q is ", Name(q.dtype),
              ", not float32, float16 or bfloat16");
  CheckIn("q.tokens", q.tokens, 0, kMaxInt);
  CheckIn("q.heads", q.heads, 1, kMaxHeads);
  CheckIn("q.head_dim", q.head_dim, 32, kMaxRowDim);
  core::Check(q.head_dim % 16 == 0, Code::kBadShape, "q.head_dim = ", q.head_dim,
              " is not a multiple of 16");
  core::Check(q.data != nullptr || q.tokens == 0, Code::kBadShape, "q.data is null");
  core::CheckAddressable("q", HeadsBytes(q));
  core::Check(
      options.value_dim >= 0 && options.value_dim <= q.head_dim && options.value_dim % 16 == 0,
      Code::kBadOption, "value_dim = ", options.value_dim, " is not a multiple of 16 in 0..",
      q.head_dim);
  const float scale = options.scale.value_or(1.0f);
  core::Check(std::isfinite(scale), Code::kBadOption, "scale = ", scale, " is not finite");
  core::Check(options.sinks.empty() || static_cast<int64_t>(options.sinks.size()) == q.heads,
              Code::kBadShape, "sinks has ", options.sinks.size(), " elements for ", q.heads,
              " heads");
  for (size_t h = 0; h < options.sinks.size(); ++h) {
    core::Check(!std::isnan(options.sinks[h]), Code::kBadOption, "sinks[", h, "] is NaN");
  }
}

void CheckOut(const HeadsView& q, std::span<const SparseScope> scopes, const AttentionOut& out,
              const SparseAttentionOptions& options) {
  if (q.tokens == 0) {
    return;
  }
  core::Check(out.data != nullptr, Code::kBadShape, "out.data is null");
  HeadsView shape = q;
  shape.data = out.data;
  shape.head_dim = options.value_dim != 0 ? options.value_dim : q.head_dim;
  shape.token_stride = out.token_stride;
  shape.head_stride = out.head_stride;
  const NamedBytes outputs[] = {
      {"out", HeadsBytes(shape)},
      {"lse", RowsBytes(out.lse, q.tokens, out.lse_token_stride, q.heads, 4)}};
  for (const NamedBytes& output : outputs) {
    const NamedBytes inputs[] = {{"q", HeadsBytes(q)},
                                 {"sinks",
                                  {options.sinks.data(),
                                   {1, 1, 1},
                                   {0, 0, 0},
                                   static_cast<int64_t>(options.sinks.size_bytes())}}};
    CheckOutput(output, inputs);
    for (const SparseScope& scope : scopes) {
      const NamedBytes of_scope[] = {
          {"rows", RowsOf(scope.rows)},
          {"slots", RowsBytes(scope.slots, q.tokens, scope.slots_stride, scope.cols, 4)},
          {"lengths", RowsBytes(scope.lengths, 1, 0, q.tokens, 4)}};
      CheckOutput(output, of_scope);
    }
  }
  core::Check(!core::Overlaps(outputs[0].bytes, outputs[1].bytes), Code::kOverlap,
              "out shares memory with lse");
}

}  // namespace

void CheckSparseAttention(const HeadsView& q, std::span<const SparseScope> scopes,
                          const AttentionOut& out, const SparseAttentionOptions& options) {
  CheckQuery(q, options);
  CheckScopes(q, scopes, options);
  CheckOut(q, scopes, out, options);
}

}  // namespace riffle::sparse

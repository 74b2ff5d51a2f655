#include "sparse/attend_check.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/kv_check.h"
#include "core/check.h"
#include "sparse/indexer_check.h"
#include "sparse/row_pages.h"

namespace riffle::sparse {
namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxHeads = 1024;
constexpr const char* kRows[kMaxScopes] = {"scopes[0].rows", "scopes[1].rows", "scopes[2].rows",
                                           "scopes[3].rows", "scopes[4].rows", "scopes[5].rows",
                                           "scopes[6].rows", "scopes[7].rows"};

core::Strided RowsOf(const SparseRows& rows) {
  const auto element = static_cast<int64_t>(SizeOf(rows.dtype));
  const int64_t page = rows.page_size == 0 ? std::max<int64_t>(rows.slots, 1) : rows.page_size;
  const int64_t pages = (rows.slots + page - 1) / page;
  if (rows.format == SparseRowFormat::kMla584) {
    return {rows.data, {pages, 1, 1}, {rows.page_stride, 0, 0}, core::SaturatingMul(page, 584)};
  }
  const int64_t bytes =
      rows.format == SparseRowFormat::kMla656 ? 656 : PlainRowBytes(rows, rows.row_dim);
  return {rows.data,
          {std::min(page, rows.slots), pages, 1},
          {core::SaturatingMul(rows.row_stride, element),
           core::SaturatingMul(rows.page_stride, element), 0},
          bytes};
}

// Treats a row's scales as one range of bytes, including the gaps between groups.
core::Strided ScalesOf(const SparseRows& rows) {
  if (rows.scales.data == nullptr) {
    return {};
  }
  const int64_t page = rows.page_size == 0 ? std::max<int64_t>(rows.slots, 1) : rows.page_size;
  PagedKv kv;
  kv.num_pages = (rows.slots + page - 1) / page;
  kv.page_size = std::min(page, rows.slots);
  kv.kv_heads = 1;
  kv.head_dim = rows.row_dim;
  kv.scales = rows.scales;
  return attention::KvScaleBytes(kv);
}

// `name` is for texts, which are built only where a check fails.
void CheckPlainRows(const char* name, const SparseRows& rows) {
  const bool in_blocks = rows.blocks != KvFormat::kPlain;
  core::Check(static_cast<int>(rows.blocks) < kNumKvFormats, Code::kBadOption, name,
              ".blocks = ", static_cast<int>(rows.blocks), " is unknown");
  core::Check(!in_blocks || rows.dtype == DType::kU8, Code::kBadDType, name, " of ",
              Name(rows.blocks), " are ", Name(rows.dtype), ", not uint8, the bytes of its blocks");
  const bool scaled =
      rows.dtype == DType::kE4M3 || rows.dtype == DType::kE5M2 || rows.dtype == DType::kI8;
  core::Check(in_blocks || rows.dtype <= DType::kBF16 || scaled, Code::kBadDType, name, " are ",
              Name(rows.dtype),
              ", not float32, float16, bfloat16, float8_e4m3fn, float8_e5m2 or int8");
  core::Check(!in_blocks || rows.row_dim % 32 == 0, Code::kBadShape, name,
              ".row_dim = ", rows.row_dim, " is not a multiple of 32, the elements of a block of ",
              Name(rows.blocks));
  const KvScales& scales = rows.scales;
  core::Check(scales.divisor > 0 && std::isfinite(scales.divisor), Code::kBadOption, name,
              ".scales.divisor = ", scales.divisor, " is not positive and finite");
  if (scales.data == nullptr && scales.divisor == 1.0f) {
    return;
  }
  core::Check(scaled, Code::kBadDType, name, " are ",
              in_blocks ? Name(rows.blocks) : Name(rows.dtype),
              " and have scales; only float8_e4m3fn, float8_e5m2 and int8 take them");
  core::Check(scales.dtype <= DType::kBF16 || scales.dtype == DType::kE8M0, Code::kBadDType, name,
              ".scales are ", Name(scales.dtype),
              ", not float32, float16, bfloat16 or float8_e8m0fnu");
  const int64_t group = scales.group;
  core::Check((group == 0 || group == 32 || group == 64 || group == 128) &&
                  (group == 0 || rows.row_dim % group == 0),
              Code::kBadShape, name, ".scales.group = ", group,
              " is not 0 (a row has one scale), or 32, 64 or 128 and a divisor of row_dim = ",
              rows.row_dim);
  constexpr int64_t kMaxStride = int64_t{1} << 48;
  core::Check(scales.group_stride > -kMaxStride && scales.group_stride < kMaxStride,
              Code::kBadShape, name, ".scales.group_stride = ", scales.group_stride,
              " does not fit an address");
}

// Elements that share a scale. value_dim must be a multiple of it.
int64_t ScaleGroup(const SparseRows& rows) {
  return rows.format != SparseRowFormat::kPlain ? 1
         : rows.blocks != KvFormat::kPlain      ? 32
         : rows.scales.data == nullptr          ? 1
                                                : std::max<int64_t>(rows.scales.group, 1);
}

// Checks the pool's size, pages and addresses.
void CheckPool(const char* name, const SparseRows& rows) {
  core::Check(rows.slots >= 0 && rows.slots <= kMaxInt, Code::kBadShape, name,
              ".slots = ", rows.slots, " is not in 0..", kMaxInt);
  const int64_t min_page_size = rows.format == SparseRowFormat::kMla584 ? 1 : 0;
  core::Check(rows.page_size >= min_page_size && rows.page_size <= kMaxInt, Code::kBadShape, name,
              ".page_size = ", rows.page_size, " is not in ", min_page_size, "..", kMaxInt);
  core::Check(rows.format != SparseRowFormat::kMla584 ||
                  rows.page_stride >= core::SaturatingMul(rows.page_size, 584),
              Code::kBadShape, name, ".page_stride = ", rows.page_stride, " is less than the ",
              rows.page_size, " rows of 584 bytes of a page");
  core::Check(rows.data != nullptr || rows.slots == 0, Code::kBadShape, name, ".data is null");
  core::CheckAddressable("rows", RowsOf(rows));
  core::CheckAddressable("rows.scales", ScalesOf(rows));
}

void CheckRows(const char* name, const SparseRows& rows, int64_t row_dim) {
  core::Check(rows.format <= SparseRowFormat::kMla584, Code::kBadOption, name,
              ".format = ", static_cast<int>(rows.format), " is unknown");
  if (rows.format == SparseRowFormat::kPlain) {
    CheckPlainRows(name, rows);
  } else {
    core::Check(rows.scales.data == nullptr && rows.scales.divisor == 1.0f &&
                    rows.blocks == KvFormat::kPlain,
                Code::kBadOption, name, " of ", Name(rows.format),
                " have scales of their own and are not in blocks");
    core::Check(rows.dtype == DType::kU8, Code::kBadDType, name, " are ", Name(rows.dtype),
                "; the format ", Name(rows.format), " has uint8");
    const int64_t dim = rows.format == SparseRowFormat::kMla656 ? 576 : 512;
    core::Check(rows.row_dim == dim, Code::kBadShape, name, ".row_dim = ", rows.row_dim,
                "; the format ", Name(rows.format), " has ", dim, " elements");
  }
  core::Check(rows.row_dim == row_dim, Code::kBadShape, name, ".row_dim = ", rows.row_dim,
              " but q.head_dim = ", row_dim);
  CheckPool(name, rows);
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
    CheckRows(kRows[s], scopes[s].rows, q.head_dim);
    const int64_t group = ScaleGroup(scopes[s].rows);
    core::Check(options.value_dim % group == 0, Code::kBadOption, "value_dim = ", options.value_dim,
                " is not a multiple of ", group, ", the elements that share a scale in ", kRows[s]);
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
          {"rows.scales", ScalesOf(scope.rows)},
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

void CheckWriteSparseRows(const MatrixView& x, const IndexSpan& slots, const SparseRowsOut& out) {
  const SparseRows rows = out;
  core::Check(rows.format == SparseRowFormat::kMla656 || rows.format == SparseRowFormat::kMla584,
              Code::kBadOption, "rows.format = ", Name(rows.format), ", not mla656 or mla584");
  core::Check(x.dtype <= DType::kBF16, Code::kBadDType, "x is ", Name(x.dtype),
              ", not float32, float16 or bfloat16");
  CheckIn("x.rows", x.rows, 0, kMaxInt);
  core::Check(x.cols == rows.row_dim, Code::kBadShape, "x.cols = ", x.cols, "; rows of ",
              Name(rows.format), " have ", rows.row_dim, " elements");
  core::Check(x.data != nullptr || x.rows == 0, Code::kBadShape, "x.data is null");
  CheckSame("the number of slots", static_cast<int64_t>(slots.size()), "x.rows", x.rows);
  CheckPool("rows", rows);
  const core::Strided from =
      RowsBytes(x.data, x.rows, x.row_stride, x.cols, static_cast<int64_t>(SizeOf(x.dtype)));
  core::CheckAddressable("x", from);
  const NamedBytes inputs[] = {{"x", from}, {"slots", SpanBytes(slots)}};
  CheckOutput({"rows", RowsOf(rows)}, inputs);
  for (size_t i = 0; i < slots.size(); ++i) {
    core::Check(slots[i] >= -1 && slots[i] < rows.slots, Code::kBadPage, "slots[", i,
                "] = ", slots[i], " is not -1 or in 0..", rows.slots - 1);
  }
}

}  // namespace riffle::sparse

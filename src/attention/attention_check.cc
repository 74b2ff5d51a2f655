#include "attention/attention_check.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/kv_check.h"
#include "core/check.h"
#include "core/strided.h"

namespace riffle::attention {
namespace {

constexpr int64_t kMaxHeads = 1 << 16;
constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxKvLen = kMaxInt - 1023;  // rounded up to whole KV splits it is an int

void CheckIn(const char* name, int64_t value, int64_t low, int64_t high) {
  core::Check(value >= low && value <= high, Code::kBadShape, name, " = ", value, " is not in ",
              low, "..", high);
}

void CheckDType(const char* name, DType dtype) {
  core::Check(dtype <= DType::kBF16, Code::kBadDType, name, " has the unknown dtype ",
              static_cast<int>(dtype));
}

void CheckHeads(const char* name, const HeadsView& x) {
  CheckDType(name, x.dtype);
  core::Check(x.tokens >= 0 && x.tokens <= kMaxInt, Code::kBadShape, name, ".tokens = ", x.tokens,
              " is not in 0..", kMaxInt);
  core::Check(x.heads >= 1 && x.heads <= kMaxHeads, Code::kBadShape, name, ".heads = ", x.heads,
              " is not in 1..", kMaxHeads);
  CheckHeadDim(name, x.head_dim);
}

void CheckHeadsData(const char* name, const HeadsView& x) {
  core::Check(x.data != nullptr || x.tokens == 0, Code::kBadShape, name, ".data is null");
}

void CheckSame(const char* what, int64_t a, const char* other, int64_t b) {
  core::Check(a == b, Code::kBadShape, what, " = ", a, " but ", other, " = ", b);
}

void CheckOptions(const AttentionOptions& options, int64_t heads) {
  const float scale = options.scale.value_or(1.0f);
  core::Check(std::isfinite(scale), Code::kBadOption, "scale = ", scale, " is not finite");
  const int64_t window = options.window.value_or(1);
  core::Check(window >= 1, Code::kBadOption, "window = ", window, " is not at least 1");
  const int64_t right = options.window_right.value_or(0);
  core::Check(right >= 0, Code::kBadOption, "window_right = ", right, " is negative");
  core::Check(!options.causal || right == 0, Code::kBadOption, "window_right = ", right,
              " but causal is set, under which no query sees a later key; set causal to false");
  const float cap = options.soft_cap.value_or(1.0f);
  core::Check(cap > 0 && std::isfinite(cap), Code::kBadOption, "soft_cap = ", cap,
              " is not positive and finite");
  if (!options.sinks.empty()) {
    CheckSame("the number of sinks", static_cast<int64_t>(options.sinks.size()), "q.heads", heads);
  }
  if (!options.alibi_slopes.empty()) {
    CheckSame("the number of alibi_slopes", static_cast<int64_t>(options.alibi_slopes.size()),
              "q.heads", heads);
  }
  for (size_t i = 0; i < options.alibi_slopes.size(); ++i) {
    core::Check(std::isfinite(options.alibi_slopes[i]), Code::kBadOption, "alibi_slopes[", i,
                "] = ", options.alibi_slopes[i], " is not finite");
  }
  for (size_t i = 0; i < options.sinks.size(); ++i) {
    const float sink = options.sinks[i];
    core::Check(sink < std::numeric_limits<float>::infinity(), Code::kBadOption, "sinks[", i,
                "] = ", sink, " is not below +inf");
  }
}

void CheckMask(const AttentionMask& mask, const HeadsView& q) {
  if (mask.data == nullptr) {
    return;
  }
  core::Check(mask.dtype <= DType::kBF16 || mask.dtype == DType::kU8, Code::kBadDType,
              "mask is of ", Name(mask.dtype),
              "; float32, float16 and bfloat16 (added) and uint8 (0: not seen) are possible");
  core::Check(mask.tokens == 1 || mask.tokens == q.tokens, Code::kBadShape,
              "mask.tokens = ", mask.tokens, " is neither 1 nor q.tokens = ", q.tokens);
  core::Check(mask.heads == 1 || mask.heads == q.heads, Code::kBadShape,
              "mask.heads = ", mask.heads, " is neither 1 nor q.heads = ", q.heads);
  CheckIn("mask.keys", mask.keys, 0, kMaxInt);
}

// The number of queries of sequence b. Checks that cu_q_lens is in range and ascends.
int64_t QueryLength(const PagedBatch& batch, size_t b, int64_t tokens) {
  if (batch.cu_q_lens.empty()) {
    return 1;
  }
  const int64_t begin = batch.cu_q_lens[b];
  const int64_t end = batch.cu_q_lens[b + 1];
  core::Check(begin >= 0 && begin <= end && end <= tokens, Code::kBadRange, "cu_q_lens[", b, "..",
              b + 1, "] = ", begin, ", ", end, " do not ascend from 0 to the ", tokens,
              " tokens of q");
  return end - begin;
}

void CheckQueryLengths(const PagedBatch& batch, int64_t tokens) {
  const auto sequences = static_cast<int64_t>(batch.kv_lens.size());
  CheckIn("the number of kv_lens", sequences, 0, kMaxInt - 1);
  if (batch.cu_q_lens.empty()) {
    CheckSame("q.tokens", tokens, "the number of kv_lens (one query a sequence)", sequences);
    return;
  }
  CheckSame("the number of cu_q_lens", static_cast<int64_t>(batch.cu_q_lens.size()),
            "the number of kv_lens + 1", sequences + 1);
  core::Check(batch.cu_q_lens.front() == 0, Code::kBadRange,
              "cu_q_lens[0] = ", batch.cu_q_lens.front(), " is not 0");
  core::Check(batch.cu_q_lens.back() == tokens, Code::kBadRange, "cu_q_lens[", sequences,
              "] = ", batch.cu_q_lens.back(), " is not the number of tokens of q, ", tokens);
}

void CheckKvLengths(const PagedBatch& batch, const PagedKv& keys, const AttentionMask& mask) {
  const int64_t longest = std::min(kMaxKvLen, core::SaturatingMul(batch.max_pages, keys.page_size));
  for (size_t b = 0; b < batch.kv_lens.size(); ++b) {
    const int64_t kv_len = batch.kv_lens[b];
    core::Check(kv_len >= 0 && kv_len <= longest, Code::kBadRange, "kv_lens[", b, "] = ", kv_len,
                " is not in 0..", longest, "; the table has ", batch.max_pages, " pages of ",
                keys.page_size, " for it");
    core::Check(mask.data == nullptr || kv_len <= mask.keys, Code::kBadShape,
                "mask.keys = ", mask.keys, " is less than kv_lens[", b, "] = ", kv_len);
  }
}

core::Strided Heads(const void* data, DType dtype, const HeadsView& shape, int64_t head_dim,
                    int64_t token_stride, int64_t head_stride) {
  const auto element = static_cast<int64_t>(SizeOf(dtype));
  return {
      data,
      {shape.tokens, shape.heads, 1},
      {core::SaturatingMul(token_stride, element), core::SaturatingMul(head_stride, element), 0},
      head_dim * element};
}

core::Strided Heads(const HeadsView& x) {
  return Heads(x.data, x.dtype, x, x.head_dim, x.token_stride, x.head_stride);
}

core::Strided Lse(const float* lse, const HeadsView& shape, int64_t token_stride) {
  return {lse,
          {lse != nullptr ? shape.tokens : 0, 1, 1},
          {core::SaturatingMul(token_stride, 4), 0, 0},
          shape.heads * 4};
}

core::Strided Array(const void* data, int64_t bytes) { return {data, {1, 1, 1}, {0, 0, 0}, bytes}; }

core::Strided Flags(std::span<const uint8_t> x) {
  return Array(x.data(), static_cast<int64_t>(x.size()));
}

core::Strided Array(const IndexSpan& x) { return Array(x.data(), x.size_bytes()); }

// Rows of a batch's page table; none without a batch.
core::Strided Table(const PagedBatch& batch) {
  const int64_t element = batch.page_table.element_size();
  return {batch.page_table.data(),
          {static_cast<int64_t>(batch.kv_lens.size()), 1, 1},
          {core::SaturatingMul(batch.page_table_stride, element), 0, 0},
          core::SaturatingMul(batch.max_pages, element)};
}

core::Strided Mask(const AttentionMask& mask) {
  const auto element = static_cast<int64_t>(SizeOf(mask.dtype));
  const int64_t keys = mask.data == nullptr ? 0 : mask.keys;
  const bool contiguous = mask.key_stride == 1;
  return {mask.data,
          {contiguous ? 1 : keys, mask.tokens, mask.heads},
          {core::SaturatingMul(mask.key_stride, element),
           core::SaturatingMul(mask.token_stride, element),
           core::SaturatingMul(mask.head_stride, element)},
          contiguous ? keys * element : element};
}

core::Strided Floats(std::span<const float> x) {
  return Array(x.data(), static_cast<int64_t>(x.size_bytes()));
}

struct Named {
  const char* name;
  core::Strided bytes;
};

// `shape` is the shape of the results except for their head_dim.
void CheckOutputs(const HeadsView& shape, int64_t head_dim, const AttentionOut& out,
                  std::span<const Named> inputs) {
  if (shape.tokens == 0) {
    return;
  }
  core::Check(out.data != nullptr, Code::kBadShape, "out.data is null");
  const Named outputs[] = {
      {"out", Heads(out.data, shape.dtype, shape, head_dim, out.token_stride, out.head_stride)},
      {"lse", Lse(out.lse, shape, out.lse_token_stride)}};
  for (const Named& output : outputs) {
    core::CheckAddressable(output.name, output.bytes);
    core::Check(!core::OverlapsItself(output.bytes), Code::kOverlap, output.name,
                " overlaps itself: its rows of ", output.bytes.width, " bytes are ",
                output.bytes.stride[0], " (tokens) and ", output.bytes.stride[1],
                " (heads) bytes apart");
    for (const Named& input : inputs) {
      core::Check(!core::Overlaps(output.bytes, input.bytes), Code::kOverlap, output.name,
                  " shares memory with ", input.name, ", which is only read");
    }
  }
  core::Check(!core::Overlaps(outputs[0].bytes, outputs[1].bytes), Code::kOverlap,
              "out shares memory with lse");
}

}  // namespace

void CheckPool(const PagedKv& keys, const PagedKv& values) {
  CheckKv("keys", keys);
  CheckKv("values", values);
  CheckSame("values.num_pages", values.num_pages, "keys.num_pages", keys.num_pages);
  CheckSame("values.page_size", values.page_size, "keys.page_size", keys.page_size);
  CheckSame("values.kv_heads", values.kv_heads, "keys.kv_heads", keys.kv_heads);
}

void CheckLengths(const PagedBatch& batch, const PagedKv& keys, int64_t tokens,
                  const AttentionOptions& options) {
  CheckQueryLengths(batch, tokens);
  CheckKvLengths(batch, keys, options.mask);
  if (!batch.causal.empty()) {
    CheckSame("the number of causal flags", static_cast<int64_t>(batch.causal.size()),
              "the number of kv_lens", static_cast<int64_t>(batch.kv_lens.size()));
  }
  for (size_t b = 0; b < batch.kv_lens.size(); ++b) {
    // If positions hide no keys there may be more queries than keys: cross attention.
    const bool causal = options.causal || (!batch.causal.empty() && batch.causal[b] != 0);
    const bool anywhere = !causal && !options.window && !options.window_right;
    const int64_t q_len = QueryLength(batch, b, tokens);
    const int64_t kv_len = batch.kv_lens[b];
    core::Check(anywhere || kv_len == 0 || q_len <= kv_len, Code::kBadRange, "sequence ", b,
                " has ", q_len, " queries but kv_lens[", b, "] = ", kv_len,
                "; with causal or a window the queries are its last positions");
  }
}

void CheckShapes(const HeadsView& q, const PagedKv& keys, const AttentionOptions& options) {
  CheckHeads("q", q);
  CheckKvShape("keys", keys);
  CheckSame("q.head_dim", q.head_dim, "keys.head_dim", keys.head_dim);
  core::Check(q.heads % keys.kv_heads == 0, Code::kBadShape, "q.heads = ", q.heads,
              " is not a multiple of keys.kv_heads = ", keys.kv_heads);
  CheckOptions(options, q.heads);
  CheckMask(options.mask, q);
  core::CheckAddressable("mask", Mask(options.mask));
}

void CheckBatch(const PagedBatch& batch, const PagedKv& keys, int64_t tokens,
                const AttentionOptions& options) {
  const auto sequences = static_cast<int64_t>(batch.kv_lens.size());
  core::Check(batch.max_pages >= 0, Code::kBadShape, "max_pages = ", batch.max_pages,
              " is negative");
  core::Check(batch.page_table || batch.max_pages == 0 || sequences == 0, Code::kBadShape,
              "page_table is null");
  core::CheckAddressable("page_table", Table(batch));
  CheckLengths(batch, keys, tokens, options);
}

void CheckData(const HeadsView& q, const PagedKv& keys, const PagedKv& values,
               const PagedBatch* batch, const AttentionOut& out, const AttentionOptions& options) {
  CheckHeadsData("q", q);
  CheckPool(keys, values);
  core::CheckAddressable("q", Heads(q));
  const PagedBatch batch_or_empty = batch != nullptr ? *batch : PagedBatch();
  const Named inputs[] = {{"q", Heads(q)},
                          {"keys", KvRowBytes(keys)},
                          {"values", KvRowBytes(values)},
                          {"keys.scales", KvScaleBytes(keys)},
                          {"values.scales", KvScaleBytes(values)},
                          {"cu_q_lens", Array(batch_or_empty.cu_q_lens)},
                          {"kv_lens", Array(batch_or_empty.kv_lens)},
                          {"page_table", Table(batch_or_empty)},
                          {"causal", Flags(batch_or_empty.causal)},
                          {"mask", Mask(options.mask)},
                          {"alibi_slopes", Floats(options.alibi_slopes)},
                          {"sinks", Floats(options.sinks)}};
  CheckOutputs(q, values.head_dim, out, inputs);
}

void CheckMerge(std::span<const AttentionPart> parts, const AttentionOut& out) {
  core::Check(!parts.empty(), Code::kBadShape, "there are no parts to merge");
  const HeadsView& first = parts.front().out;
  for (size_t i = 0; i < parts.size(); ++i) {
    const HeadsView& part = parts[i].out;
    const std::string name = core::Concat("parts[", i, "].out");
    CheckHeads(name.c_str(), part);
    CheckHeadsData(name.c_str(), part);
    core::Check(part.dtype == first.dtype, Code::kBadDType, name, " is ", Name(part.dtype),
                " but parts[0].out is ", Name(first.dtype));
    CheckSame((name + ".tokens").c_str(), part.tokens, "parts[0].out.tokens", first.tokens);
    CheckSame((name + ".heads").c_str(), part.heads, "parts[0].out.heads", first.heads);
    CheckSame((name + ".head_dim").c_str(), part.head_dim, "parts[0].out.head_dim", first.head_dim);
    core::Check(parts[i].lse != nullptr || part.tokens == 0, Code::kBadShape, "parts[", i,
                "].lse is null");
    const core::Strided lse = Lse(parts[i].lse, part, parts[i].lse_token_stride);
    core::CheckAddressable(name.c_str(), Heads(part));
    core::CheckAddressable("lse", lse);
    const Named inputs[] = {{name.c_str(), Heads(part)}, {"the lse of a part", lse}};
    CheckOutputs(first, first.head_dim, out, inputs);
  }
}

}  // namespace riffle::attention

#include "sparse/indexer_check.h"

#include <algorithm>
#include <limits>

#include "core/check.h"
#include "sparse/indexer_args.h"

namespace riffle::sparse {
namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxKeys = kMaxInt - 1023;  // rounded up to whole tiles it is an int

bool IsKeyDType(DType dtype) {
  return dtype <= DType::kBF16 || dtype == DType::kE4M3 || dtype == DType::kI8;
}

}  // namespace

void CheckIn(const char* name, int64_t value, int64_t low, int64_t high) {
  core::Check(value >= low && value <= high, Code::kBadShape, name, " = ", value, " is not in ",
              low, "..", high);
}

void CheckSame(const char* what, int64_t a, const char* other, int64_t b) {
  core::Check(a == b, Code::kBadShape, what, " = ", a, " but ", other, " = ", b);
}

void CheckOutput(const NamedBytes& out, std::span<const NamedBytes> inputs) {
  core::CheckAddressable(out.name, out.bytes);
  core::Check(!core::OverlapsItself(out.bytes), Code::kOverlap, out.name,
              " overlaps itself: its rows of ", out.bytes.width, " bytes are ", out.bytes.stride[0],
              " bytes apart");
  for (const NamedBytes& input : inputs) {
    core::Check(!core::Overlaps(out.bytes, input.bytes), Code::kOverlap, out.name,
                " shares memory with ", input.name, ", which is only read");
  }
}

core::Strided HeadsBytes(const HeadsView& x) {
  const auto element = static_cast<int64_t>(SizeOf(x.dtype));
  return {x.data,
          {x.tokens, x.heads, 1},
          {core::SaturatingMul(x.token_stride, element),
           core::SaturatingMul(x.head_stride, element), 0},
          x.head_dim * element};
}

core::Strided RowsBytes(const void* data, int64_t rows, int64_t stride, int64_t cols,
                        int64_t element) {
  return {data,
          {data != nullptr ? rows : 0, 1, 1},
          {core::SaturatingMul(stride, element), 0, 0},
          core::SaturatingMul(cols, element)};
}

core::Strided SpanBytes(const IndexSpan& x) {
  return {x.data(), {1, 1, 1}, {0, 0, 0}, x.size_bytes()};
}

core::Strided TableBytes(const PagedBatch& batch) {
  return RowsBytes(batch.page_table.data(), static_cast<int64_t>(batch.kv_lens.size()),
                   batch.page_table_stride, batch.max_pages, batch.page_table.element_size());
}

core::Strided KeyBytes(const IndexKeys& keys) {
  const auto element = static_cast<int64_t>(SizeOf(keys.dtype));
  if (keys.format != IndexKeyFormat::kPlain) {
    const int64_t row = keys.format == IndexKeyFormat::kMxFp4 ? keys.head_dim / 2 : keys.head_dim;
    return RowsBytes(keys.data, keys.num_pages, keys.page_stride,
                     core::SaturatingMul(keys.page_size, row + 4), 1);
  }
  return {keys.data,
          {keys.page_size, keys.num_pages, 1},
          {core::SaturatingMul(keys.token_stride, element),
           core::SaturatingMul(keys.page_stride, element), 0},
          keys.head_dim * element};
}

core::Strided ScaleBytes(const IndexKeys& keys) {
  return {keys.scales.data,
          {keys.scales.data != nullptr ? keys.page_size : 0, keys.num_pages, 1},
          {core::SaturatingMul(keys.scales.token_stride, 4),
           core::SaturatingMul(keys.scales.page_stride, 4), 0},
          4};
}

void CheckKeys(const IndexKeys& keys) {
  core::Check(static_cast<int>(keys.format) < kNumIndexKeyFormats, Code::kBadOption,
              "keys.format = ", static_cast<int>(keys.format), " is not a format of index keys");
  if (keys.format == IndexKeyFormat::kPlain) {
    core::Check(IsKeyDType(keys.dtype), Code::kBadDType, "keys are ", Name(keys.dtype),
                ", not float32, float16, bfloat16, float8_e4m3fn or int8");
    core::Check(keys.dtype != DType::kI8 || keys.scales.data != nullptr || keys.num_pages == 0,
                Code::kBadDType, "keys are int8 and have no scales");
  } else {
    core::Check(keys.dtype == DType::kU8, Code::kBadDType, "keys are ", Name(keys.dtype),
                "; the format ", Name(keys.format), " has uint8");
    core::Check(keys.scales.data == nullptr, Code::kBadShape, "keys.scales are given; the format ",
                Name(keys.format), " has its own");
  }
  CheckIn("keys.num_pages", keys.num_pages, 0, kMaxInt);
  CheckIn("keys.page_size", keys.page_size, 1, kMaxKeys);
  CheckIn("keys.head_dim", keys.head_dim, 32, kMaxIndexDim);
  core::Check(keys.head_dim % 16 == 0, Code::kBadShape, "keys.head_dim = ", keys.head_dim,
              " is not a multiple of 16");
  core::Check(
      keys.format != IndexKeyFormat::kMxFp4 || (keys.head_dim % 32 == 0 && keys.head_dim <= 128),
      Code::kBadShape, "keys.head_dim = ", keys.head_dim,
      "; the format mxfp4 has a multiple of 32 up to 128");
  core::Check(keys.data != nullptr || keys.num_pages == 0, Code::kBadShape, "keys.data is null");
  core::CheckAddressable("keys", KeyBytes(keys));
  core::CheckAddressable("keys.scales", ScaleBytes(keys));
}

void CheckIndexer(const HeadsView& q, const IndexWeights& weights, const IndexKeys& keys) {
  core::Check(IsKeyDType(q.dtype), Code::kBadDType, "q is ", Name(q.dtype),
              ", not float32, float16, bfloat16, float8_e4m3fn or int8");
  CheckIn("q.tokens", q.tokens, 0, kMaxInt);
  CheckIn("q.heads", q.heads, 1, kMaxIndexHeads);
  core::Check(q.data != nullptr || q.tokens == 0, Code::kBadShape, "q.data is null");
  CheckKeys(keys);
  CheckSame("q.head_dim", q.head_dim, "keys.head_dim", keys.head_dim);
  core::CheckAddressable("q", HeadsBytes(q));
  core::CheckAddressable("weights",
                         RowsBytes(weights.data, q.tokens, weights.token_stride, q.heads, 4));
}

void CheckIndexBatch(const PagedBatch& batch, const IndexKeys& keys, int64_t tokens,
                     int64_t ratio) {
  core::Check(ratio >= 1 && ratio <= kMaxInt, Code::kBadOption, "ratio = ", ratio, " is not in 1..",
              kMaxInt);
  const auto sequences = static_cast<int64_t>(batch.kv_lens.size());
  CheckIn("the number of kv_lens", sequences, 0, kMaxInt - 1);
  core::Check(batch.max_pages >= 0, Code::kBadShape, "max_pages = ", batch.max_pages,
              " is negative");
  core::Check(batch.page_table || batch.max_pages == 0 || sequences == 0, Code::kBadShape,
              "page_table is null");
  core::CheckAddressable("page_table", TableBytes(batch));
  if (batch.cu_q_lens.empty()) {
    CheckSame("q.tokens", tokens, "the number of kv_lens (one query a sequence)", sequences);
  } else {
    CheckSame("the number of cu_q_lens", static_cast<int64_t>(batch.cu_q_lens.size()),
              "the number of kv_lens + 1", sequences + 1);
    core::Check(batch.cu_q_lens.front() == 0, Code::kBadRange,
                "cu_q_lens[0] = ", batch.cu_q_lens.front(), " is not 0");
    core::Check(batch.cu_q_lens.back() == tokens, Code::kBadRange, "cu_q_lens[", sequences,
                "] = ", batch.cu_q_lens.back(), " is not the number of tokens of q, ", tokens);
  }
  const int64_t table_keys =
      std::min(kMaxKeys, core::SaturatingMul(batch.max_pages, keys.page_size));
  for (size_t b = 0; b < batch.kv_lens.size(); ++b) {
    const int64_t kv_len = batch.kv_lens[b];
    core::Check(kv_len >= 0 && kv_len <= kMaxKeys && kv_len / ratio <= table_keys, Code::kBadRange,
                "kv_lens[", b, "] = ", kv_len, " is not in 0..",
                std::min(kMaxKeys, core::SaturatingMul(table_keys, ratio)), "; the table has ",
                batch.max_pages, " pages of ", keys.page_size, " keys for it");
    if (!batch.cu_q_lens.empty()) {
      const int64_t begin = batch.cu_q_lens[b];
      const int64_t end = batch.cu_q_lens[b + 1];
      core::Check(begin >= 0 && begin <= end && end <= tokens, Code::kBadRange, "cu_q_lens[", b,
                  "..", b + 1, "] = ", begin, ", ", end, " do not ascend from 0 to the ", tokens,
                  " tokens of q");
    }
  }
}

void CheckRanges(std::span<const int32_t> starts, std::span<const int32_t> ends,
                 const IndexKeys& keys, int64_t tokens) {
  CheckSame("keys.num_pages", keys.num_pages, "the number of pages that ranges need", 1);
  CheckSame("the number of starts", static_cast<int64_t>(starts.size()), "q.tokens", tokens);
  CheckSame("the number of ends", static_cast<int64_t>(ends.size()), "q.tokens", tokens);
  for (size_t t = 0; t < starts.size(); ++t) {
    core::Check(starts[t] >= 0, Code::kBadRange, "starts[", t, "] = ", starts[t], " is negative");
    core::Check(ends[t] <= keys.page_size, Code::kBadRange, "ends[", t, "] = ", ends[t],
                " is past the ", keys.page_size, " keys");
  }
}

void CheckSelect(const IndexTopKOptions& options, int64_t k, int64_t tokens) {
  core::Check(k >= 1 && k < kMaxInt, Code::kBadK, "k = ", k, " is not in 1..", kMaxInt - 1);
  const auto option = [](const char* name, int64_t value, int64_t low) {
    core::Check(value >= low && value <= kMaxInt, Code::kBadOption, name, " = ", value,
                " is not in ", low, "..", kMaxInt);
  };
  option("block", options.block, 1);
  option("first_blocks", options.first_blocks, 0);
  option("local_blocks", options.local_blocks, 0);
  option("candidate_span", options.candidate_span, 1);
  const int64_t tail = std::max<int64_t>(options.local_blocks, options.incomplete_tail ? 1 : 0);
  core::Check(options.first_blocks + tail <= k, Code::kBadOption,
              "first_blocks = ", options.first_blocks, " and ", tail,
              " last blocks are more than k = ", k);
  core::Check(!options.slots || options.block == 1, Code::kBadOption,
              "slots = true is for keys, but block = ", options.block);
  core::Check(options.block_score <= BlockScore::kMean, Code::kBadOption,
              "block_score = ", static_cast<int>(options.block_score), " is unknown");
  if (options.candidates != nullptr) {
    CheckIn("candidate_cols", options.candidate_cols, 0, kMaxInt);
    core::Check(core::SaturatingMul(options.candidate_cols, options.candidate_span) <= kMaxInt,
                Code::kBadOption, "candidate_span = ", options.candidate_span, " times ",
                options.candidate_cols, " candidates is beyond int32");
    core::CheckAddressable(
        "candidates",
        RowsBytes(options.candidates, tokens, options.candidate_stride, options.candidate_cols, 4));
  }
}

}  // namespace riffle::sparse

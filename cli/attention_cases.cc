#include "cli/attention_cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "cli/attention_data.h"
#include "testing/reference.h"
#include "testing/rng.h"

namespace riffle::cli {
namespace {

constexpr double kQuickBytes = 100e6;
constexpr int kCheckedRows = 24;

std::vector<int32_t> Ragged(int sequences, int longest) {
  std::vector<int32_t> lengths;
  test::Rng random(1);
  for (int i = 0; i < sequences; ++i) {
    lengths.push_back(1 + static_cast<int32_t>(random.Below(longest)));
  }
  return lengths;
}

std::vector<int32_t> Repeat(int32_t value, int times) {
  return std::vector<int32_t>(static_cast<size_t>(times), value);
}

double Number(DType dtype, const void* data, int64_t i) {
  return test::Decode(dtype,
                      static_cast<const uint8_t*>(data) + i * static_cast<int64_t>(SizeOf(dtype)));
}

// Checks one query head's result against a softmax in double. Weights and the result are rounded to
// bf16, an error of 2^-8 each; the rest of the tolerance covers f32 (docs/attention.md).
void CheckRow(const AttentionData& data, size_t b, int query, int head) {
  const AttentionCase& what = data.what;
  const int position = what.kv_lens[b] - what.q_lens[b] + query;
  const int64_t row = (int64_t{data.cu_q_lens[b]} + query) * what.kv_heads * what.group + head;
  const int first = what.first_key(position);
  std::vector<double> weights;
  double largest = -INFINITY;
  for (int j = first; j <= position; ++j) {
    double logit = 0;
    for (int i = 0; i < what.head_dim; ++i) {
      logit += Number(what.q_dtype, data.q.data, row * what.head_dim + i) *
               data.Element(data.keys, b, j, head / what.group, i);
    }
    weights.push_back(logit / std::sqrt(what.head_dim));
    largest = std::max(largest, weights.back());
  }
  double sum = 0;
  for (double& weight : weights) {
    weight = std::exp(weight - largest);
    sum += weight;
  }
  for (int i = 0; i < what.values_dim(); ++i) {
    double expected = 0;
    double magnitude = 0;
    for (int j = first; j <= position; ++j) {
      const double part = weights[static_cast<size_t>(j - first)] / sum *
                          data.Element(data.values, b, j, head / what.group, i);
      expected += part;
      magnitude += std::abs(part);
    }
    const double bound = 0x1p-8 * (magnitude + std::abs(expected)) + 1e-4 * magnitude;
    const double got = Number(what.q_dtype, data.out.data, row * what.values_dim() + i);
    if (!(std::abs(got - expected) <= bound)) {
      throw std::runtime_error(
          fmt::format("{}: sequence {}, query {}, head {}, element {} is {} but should be {} +- {}",
                      what.name, b, query, head, i, got, expected, bound));
    }
  }
}

void CheckSample(const AttentionData& data) {
  test::Rng random(5);
  for (int i = 0; i < kCheckedRows; ++i) {
    const auto b =
        static_cast<size_t>(random.Below(static_cast<int64_t>(data.what.kv_lens.size())));
    const auto query = static_cast<int>(random.Below(data.what.q_lens[b]));
    CheckRow(data, b, query, static_cast<int>(random.Below(data.what.kv_heads * data.what.group)));
  }
}

}  // namespace

bool AttentionCase::decode() const {
  return std::all_of(q_lens.begin(), q_lens.end(), [](int32_t q) { return q == 1; });
}

double AttentionCase::bytes() const {
  const double keys = std::accumulate(kv_lens.begin(), kv_lens.end(), 0.0);
  const auto row = [this](int dim) {
    PagedKv kv;
    kv.dtype = dtype;
    kv.format = format;
    kv.head_dim = dim;
    return static_cast<double>(RowBytes(kv));
  };
  return keys * kv_heads * (row(head_dim) + (values_in_keys ? 0 : row(values_dim())));
}

double AttentionCase::operations() const {
  double pairs = 0;  // a pair is a query and a key that it sees
  for (size_t b = 0; b < kv_lens.size(); ++b) {
    for (int position = kv_lens[b] - q_lens[b]; position < kv_lens[b]; ++position) {
      pairs += position + 1 - first_key(position);
    }
  }
  return 2 * pairs * kv_heads * group * (head_dim + values_dim());
}

namespace {

// Adds cases D1 and D2 with pages of other dtypes and formats.
void AddFormats(std::vector<AttentionCase>* cases) {
  for (const char* name : {"D1", "D2"}) {
    const bool many = name[1] == '1';
    AttentionCase decode{.name = name,
                         .q_lens = many ? Repeat(1, 32) : Repeat(1, 1),
                         .kv_lens = many ? Repeat(4096, 32) : Repeat(131072, 1)};
    const auto add = [&](const char* suffix, DType dtype, KvFormat format, bool row_scales) {
      AttentionCase what = decode;
      what.name += suffix;
      what.dtype = dtype;
      what.format = format;
      what.row_scales = row_scales;
      cases->push_back(what);
    };
    add("-e4m3", DType::kE4M3, KvFormat::kPlain, false);
    add("-e5m2", DType::kE5M2, KvFormat::kPlain, false);
    add("-int8", DType::kI8, KvFormat::kPlain, true);
    add("-q8_0", DType::kU8, KvFormat::kQ8_0, false);
    add("-q4_0", DType::kU8, KvFormat::kQ4_0, false);
    decode.q_dtype = DType::kF32;
    add("-f32-f16", DType::kF16, KvFormat::kPlain, false);
  }
}

// The same attention twice: given as options, and as a matrix of bools. The blocks are four
// sequences of 512 tokens, or one of 2048 whose mask keeps them apart.
void AddMasks(std::vector<AttentionCase>* cases) {
  cases->push_back({.name = "P1-mask", .q_lens = {2048}, .kv_lens = {2048}, .mask_block = 2048});
  cases->push_back({.name = "P1-blocks", .q_lens = Repeat(512, 4), .kv_lens = Repeat(512, 4)});
  cases->push_back(
      {.name = "P1-blocks-mask", .q_lens = {2048}, .kv_lens = {2048}, .mask_block = 512});
  cases->push_back({.name = "D1-mask",
                    .q_lens = Repeat(1, 32),
                    .kv_lens = Repeat(4096, 32),
                    .mask_block = 4096});
}

// DeepSeek's latent attention: decode of one KV head, whose values are the first 512 elements of
// its keys.
void AddLatent(std::vector<AttentionCase>* cases) {
  for (const bool many : {true, false}) {
    for (const int group : {16, 128}) {
      cases->push_back({.name = fmt::format("MLA{}{}", group, many ? "" : "-long"),
                        .q_lens = many ? Repeat(1, 32) : Repeat(1, 1),
                        .kv_lens = many ? Repeat(4096, 32) : Repeat(65536, 1),
                        .kv_heads = 1,
                        .group = group,
                        .head_dim = 576,
                        .value_dim = 512,
                        .values_in_keys = true});
    }
  }
  // Prefill of heads with keys and values of their own, then of 16 heads over the latent pages.
  cases->push_back({.name = "MLA-prefill",
                    .q_lens = {2048},
                    .kv_lens = {2048},
                    .kv_heads = 16,
                    .group = 1,
                    .head_dim = 192,
                    .value_dim = 128});
  cases->push_back({.name = "MLA-absorbed",
                    .q_lens = {256},
                    .kv_lens = {4096},
                    .kv_heads = 1,
                    .group = 16,
                    .head_dim = 576,
                    .value_dim = 512,
                    .values_in_keys = true});
}

}  // namespace

std::vector<AttentionCase> AttentionCases(bool quick) {
  const std::vector<int32_t> ones32 = Repeat(1, 32);
  const std::vector<int32_t> long32 = Repeat(4096, 32);
  std::vector<AttentionCase> cases = {
      {.name = "D1", .q_lens = ones32, .kv_lens = long32},
      {.name = "D1-page128", .q_lens = ones32, .kv_lens = long32, .page_size = 128},
      {.name = "D1-ratio1", .q_lens = ones32, .kv_lens = long32, .group = 1},
      {.name = "D1-ratio7", .q_lens = ones32, .kv_lens = long32, .group = 7},
      {.name = "D1-ratio8", .q_lens = ones32, .kv_lens = long32, .group = 8},
      {.name = "D1-ratio16", .q_lens = ones32, .kv_lens = long32, .group = 16},
      {.name = "D2", .q_lens = {1}, .kv_lens = {131072}},
      {.name = "D3",
       .q_lens = Repeat(1, 8),
       .kv_lens = Repeat(2048, 8),
       .kv_heads = 1,
       .group = 8,
       .head_dim = 256},
      {.name = "D4", .q_lens = Repeat(1, 64), .kv_lens = Ragged(64, 4096)},
      {.name = "D4-ratio7", .q_lens = Repeat(1, 64), .kv_lens = Ragged(64, 4096), .group = 7},
      {.name = "P1", .q_lens = {2048}, .kv_lens = {2048}},
      {.name = "P2", .q_lens = {512}, .kv_lens = {8704}}};
  AddMasks(&cases);
  AddFormats(&cases);
  AddLatent(&cases);
  if (quick) {
    std::erase_if(cases, [](const AttentionCase& what) { return what.bytes() > kQuickBytes; });
  }
  return cases;
}

RooflineLine RunAttentionCase(const AttentionCase& what, double min_seconds, ThreadPool* pool) {
  const AttentionData data(what);
  AttentionOptions options;
  options.pool = pool;
  options.mask = data.mask;
  options.causal = what.mask_block == 0;
  RooflineCase roofline;
  roofline.name = what.name;
  roofline.pages = PagesOf(data.keys_memory.data(), data.keys_memory.bytes());
  roofline.bytes = what.bytes();
  roofline.operations = what.operations();
  roofline.dtype = what.q_dtype;
  roofline.call = [&] {
    PagedAttention(data.q, data.keys, data.values, data.batch, data.out, options);
  };
  if (what.decode()) {  // prefill is bound by arithmetic, so reading is not timed
    roofline.read = [&] { ReadPages(data.keys, data.values, data.batch, {.pool = pool}); };
  }
  roofline.call();
  CheckSample(data);
  return MeasureRoofline(roofline, min_seconds, pool);
}

}  // namespace riffle::cli

#include "cli/attention_cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "cli/huge_buffer.h"
#include "cli/numbers.h"

namespace riffle::cli {
namespace {

constexpr double kQuickBytes = 100e6;
constexpr int kCheckedRows = 24;

uint64_t Next(uint64_t& state) {  // SplitMix64 (Steele, Lea, Flood 2014)
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

std::vector<int32_t> Ragged(int sequences, int longest) {
  std::vector<int32_t> lengths;
  uint64_t state = 1;
  for (int i = 0; i < sequences; ++i) {
    lengths.push_back(1 + static_cast<int32_t>(Next(state) % static_cast<uint64_t>(longest)));
  }
  return lengths;
}

std::vector<int32_t> Repeat(int32_t value, int times) {
  return std::vector<int32_t>(static_cast<size_t>(times), value);
}

float BF16At(const uint16_t* at) { return LoadFloat(at, DType::kBF16, 0); }

// A case's arrays. Pages are dealt in a random order: a pool that has been in use for a while.
struct Data {
  explicit Data(const AttentionCase& the_case) : what(the_case) {
    int32_t total_pages = 0;
    for (size_t b = 0; b < what.kv_lens.size(); ++b) {
      cu_q_lens.push_back(cu_q_lens.back() + what.q_lens[b]);
      const int32_t pages = (what.kv_lens[b] + what.page_size - 1) / what.page_size;
      total_pages += pages;
      max_pages = std::max(max_pages, pages);
    }
    tokens = cu_q_lens.back();
    std::vector<int32_t> order(static_cast<size_t>(total_pages));
    std::iota(order.begin(), order.end(), 0);
    uint64_t state = 7;
    for (size_t i = order.size(); i > 1; --i) {
      std::swap(order[i - 1], order[Next(state) % i]);
    }
    table.assign(what.kv_lens.size() * static_cast<size_t>(max_pages), -1);
    size_t next = 0;
    for (size_t b = 0; b < what.kv_lens.size(); ++b) {
      const int32_t pages = (what.kv_lens[b] + what.page_size - 1) / what.page_size;
      std::copy_n(order.begin() + static_cast<std::ptrdiff_t>(next), pages,
                  table.begin() + static_cast<std::ptrdiff_t>(b) * max_pages);
      next += static_cast<size_t>(pages);
    }
    const int64_t d = what.head_dim;
    const int64_t page = what.kv_heads * what.page_size * d;  // HND
    const auto kv_bytes = static_cast<size_t>(total_pages * page * 2);
    keys_memory = HugeBuffer(kv_bytes);
    values_memory = HugeBuffer(kv_bytes);
    const int heads = what.kv_heads * what.group;
    q_memory = HugeBuffer(static_cast<size_t>(tokens * heads * d * 2));
    out_memory = HugeBuffer(q_memory.bytes());
    for (HugeBuffer* memory : {&keys_memory, &values_memory, &q_memory}) {
      Fill(*memory, state);
    }
    q = {q_memory.data(), DType::kBF16, tokens, heads, d, heads * d, d};
    keys = {
        keys_memory.data(), DType::kBF16, total_pages, what.page_size, what.kv_heads, d, page, d,
        what.page_size * d};
    values = keys;
    values.data = values_memory.data();
    batch = {cu_q_lens, what.kv_lens, table.data(), max_pages, max_pages};
    out = {out_memory.data(), heads * d, d, nullptr, 0};
  }

  // bf16 of both signs with magnitudes in [1/8, 2).
  static void Fill(HugeBuffer& memory, uint64_t& state) {
    for (size_t i = 0; i + 8 <= memory.bytes(); i += 8) {
      const uint64_t random = Next(state);
      const uint64_t bits = (random & 0x81ff81ff81ff81ffu) + 0x3e003e003e003e00u;
      std::memcpy(memory.data() + i, &bits, 8);
    }
  }

  const AttentionCase& what;
  std::vector<int32_t> cu_q_lens = {0};
  std::vector<int32_t> table;
  int32_t max_pages = 0;
  int64_t tokens = 0;
  HugeBuffer keys_memory, values_memory, q_memory, out_memory;
  HeadsView q;
  PagedKv keys, values;
  PagedBatch batch;
  AttentionOut out;
};

// Element i of a position's key or value.
double Element(const Data& data, const PagedKv& kv, size_t b, int position, int head, int i) {
  const int32_t page = data.table[b * static_cast<size_t>(data.max_pages) +
                                  static_cast<size_t>(position / data.what.page_size)];
  const int64_t at = page * kv.page_stride + position % data.what.page_size * kv.token_stride +
                     head * kv.head_stride + i;
  return BF16At(static_cast<const uint16_t*>(kv.data) + at);
}

// Holds one query head's result against a softmax in double. Weights and the result are rounded to
// bf16, 2^-8 each; the rest leaves room for f32 (docs/attention.md).
void CheckRow(const Data& data, size_t b, int query, int head) {
  const AttentionCase& what = data.what;
  const int position = what.kv_lens[b] - what.q_lens[b] + query;
  const int64_t row = (int64_t{data.cu_q_lens[b]} + query) * what.kv_heads * what.group + head;
  const auto* q = static_cast<const uint16_t*>(data.q.data) + row * what.head_dim;
  const auto* out = static_cast<const uint16_t*>(data.out.data) + row * what.head_dim;
  std::vector<double> weights;
  double largest = -INFINITY;
  for (int j = 0; j <= position; ++j) {
    double logit = 0;
    for (int i = 0; i < what.head_dim; ++i) {
      logit += BF16At(q + i) * Element(data, data.keys, b, j, head / what.group, i);
    }
    weights.push_back(logit / std::sqrt(what.head_dim));
    largest = std::max(largest, weights.back());
  }
  double sum = 0;
  for (double& weight : weights) {
    weight = std::exp(weight - largest);
    sum += weight;
  }
  for (int i = 0; i < what.head_dim; ++i) {
    double expected = 0;
    double magnitude = 0;
    for (int j = 0; j <= position; ++j) {
      const double part = weights[static_cast<size_t>(j)] / sum *
                          Element(data, data.values, b, j, head / what.group, i);
      expected += part;
      magnitude += std::abs(part);
    }
    const double bound = 0x1p-8 * (magnitude + std::abs(expected)) + 1e-4 * magnitude;
    const double got = BF16At(out + i);
    if (!(std::abs(got - expected) <= bound)) {
      throw std::runtime_error(
          fmt::format("{}: sequence {}, query {}, head {}, element {} is {} but should be {} +- {}",
                      what.name, b, query, head, i, got, expected, bound));
    }
  }
}

void CheckSample(const Data& data) {
  uint64_t state = 5;
  const auto below = [&state](size_t n) { return Next(state) % n; };
  for (int i = 0; i < kCheckedRows; ++i) {
    const size_t b = below(data.what.kv_lens.size());
    const auto query = static_cast<int>(below(static_cast<size_t>(data.what.q_lens[b])));
    CheckRow(data, b, query,
             static_cast<int>(below(static_cast<size_t>(data.what.kv_heads * data.what.group))));
  }
}

}  // namespace

bool AttentionCase::decode() const {
  return std::all_of(q_lens.begin(), q_lens.end(), [](int32_t q) { return q == 1; });
}

double AttentionCase::bytes() const {
  const double keys = std::accumulate(kv_lens.begin(), kv_lens.end(), 0.0);
  return 2 * keys * kv_heads * head_dim * static_cast<double>(SizeOf(dtype));
}

double AttentionCase::operations() const {
  double pairs = 0;  // of a query and a key that it sees
  for (size_t b = 0; b < kv_lens.size(); ++b) {
    const double q = q_lens[b];
    pairs += q * (kv_lens[b] - q) + q * (q + 1) / 2;
  }
  return 4 * pairs * kv_heads * group * head_dim;
}

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
      {.name = "P1", .q_lens = {2048}, .kv_lens = {2048}},
      {.name = "P2", .q_lens = {512}, .kv_lens = {8704}}};
  if (quick) {
    std::erase_if(cases, [](const AttentionCase& what) { return what.bytes() > kQuickBytes; });
  }
  return cases;
}

RooflineLine RunAttentionCase(const AttentionCase& what, double min_seconds, ThreadPool* pool) {
  const Data data(what);
  AttentionOptions options;
  options.pool = pool;
  RooflineCase roofline;
  roofline.name = what.name;
  roofline.pages = PagesOf(data.keys_memory.data(), data.keys_memory.bytes());
  roofline.bytes = what.bytes();
  roofline.operations = what.operations();
  roofline.dtype = what.dtype;
  roofline.call = [&] {
    PagedAttention(data.q, data.keys, data.values, data.batch, data.out, options);
  };
  if (what.decode()) {  // prefill is bound by arithmetic; reading beside it would be waited for
    roofline.read = [&] { ReadPages(data.keys, data.values, data.batch, pool); };
  }
  roofline.call();
  CheckSample(data);
  return MeasureRoofline(roofline, min_seconds, pool);
}

}  // namespace riffle::cli

#include "testing/masked_attention_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "testing/distributions.h"
#include "testing/reference.h"
#include "testing/text.h"

namespace riffle::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

}  // namespace

void Elements::Put(size_t i, float x) {
  if (dtype == DType::kU8) {
    bytes[i] = static_cast<uint8_t>(x);
    return;
  }
  const uint32_t special = std::isnan(x) ? NaN(dtype, 0) : x > 0 ? PlusInf(dtype) : MinusInf(dtype);
  Store(dtype, std::isfinite(x) ? Encode(dtype, x) : special, bytes.data() + i * SizeOf(dtype));
}

double Elements::At(size_t i) const {
  return dtype == DType::kU8 ? bytes[i] : Decode(dtype, bytes.data() + i * SizeOf(dtype));
}

bool MaskedResult::operator==(const MaskedResult& other) const {
  return out == other.out &&
         std::memcmp(lse.data(), other.lse.data(), lse.size() * sizeof(float)) == 0;
}

MaskedCase::MaskedCase(const MaskedSpec& spec, uint64_t seed)
    : s(spec),
      heads(spec.group * spec.kv_heads),
      rng(seed),
      q(spec.q_dtype, Tokens() * static_cast<size_t>(heads * spec.dim)),
      mask(spec.mask_dtype, MaskSize()) {
  FillPages();
  FillMask();
  for (int h = 0; h < heads; ++h) {
    slopes.push_back(0.25f / static_cast<float>(h + 1));
    sinks.push_back(0.5f * static_cast<float>(h));
  }
  if (s.poisoned) {
    Poison();
  }
  cu_q_lens.push_back(0);
  for (const int q_len : s.q_lens) {
    cu_q_lens.push_back(cu_q_lens.back() + q_len);
  }
}

void MaskedCase::FillPages() {
  int64_t used = 0;
  for (size_t b = 0; b < s.kv_lens.size(); ++b) {
    max_pages = std::max(max_pages, Pages(b));
    used += Pages(b);
  }
  pages = used + 3;
  const size_t n = static_cast<size_t>(pages * s.kv_heads * s.page_size * s.dim);
  keys.emplace(s.kv_dtype, n);
  values.emplace(s.kv_dtype, n);
  for (size_t i = 0; i < n; ++i) {
    keys->Put(i, Number());
    values->Put(i, Number());
  }
  for (size_t i = 0; i < q.bytes.size() / SizeOf(q.dtype); ++i) {
    q.Put(i, Number());
  }
  std::vector<int32_t> order(static_cast<size_t>(pages));
  for (size_t i = 0; i < order.size(); ++i) {
    order[i] = static_cast<int32_t>(i);
    std::swap(order[i], order[static_cast<size_t>(rng.Below(static_cast<int64_t>(i) + 1))]);
  }
  table.assign(s.kv_lens.size() * static_cast<size_t>(max_pages), -1);
  size_t at = 0;
  for (size_t b = 0; b < s.kv_lens.size(); ++b) {
    for (int64_t i = 0; i < Pages(b); ++i) {
      table[b * static_cast<size_t>(max_pages) + static_cast<size_t>(i)] = order[at++];
    }
  }
}

void MaskedCase::FillMask() {
  for (size_t token = 0; token < (s.one_token ? 1 : Tokens()); ++token) {
    for (int head = 0; head < (s.one_head ? 1 : heads); ++head) {
      bool hidden = false;
      for (int key = 0; key < MaskKeys(); ++key) {
        if (!s.in_blocks || key % 64 == 0) {
          hidden = rng.Below(8) < s.hidden_of_8;
        }
        const float added = s.adds ? 4 * Number() : 0;
        const float shown = s.mask_dtype == DType::kU8 ? (key % 2 == 0 ? 1.0f : 4.0f) : added;
        const float hides = s.mask_dtype == DType::kU8 ? 0.0f : -kInf;
        mask.Put(MaskAt(token, head, key), hidden ? hides : shown);
      }
    }
  }
}

void MaskedCase::Poison() {
  size_t first = 0;
  for (size_t b = 0; b < s.q_lens.size(); first += static_cast<size_t>(s.q_lens[b]), ++b) {
    for (int key = 0; key < s.kv_lens[b]; ++key) {
      for (int head = 0; head < s.kv_heads; ++head) {
        bool seen = false;
        for (int query = 0; query < s.q_lens[b]; ++query) {
          for (int i = 0; i < s.group; ++i) {
            seen |= Sees(b, query, key) &&
                    Added(first + static_cast<size_t>(query), head * s.group + i, key) > -kInf;
          }
        }
        for (int i = 0; !seen && i < s.dim; ++i) {
          const size_t at = KvAt(b, head, key) + static_cast<size_t>(i);
          keys->Put(at, std::nanf(""));
          values->Put(at, i % 2 == 0 ? kInf : std::nanf(""));
        }
      }
    }
  }
}

size_t MaskedCase::Tokens() const {
  size_t tokens = 0;
  for (const int q_len : s.q_lens) {
    tokens += static_cast<size_t>(q_len);
  }
  return tokens;
}

int64_t MaskedCase::MaskKeys() const {
  return *std::max_element(s.kv_lens.begin(), s.kv_lens.end()) + 5;
}

size_t MaskedCase::MaskSize() const {
  return (s.one_token ? 1 : Tokens()) * static_cast<size_t>(s.one_head ? 1 : heads) *
         static_cast<size_t>(MaskKeys() * s.key_stride);
}

AttentionMask MaskedCase::Mask() const {
  const int64_t row = MaskKeys() * s.key_stride;
  const int64_t rows = s.one_head ? 1 : heads;
  return {.data = mask.bytes.data(),
          .dtype = mask.dtype,
          .tokens = s.one_token ? 1 : static_cast<int64_t>(Tokens()),
          .heads = rows,
          .keys = MaskKeys(),
          .token_stride = row * rows,
          .head_stride = row,
          .key_stride = s.key_stride};
}

HeadsView MaskedCase::Q() const {
  return {q.bytes.data(),
          s.q_dtype,
          static_cast<int64_t>(Tokens()),
          heads,
          s.dim,
          int64_t{heads} * s.dim,
          static_cast<int64_t>(s.dim)};
}

PagedKv MaskedCase::Kv(const Elements& x) const {
  const int64_t head = int64_t{s.page_size} * s.dim;
  return {x.bytes.data(), s.kv_dtype,        pages, s.page_size, s.kv_heads,
          s.dim,          head * s.kv_heads, s.dim, head};
}

PagedBatch MaskedCase::Batch() const {
  return {cu_q_lens, s.kv_lens, table.data(), max_pages, max_pages};
}

AttentionOptions MaskedCase::Options() const {
  AttentionOptions options;
  options.causal = s.causal;
  options.window = s.window;
  options.soft_cap = s.soft_cap;
  options.mask = Mask();
  if (s.slopes) options.alibi_slopes = slopes;
  if (s.sinks) options.sinks = sinks;
  return options;
}

MaskedResult MaskedCase::Run(const AttentionOptions& options) const {
  MaskedResult result;
  result.out.assign(q.bytes.size(), 0xff);
  result.lse.assign(Tokens() * static_cast<size_t>(heads), std::nanf(""));
  PagedAttention(Q(), Kv(*keys), Kv(*values), Batch(),
                 {result.out.data(), int64_t{heads} * s.dim, s.dim, result.lse.data(), heads},
                 options);
  return result;
}

size_t MaskedCase::MaskAt(size_t token, int head, int key) const {
  return ((s.one_token ? 0 : token) * static_cast<size_t>(s.one_head ? 1 : heads) +
          static_cast<size_t>(s.one_head ? 0 : head)) *
             static_cast<size_t>(MaskKeys() * s.key_stride) +
         static_cast<size_t>(key * s.key_stride);
}

size_t MaskedCase::KvAt(size_t b, int head, int key) const {
  const int32_t page =
      table[b * static_cast<size_t>(max_pages) + static_cast<size_t>(key / s.page_size)];
  return static_cast<size_t>(
      ((int64_t{page} * s.kv_heads + head) * s.page_size + key % s.page_size) * s.dim);
}

double MaskedCase::Added(size_t token, int head, int key) const {
  const double x = mask.At(MaskAt(token, head, key));
  return s.mask_dtype == DType::kU8 ? (x != 0 ? 0 : -kInf) : x;
}

bool MaskedCase::Sees(size_t b, int query, int key) const {
  const int position = s.kv_lens[b] - s.q_lens[b] + query;
  return key < s.kv_lens[b] && (!(s.causal || s.window) || key <= position) &&
         (!s.window || key > position - *s.window);
}

MaskedCase::Row MaskedCase::Reference(size_t b, int query, size_t token, int head) const {
  const size_t row = token * static_cast<size_t>(heads) + static_cast<size_t>(head);
  const size_t d = static_cast<size_t>(s.dim);
  std::vector<double> logits;
  std::vector<size_t> seen;
  for (int key = 0; key < s.kv_lens[b]; ++key) {
    const double added = Added(token, head, key);
    if (!Sees(b, query, key) || added == -kInf) {
      continue;
    }
    double dot = 0;
    const size_t at = KvAt(b, head / s.group, key);
    for (size_t i = 0; i < d; ++i) {
      dot += q.At(row * d + i) * keys->At(at + i);
    }
    double logit = dot / std::sqrt(static_cast<double>(s.dim));
    if (s.soft_cap) {
      logit = *s.soft_cap * std::tanh(logit / *s.soft_cap);
    }
    if (s.slopes) {
      const int position = s.kv_lens[b] - s.q_lens[b] + query;
      logit += static_cast<double>(slopes[static_cast<size_t>(head)]) * (key - position);
    }
    logits.push_back(logit + added);
    seen.push_back(at);
  }
  const double sink = s.sinks ? static_cast<double>(sinks[static_cast<size_t>(head)]) : -kInf;
  double largest = sink;
  for (const double logit : logits) largest = std::max(largest, logit);
  double weight = s.sinks ? std::exp(sink - largest) : 0;
  std::vector<double> sum(d, 0.0);
  for (size_t i = 0; i < logits.size(); ++i) {
    const double w = std::exp(logits[i] - largest);
    weight += w;
    for (size_t c = 0; c < d; ++c) sum[c] += w * values->At(seen[i] + c);
  }
  for (double& x : sum) x = weight > 0 ? x / weight : 0;
  return {sum, weight > 0 ? largest + std::log(weight) : -kInf};
}

std::string MaskedCase::RowDifference(const MaskedResult& result, const Row& expected, size_t row,
                                      double tolerance) const {
  const auto lse = static_cast<double>(result.lse[row]);
  if (!(lse == expected.lse || std::abs(lse - expected.lse) <= tolerance * 4)) {
    return Concat("row ", row, ": lse ", lse, ", not ", expected.lse);
  }
  for (size_t c = 0; c < expected.out.size(); ++c) {
    const size_t at = (row * expected.out.size() + c) * SizeOf(s.q_dtype);
    const double got = Decode(s.q_dtype, result.out.data() + at);
    if (!(std::abs(got - expected.out[c]) <= tolerance)) {
      return Concat("row ", row, " column ", c, ": ", got, ", not ", expected.out[c]);
    }
  }
  return "";
}

std::string MaskedCase::Difference(const MaskedResult& result, double tolerance) const {
  std::string difference;
  size_t token = 0;
  for (size_t b = 0; b < s.q_lens.size(); ++b) {
    for (int query = 0; query < s.q_lens[b]; ++query, ++token) {
      for (int head = 0; head < heads && difference.empty(); ++head) {
        const size_t row = token * static_cast<size_t>(heads) + static_cast<size_t>(head);
        difference = RowDifference(result, Reference(b, query, token, head), row, tolerance);
      }
    }
  }
  return difference;
}

}  // namespace riffle::test

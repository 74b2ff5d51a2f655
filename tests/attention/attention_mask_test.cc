// Masks and ALiBi slopes: against attention in double, as the same bits as options that mean the
// same, and without a look at what no query sees.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "riffle/attention.h"
#include "riffle/error.h"
#include "riffle/runtime.h"
#include "testing/distributions.h"
#include "testing/reference.h"
#include "testing/rng.h"

namespace riffle::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Elements of a dtype, made of floats.
struct Elements {
  DType dtype;
  std::vector<uint8_t> bytes;

  Elements(DType of, size_t n) : dtype(of), bytes(n * SizeOf(of)) {}
  void Put(size_t i, float x) {
    if (dtype == DType::kU8) {
      bytes[i] = static_cast<uint8_t>(x);
    } else {
      const uint32_t special = std::isnan(x) ? NaN(dtype, 0)
                               : x > 0       ? PlusInf(dtype)
                                             : MinusInf(dtype);
      Store(dtype, std::isfinite(x) ? Encode(dtype, x) : special, bytes.data() + i * SizeOf(dtype));
    }
  }
  double At(size_t i) const {
    return dtype == DType::kU8 ? bytes[i] : Decode(dtype, bytes.data() + i * SizeOf(dtype));
  }
};

// What a case has; members that are not named keep their values.
struct Spec {
  DType q_dtype = DType::kF32, kv_dtype = DType::kF32, mask_dtype = DType::kF32;
  int group = 1, kv_heads = 2, dim = 32, page_size = 16;
  std::vector<int> q_lens = {1}, kv_lens = {100};
  bool causal = false;
  std::optional<int64_t> window = {};
  std::optional<float> soft_cap = {};
  bool one_token = false, one_head = true;  // of the mask
  int key_stride = 1;
  int hidden_of_8 = 4;     // keys that the mask hides, of 8
  bool in_blocks = false;  // it hides whole blocks of 64
  bool adds = true;        // what it does not hide it adds something to
  bool slopes = false;
  bool sinks = false;
  bool poisoned = false;  // keys that no query sees, and hidden ones by chance, hold NaN
};

// A call, its mask and its answer in double.
class Case {
 public:
  Case(const Spec& spec, uint64_t seed)
      : s(spec),
        heads(spec.group * spec.kv_heads),
        rng(seed),
        q(spec.q_dtype, Tokens() * heads * spec.dim),
        mask(spec.mask_dtype, MaskSize()) {
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

  size_t Tokens() const {
    size_t tokens = 0;
    for (const int q_len : s.q_lens) {
      tokens += static_cast<size_t>(q_len);
    }
    return tokens;
  }
  int64_t MaskKeys() const { return *std::max_element(s.kv_lens.begin(), s.kv_lens.end()) + 5; }
  size_t MaskSize() const {
    return (s.one_token ? 1 : Tokens()) * static_cast<size_t>(s.one_head ? 1 : heads) *
           static_cast<size_t>(MaskKeys() * s.key_stride);
  }
  int64_t Pages(size_t b) const { return (s.kv_lens[b] + s.page_size - 1) / s.page_size; }

  AttentionMask Mask() const {
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
  HeadsView Q() const {
    return {q.bytes.data(),
            s.q_dtype,
            static_cast<int64_t>(Tokens()),
            heads,
            s.dim,
            int64_t{heads} * s.dim,
            static_cast<int64_t>(s.dim)};
  }
  PagedKv Kv(const Elements& x) const {
    const int64_t head = int64_t{s.page_size} * s.dim;
    return {x.bytes.data(), s.kv_dtype,        pages, s.page_size, s.kv_heads,
            s.dim,          head * s.kv_heads, s.dim, head};
  }
  PagedBatch Batch() const { return {cu_q_lens, s_kv_lens(), table.data(), max_pages, max_pages}; }
  AttentionOptions Options() const {
    AttentionOptions options;
    options.causal = s.causal;
    options.window = s.window;
    options.soft_cap = s.soft_cap;
    options.mask = Mask();
    if (s.slopes) options.alibi_slopes = slopes;
    if (s.sinks) options.sinks = sinks;
    return options;
  }

  struct Result {
    std::vector<uint8_t> out;
    std::vector<float> lse;
    bool operator==(const Result& other) const {
      return out == other.out &&
             std::memcmp(lse.data(), other.lse.data(), lse.size() * sizeof(float)) == 0;
    }
  };
  Result Run(const AttentionOptions& options) const {
    Result result;
    result.out.assign(q.bytes.size(), 0xff);
    result.lse.assign(Tokens() * static_cast<size_t>(heads), std::nanf(""));
    PagedAttention(Q(), Kv(*keys), Kv(*values), Batch(),
                   {result.out.data(), int64_t{heads} * s.dim, s.dim, result.lse.data(), heads},
                   options);
    return result;
  }
  Result Run() const { return Run(Options()); }

  size_t MaskAt(size_t token, int head, int key) const {
    return ((s.one_token ? 0 : token) * static_cast<size_t>(s.one_head ? 1 : heads) +
            static_cast<size_t>(s.one_head ? 0 : head)) *
               static_cast<size_t>(MaskKeys() * s.key_stride) +
           static_cast<size_t>(key * s.key_stride);
  }
  // -inf: hidden.
  double Added(size_t token, int head, int key) const {
    const double x = mask.At(MaskAt(token, head, key));
    return s.mask_dtype == DType::kU8 ? (x != 0 ? 0 : -kInf) : x;
  }
  bool Sees(size_t b, int query, int key) const {
    const int position = s.kv_lens[b] - s.q_lens[b] + query;
    return key < s.kv_lens[b] && (!(s.causal || s.window) || key <= position) &&
           (!s.window || key > position - *s.window);
  }
  size_t KvAt(size_t b, int head, int key) const {
    const int32_t page =
        table[b * static_cast<size_t>(max_pages) + static_cast<size_t>(key / s.page_size)];
    return static_cast<size_t>(
        ((int64_t{page} * s.kv_heads + head) * s.page_size + key % s.page_size) * s.dim);
  }

  // The largest error of any result, relative to the largest value.
  void ExpectRight(const Result& result, double tolerance, const std::string& what) const {
    size_t token = 0;
    for (size_t b = 0; b < s.q_lens.size(); ++b) {
      for (int query = 0; query < s.q_lens[b]; ++query, ++token) {
        for (int head = 0; head < heads; ++head) {
          ExpectRow(result, b, query, token, head, tolerance, what);
        }
      }
    }
  }

  Spec s;
  int heads;
  Rng rng;
  Elements q, mask;
  std::optional<Elements> keys, values;
  std::vector<int32_t> cu_q_lens, table;
  std::vector<float> slopes, sinks;
  int64_t pages = 0, max_pages = 0;

 private:
  float Number() { return static_cast<float>(rng.Unit() * 2 - 1); }
  const std::vector<int32_t>& s_kv_lens() const { return s.kv_lens; }

  void FillMask() {
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

  void Poison() {
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
          if (!seen) {
            for (int i = 0; i < s.dim; ++i) {
              keys->Put(KvAt(b, head, key) + static_cast<size_t>(i), std::nanf(""));
              values->Put(KvAt(b, head, key) + static_cast<size_t>(i),
                          i % 2 == 0 ? kInf : std::nanf(""));
            }
          }
        }
      }
    }
  }

  void ExpectRow(const Result& result, size_t b, int query, size_t token, int head,
                 double tolerance, const std::string& what) const {
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
    double largest = -kInf;
    for (const double x : logits) largest = std::max(largest, x);
    if (s.sinks) largest = std::max(largest, static_cast<double>(sinks[static_cast<size_t>(head)]));
    double weight = s.sinks ? std::exp(sinks[static_cast<size_t>(head)] - largest) : 0;
    std::vector<double> sum(d, 0.0);
    for (size_t i = 0; i < logits.size(); ++i) {
      const double w = std::exp(logits[i] - largest);
      weight += w;
      for (size_t c = 0; c < d; ++c) sum[c] += w * values->At(seen[i] + c);
    }
    const double lse = weight > 0 ? largest + std::log(weight) : -kInf;
    if (std::isinf(lse)) {
      ASSERT_EQ(result.lse[row], lse) << what << " row " << row;
    } else {
      ASSERT_NEAR(result.lse[row], lse, tolerance * 4) << what << " row " << row;
    }
    for (size_t c = 0; c < d; ++c) {
      const double got = Decode(s.q_dtype, result.out.data() + (row * d + c) * SizeOf(s.q_dtype));
      const double expected = weight > 0 ? sum[c] / weight : 0;
      ASSERT_NEAR(got, expected, tolerance) << what << " row " << row << " column " << c;
    }
  }
};

double Tolerance(const Spec& s) {
  return s.q_dtype == DType::kF32 ? 1e-5 : s.q_dtype == DType::kF16 ? 1e-3 : 1.5e-2;
}

void OnEveryTarget(const std::function<void(const std::string&)>& test) {
  for (const std::string& target : Targets()) {
    SetTarget(target);
    test(target);
  }
  SetTarget("");
}

std::vector<Spec> Specs() {
  std::vector<Spec> specs;
  const DType floats[] = {DType::kF32, DType::kF16, DType::kBF16};
  for (const DType mask : {DType::kF32, DType::kF16, DType::kBF16, DType::kU8}) {
    for (const DType q : floats) {
      for (const DType kv : floats) {
        specs.push_back({.q_dtype = q,
                         .kv_dtype = kv,
                         .mask_dtype = mask,
                         .group = 4,
                         .q_lens = {1, 3},
                         .kv_lens = {100, 700}});
      }
    }
  }
  for (const bool one_head : {false, true}) {
    for (const bool one_token : {false, true}) {
      Spec s{.q_dtype = DType::kBF16,
             .kv_dtype = DType::kBF16,
             .group = 3,
             .q_lens = {1, 70, 1},
             .kv_lens = {130, 200, 64},
             .one_token = one_token,
             .one_head = one_head};
      specs.push_back(s);
      s.key_stride = 2;
      s.in_blocks = true;
      specs.push_back(s);
      s.q_dtype = DType::kF32;
      s.poisoned = true;
      specs.push_back(s);
      s.causal = true;
      s.in_blocks = false;
      s.slopes = true;
      specs.push_back(s);
      s.window = 40;
      s.sinks = true;
      s.soft_cap = 2.0f;
      s.hidden_of_8 = 7;
      specs.push_back(s);
      s.hidden_of_8 = 8;
      specs.push_back(s);
      s.hidden_of_8 = 0;
      s.adds = false;
      s.kv_dtype = s.q_dtype = DType::kBF16;
      specs.push_back(s);
    }
  }
  return specs;
}

TEST(AttentionMask, IsTheMaskedSoftmaxInDouble) {
  OnEveryTarget([](const std::string& target) {
    uint64_t seed = 1;
    for (const Spec& spec : Specs()) {
      const Case c(spec, ++seed);
      c.ExpectRight(c.Run(), Tolerance(spec), target + " case " + std::to_string(seed));
    }
  });
}

// Of the options' window the mask is the matrix.
void MaskAsOptions(Case& c, const Spec& options) {
  size_t token = 0;
  Case like(options, 0);
  for (size_t b = 0; b < c.s.q_lens.size(); ++b) {
    for (int query = 0; query < c.s.q_lens[b]; ++query, ++token) {
      for (int key = 0; key < c.MaskKeys(); ++key) {
        const bool seen = like.Sees(b, query, key);
        c.mask.Put(c.MaskAt(token, 0, key), c.s.mask_dtype == DType::kU8 ? (seen ? 1.0f : 0.0f)
                                            : seen                       ? 0.0f
                                                                         : -kInf);
      }
    }
  }
}

TEST(AttentionMask, GivesTheBitsOfOptionsThatMeanTheSame) {
  OnEveryTarget([](const std::string& target) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const DType mask : {DType::kF16, DType::kU8}) {
        for (const std::optional<int64_t> window :
             {std::optional<int64_t>(), std::optional<int64_t>(50)}) {
          for (const int q_len : {1, 5, 150}) {
            Spec spec{.q_dtype = dtype,
                      .kv_dtype = dtype,
                      .mask_dtype = mask,
                      .group = 4,
                      .q_lens = {q_len, 1},
                      .kv_lens = {900, 33}};
            Case c(spec, 7);
            spec.causal = true;
            spec.window = window;
            MaskAsOptions(c, spec);
            AttentionOptions options = c.Options();
            const Case::Result masked = c.Run(options);
            options.mask = {};
            options.causal = true;
            options.window = window;
            EXPECT_TRUE(c.Run(options) == masked)
                << target << " " << Name(dtype) << " " << q_len << " queries";
          }
        }
      }
    }
  });
}

// The same query in a batch of its own, on any number of threads, of any page size.
TEST(AttentionMask, ChangesNoBitByTheBatch) {
  OnEveryTarget([](const std::string& target) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const bool one_head : {true, false}) {
        const Spec spec{.q_dtype = dtype,
                        .kv_dtype = dtype,
                        .mask_dtype = DType::kF16,
                        .group = 2,
                        .q_lens = {90},
                        .kv_lens = {1300},
                        .one_head = one_head,
                        .hidden_of_8 = 5,
                        .in_blocks = true,
                        .slopes = true};
        const Case c(spec, 11);
        ThreadPool one(1);
        ThreadPool three(3);
        AttentionOptions options = c.Options();
        const Case::Result all = c.Run(options);
        options.pool = &one;
        EXPECT_TRUE(c.Run(options) == all) << target;
        options.pool = &three;
        EXPECT_TRUE(c.Run(options) == all) << target;
        const size_t row = static_cast<size_t>(c.heads) * 32 * SizeOf(dtype);
        for (const size_t query : {size_t{0}, size_t{41}, size_t{89}}) {
          Case alone = c;  // without slopes, which know the query's position
          options = c.Options();
          options.alibi_slopes = {};
          const Case::Result plain = c.Run(options);
          alone.s.q_lens = {1};
          alone.cu_q_lens = {0, 1};
          alone.q.bytes.assign(c.q.bytes.begin() + static_cast<int64_t>(query * row),
                               c.q.bytes.begin() + static_cast<int64_t>((query + 1) * row));
          alone.s.slopes = false;
          AttentionOptions one_query = alone.Options();
          one_query.mask = c.Mask();
          one_query.mask.tokens = 1;
          one_query.mask.data = static_cast<const uint8_t*>(one_query.mask.data) +
                                c.MaskAt(query, 0, 0) * SizeOf(DType::kF16);
          const Case::Result result = alone.Run(one_query);
          EXPECT_EQ(std::memcmp(result.out.data(), plain.out.data() + query * row, row), 0)
              << target << " query " << query;
        }
      }
    }
  });
}

TEST(AttentionMask, PlansKnowIt) {
  const Spec spec{.mask_dtype = DType::kBF16,
                  .group = 2,
                  .q_lens = {40, 1},
                  .kv_lens = {300, 90},
                  .in_blocks = true};
  const Case c(spec, 5);
  const AttentionOptions options = c.Options();
  const AttentionPlan plan(c.Q(), c.Kv(*c.keys), c.Batch(), options);
  Case::Result planned = c.Run(options);
  const Case::Result direct = planned;
  std::fill(planned.out.begin(), planned.out.end(), uint8_t{0xff});
  const AttentionOut out{planned.out.data(), int64_t{c.heads} * 32, 32, planned.lse.data(),
                         c.heads};
  PagedAttention(c.Q(), c.Kv(*c.keys), c.Kv(*c.values), plan, out, options);
  EXPECT_TRUE(planned == direct);
  AttentionOptions without = options;
  without.mask = {};
  EXPECT_THROW(PagedAttention(c.Q(), c.Kv(*c.keys), c.Kv(*c.values), plan, out, without), Error);
}

// Transformers writes the lowest finite number where it means hidden: finite numbers add up, so a
// row of nothing else is an average, as it is there.
TEST(AttentionMask, FiniteNumbersHideNothing) {
  Spec spec{.q_lens = {1}, .kv_lens = {64}};
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    spec.mask_dtype = dtype;
    Case c(spec, 3);
    for (int key = 0; key < 64; ++key) {
      c.mask.Put(static_cast<size_t>(key), std::numeric_limits<float>::lowest());
    }
    double average = 0;
    for (int key = 0; key < 64; ++key) average += c.values->At(c.KvAt(0, 0, key)) / 64;
    const Case::Result result = c.Run();
    EXPECT_NEAR(Decode(DType::kF32, result.out.data()), average, 1e-6);
  }
}

TEST(AttentionMask, ANaNIsSeen) {
  Case c({.mask_dtype = DType::kF32, .group = 2, .q_lens = {2}, .kv_lens = {70}}, 3);
  c.mask.Put(c.MaskAt(1, 0, 69), std::nanf(""));
  const Case::Result result = c.Run();
  const auto at = [&](size_t i) { return Decode(DType::kF32, result.out.data() + 4 * i); };
  EXPECT_FALSE(std::isnan(at(0)));
  EXPECT_TRUE(std::isnan(at(4 * 32)));
}

// Pages of keys and values that no query sees may not even be readable.
TEST(AttentionMask, ReadsNoBlockThatNoQuerySees) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  constexpr int kDim = 64, kKeys = 512;  // a block of 64 keys in f32 takes 16 KiB
  const size_t bytes = size_t{kKeys} * kDim * 4;
  ASSERT_EQ(bytes / 8 % page, 0u);
  uint8_t* memory[2];
  for (uint8_t*& m : memory) {
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(mapped, MAP_FAILED);
    m = static_cast<uint8_t*>(mapped);
    for (size_t i = 0; i < bytes; i += 4) {
      const float x = static_cast<float>(i % 52) * 0.01f;
      std::memcpy(m + i, &x, 4);
    }
    for (const size_t block : {size_t{0}, size_t{3}, size_t{4}, size_t{7}}) {
      ASSERT_EQ(mprotect(m + block * bytes / 8, bytes / 8, PROT_NONE), 0);
    }
  }
  for (const int q_len : {1, 40}) {
    std::vector<float> q(static_cast<size_t>(q_len * 4 * kDim), 0.1f);
    std::vector<float> out(q.size());
    std::vector<uint8_t> mask(kKeys, 1);
    for (const size_t block : {size_t{0}, size_t{3}, size_t{4}, size_t{7}}) {
      std::fill_n(mask.begin() + static_cast<int64_t>(block) * 64, 64, uint8_t{0});
    }
    const int32_t kv_len[] = {kKeys}, cu[] = {0, q_len}, table[] = {0, 1, 2, 3};
    const auto kv = [&](const uint8_t* data) {
      return PagedKv{data, DType::kF32, 4, 128, 1, kDim, 128 * kDim, kDim, 0};
    };
    AttentionOptions options;
    options.causal = false;
    options.mask = {
        .data = mask.data(), .dtype = DType::kU8, .tokens = 1, .heads = 1, .keys = kKeys};
    OnEveryTarget([&](const std::string&) {
      PagedAttention({q.data(), DType::kF32, q_len, 4, kDim, 4 * kDim, kDim}, kv(memory[0]),
                     kv(memory[1]), {cu, kv_len, table, 4, 4}, {out.data(), 4 * kDim, kDim},
                     options);
      EXPECT_GT(out[5], 0);
    });
  }
  for (uint8_t* m : memory) munmap(m, bytes);
}

TEST(AttentionMask, Errors) {
  Case c({.group = 2, .q_lens = {2}, .kv_lens = {70}}, 3);
  const auto expect = [&](Code code, const char* word,
                          const std::function<void(AttentionOptions&)>& spoil) {
    AttentionOptions options = c.Options();
    spoil(options);
    try {
      c.Run(options);
      ADD_FAILURE() << "did not throw: " << word;
    } catch (const Error& error) {
      EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  expect(Code::kBadDType, "mask is of int16", [](auto& o) { o.mask.dtype = DType::kI16; });
  expect(Code::kBadShape, "mask.tokens = 3", [](auto& o) { o.mask.tokens = 3; });
  expect(Code::kBadShape, "mask.heads = 0", [](auto& o) { o.mask.heads = 0; });
  expect(Code::kBadShape, "mask.keys = 69", [](auto& o) { o.mask.keys = 69; });
  expect(Code::kBadShape, "strides of mask",
         [](auto& o) { o.mask.token_stride = int64_t{1} << 61; });
  const std::vector<float> slopes(3, 0.5f);
  expect(Code::kBadShape, "alibi_slopes = 3", [&](auto& o) { o.alibi_slopes = slopes; });
  const std::vector<float> infinite(4, kInf);
  expect(Code::kBadOption, "alibi_slopes[0] = inf", [&](auto& o) { o.alibi_slopes = infinite; });
  std::vector<float> shared(600, 0.0f);
  AttentionOptions options = c.Options();
  options.mask = {.data = shared.data(), .tokens = 1, .heads = 1, .keys = 70};
  try {
    PagedAttention(c.Q(), c.Kv(*c.keys), c.Kv(*c.values), c.Batch(), {shared.data() + 69, 128, 32},
                   options);
    ADD_FAILURE() << "did not throw";
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(Code::kOverlap));
    EXPECT_NE(std::string(error.what()).find("out shares memory with mask"), std::string::npos);
  }
}

}  // namespace
}  // namespace riffle::test

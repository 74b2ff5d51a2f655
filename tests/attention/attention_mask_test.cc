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
#include "testing/error_check.h"
#include "testing/masked_attention_case.h"
#include "testing/reference.h"
#include "testing/targets.h"

namespace riffle::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

double Tolerance(const MaskedSpec& s) {
  return s.q_dtype == DType::kF32 ? 1e-5 : s.q_dtype == DType::kF16 ? 1e-3 : 1.5e-2;
}

std::vector<MaskedSpec> Specs() {
  std::vector<MaskedSpec> specs;
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
      MaskedSpec s{.q_dtype = DType::kBF16,
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
    for (const MaskedSpec& spec : Specs()) {
      const MaskedCase c(spec, ++seed);
      EXPECT_EQ(c.Difference(c.Run(), Tolerance(spec)), "") << target << " case " << seed;
    }
  });
}

// Makes the mask hide what causal and window of `options` hide.
void MaskAsOptions(MaskedCase& c, const MaskedSpec& options) {
  size_t token = 0;
  MaskedCase like(options, 0);
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
            MaskedSpec spec{.q_dtype = dtype,
                            .kv_dtype = dtype,
                            .mask_dtype = mask,
                            .group = 4,
                            .q_lens = {q_len, 1},
                            .kv_lens = {900, 33}};
            MaskedCase c(spec, 7);
            spec.causal = true;
            spec.window = window;
            MaskAsOptions(c, spec);
            AttentionOptions options = c.Options();
            const MaskedResult masked = c.Run(options);
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
        const MaskedSpec spec{.q_dtype = dtype,
                              .kv_dtype = dtype,
                              .mask_dtype = DType::kF16,
                              .group = 2,
                              .q_lens = {90},
                              .kv_lens = {1300},
                              .one_head = one_head,
                              .hidden_of_8 = 5,
                              .in_blocks = true,
                              .slopes = true};
        const MaskedCase c(spec, 11);
        ThreadPool one(1);
        ThreadPool three(3);
        AttentionOptions options = c.Options();
        const MaskedResult all = c.Run(options);
        options.pool = &one;
        EXPECT_TRUE(c.Run(options) == all) << target;
        options.pool = &three;
        EXPECT_TRUE(c.Run(options) == all) << target;
        const size_t row = static_cast<size_t>(c.heads) * 32 * SizeOf(dtype);
        for (const size_t query : {size_t{0}, size_t{41}, size_t{89}}) {
          MaskedCase alone = c;  // without slopes, which know the query's position
          options = c.Options();
          options.alibi_slopes = {};
          const MaskedResult plain = c.Run(options);
          alone.s.q_lens = std::vector<int>{1};
          alone.cu_q_lens = {0, 1};
          alone.q.bytes.assign(c.q.bytes.begin() + static_cast<int64_t>(query * row),
                               c.q.bytes.begin() + static_cast<int64_t>((query + 1) * row));
          alone.s.slopes = false;
          AttentionOptions one_query = alone.Options();
          one_query.mask = c.Mask();
          one_query.mask.tokens = 1;
          one_query.mask.data = static_cast<const uint8_t*>(one_query.mask.data) +
                                c.MaskAt(query, 0, 0) * SizeOf(DType::kF16);
          const MaskedResult result = alone.Run(one_query);
          EXPECT_EQ(std::memcmp(result.out.data(), plain.out.data() + query * row, row), 0)
              << target << " query " << query;
        }
      }
    }
  });
}

TEST(AttentionMask, PlansKnowIt) {
  const MaskedSpec spec{.mask_dtype = DType::kBF16,
                        .group = 2,
                        .q_lens = {40, 1},
                        .kv_lens = {300, 90},
                        .in_blocks = true};
  const MaskedCase c(spec, 5);
  const AttentionOptions options = c.Options();
  const AttentionPlan plan(c.Q(), c.Kv(*c.keys), c.Batch(), options);
  MaskedResult planned = c.Run(options);
  const MaskedResult direct = planned;
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
  MaskedSpec spec{.q_lens = {1}, .kv_lens = {64}};
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    spec.mask_dtype = dtype;
    MaskedCase c(spec, 3);
    for (int key = 0; key < 64; ++key) {
      c.mask.Put(static_cast<size_t>(key), std::numeric_limits<float>::lowest());
    }
    double average = 0;
    for (int key = 0; key < 64; ++key) average += c.values->At(c.KvAt(0, 0, key)) / 64;
    const MaskedResult result = c.Run();
    EXPECT_NEAR(Decode(DType::kF32, result.out.data()), average, 1e-6);
  }
}

TEST(AttentionMask, ANaNIsSeen) {
  MaskedCase c({.mask_dtype = DType::kF32, .group = 2, .q_lens = {2}, .kv_lens = {70}}, 3);
  c.mask.Put(c.MaskAt(1, 0, 69), std::nanf(""));
  const MaskedResult result = c.Run();
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

// The sums of a tile are not cleared before a KV split: those of tiles that the mask hides from all
// of it are what an earlier call left, here NaN.
TEST(AttentionMask, TilesThatSeeNothingOfAKvSplitAddNothing) {
  OnEveryTarget([](const std::string& target) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const MaskedSpec spec{.q_dtype = dtype,
                            .kv_dtype = dtype,
                            .mask_dtype = DType::kU8,
                            .group = 4,
                            .q_lens = {70},
                            .kv_lens = {1300}};
      MaskedCase c(spec, 5);
      for (int query = 0; query < 70; ++query) {
        const int tile = query / 8;
        for (int head = 0; head < c.heads; ++head) {
          for (int key = 0; key < c.MaskKeys(); ++key) {
            const bool seen = tile % 3 != 2 && (tile + key / 512) % 2 == 0;
            c.mask.Put(c.MaskAt(static_cast<size_t>(query), head, key), seen ? 1.0f : 0.0f);
          }
        }
      }
      MaskedCase poisoned = c;
      std::fill(poisoned.q.bytes.begin(), poisoned.q.bytes.end(), uint8_t{0xff});
      ThreadPool pool(1);
      AttentionOptions options = poisoned.Options();
      options.pool = &pool;
      poisoned.Run(options);
      options = c.Options();
      options.pool = &pool;
      EXPECT_EQ(c.Difference(c.Run(options), Tolerance(spec)), "") << target << " " << Name(dtype);
    }
  });
}

TEST(AttentionMask, Errors) {
  MaskedCase c({.group = 2, .q_lens = {2}, .kv_lens = {70}}, 3);
  const auto expect = [&](Code code, const char* word,
                          const std::function<void(AttentionOptions&)>& spoil) {
    AttentionOptions options = c.Options();
    spoil(options);
    ExpectError(code, word, [&] { c.Run(options); });
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
  ExpectError(Code::kOverlap, "out shares memory with mask", [&] {
    PagedAttention(c.Q(), c.Kv(*c.keys), c.Kv(*c.values), c.Batch(), {shared.data() + 69, 128, 32},
                   options);
  });
}

}  // namespace
}  // namespace riffle::test

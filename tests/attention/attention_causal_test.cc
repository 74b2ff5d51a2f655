// Causality of each sequence by itself: every query has the bits of the call in which all sequences
// are as its own is. Those calls are compared with attention in double elsewhere.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "riffle/attention.h"
#include "riffle/error.h"
#include "testing/attention_case.h"
#include "testing/rng.h"

namespace riffle::test {
namespace {

// The dense results of a case.
struct Results {
  int64_t heads, dim;
  std::vector<uint8_t> out;
  std::vector<float> lse;
  AttentionOut view;

  explicit Results(const HeadsView& q) : heads(q.heads), dim(q.head_dim) {
    out.assign(static_cast<size_t>(q.tokens * heads * dim) * SizeOf(q.dtype), 0xff);
    lse.assign(static_cast<size_t>(q.tokens * heads), std::numeric_limits<float>::quiet_NaN());
    view = {out.data(), heads * dim, dim, lse.data(), heads};
  }
  // Whether tokens [begin, end) have the same bits.
  bool SameBits(const Results& other, int64_t begin, int64_t end) const {
    const size_t lse_row = static_cast<size_t>(heads) * sizeof(float);
    const size_t row = heads == 0 ? 0 : out.size() / (lse.size() / static_cast<size_t>(heads));
    const auto at = static_cast<size_t>(begin);
    const auto n = static_cast<size_t>(end - begin);
    return std::memcmp(out.data() + at * row, other.out.data() + at * row, n * row) == 0 &&
           std::memcmp(reinterpret_cast<const uint8_t*>(lse.data()) + at * lse_row,
                       reinterpret_cast<const uint8_t*>(other.lse.data()) + at * lse_row,
                       n * lse_row) == 0;
  }
};

Results Answer(const AttentionCase& attention, const PagedBatch& batch,
               const AttentionOptions& options) {
  const HeadsView q = attention.q();
  Results results(q);
  PagedAttention(q, attention.keys(), attention.values(), batch, results.view, options);
  return results;
}

AttentionSpec RandomSpec(Rng& rng) {
  AttentionSpec spec{.q_lens = {}, .kv_lens = {}};
  for (int64_t b = rng.Between(1, 5); b > 0; --b) {
    spec.kv_lens.push_back(static_cast<int>(rng.Below(rng.OneIn(3) ? 2500 : 200)));
    const int longest = spec.kv_lens.back();
    spec.q_lens.push_back(static_cast<int>(rng.OneIn(2) ? std::min(longest, 1)
                                                        : rng.Below(std::min(longest, 300) + 1)));
  }
  spec.kv_heads = static_cast<int>(rng.Between(1, 3));
  spec.group = static_cast<int>(rng.Between(1, 5));
  spec.dim = 40;
  spec.page_size = static_cast<int>(rng.Between(1, 40));
  spec.q_dtype = spec.kv_dtype = rng.OneIn(2) ? DType::kBF16 : DType::kF32;
  spec.causal = false;
  if (rng.OneIn(3)) spec.window = rng.Between(1, 300);
  if (rng.OneIn(2)) spec.window_right = rng.Between(0, 300);
  spec.seed = rng.Next();
  return spec;
}

TEST(AttentionCausal, EachSequenceHasTheBitsOfACallThatIsAllAsItIs) {
  Rng rng(5);
  ThreadPool one(1);
  ThreadPool three(3);
  AttentionPlan plan;
  for (int i = 0; i < 80; ++i) {
    const AttentionCase attention(RandomSpec(rng));
    PagedBatch batch = attention.batch();
    AttentionOptions options = attention.options();
    const Results whole = Answer(attention, batch, options);
    AttentionOptions causal = options;
    causal.causal = true;
    causal.window_right.reset();
    const Results triangle = Answer(attention, batch, causal);
    std::vector<uint8_t> flags(batch.kv_lens.size());
    for (uint8_t& flag : flags) {
      flag = rng.OneIn(2) ? static_cast<uint8_t>(rng.Between(1, 255)) : 0;
    }
    batch.causal = flags;
    for (ThreadPool* pool : {&one, &three}) {
      options.pool = pool;
      const Results mixed = Answer(attention, batch, options);
      plan.Make(attention.q(), attention.keys(), batch, options);
      Results planned(attention.q());
      PagedAttention(attention.q(), attention.keys(), attention.values(), plan, planned.view,
                     options);
      ASSERT_TRUE(planned.SameBits(mixed, 0, attention.tokens())) << "case " << i;
      for (size_t b = 0; b < flags.size(); ++b) {
        ASSERT_TRUE(mixed.SameBits(flags[b] != 0 ? triangle : whole, batch.cu_q_lens[b],
                                   batch.cu_q_lens[b + 1]))
            << "case " << i << " sequence " << b;
      }
    }
    // With causal set, flags of 0 take nothing back.
    ASSERT_TRUE(Answer(attention, batch, causal).SameBits(triangle, 0, attention.tokens()));
  }
}

TEST(AttentionCausal, Errors) {
  const AttentionCase attention({.q_lens = {2, 9}, .kv_lens = {40, 4}, .causal = false});
  PagedBatch batch = attention.batch();
  const auto error_of = [&](const std::vector<uint8_t>& flags) -> std::string {
    batch.causal = flags;
    try {
      const Results results = Answer(attention, batch, attention.options());
      for (const float lse : results.lse) {
        EXPECT_FALSE(std::isnan(lse));
      }
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  };
  EXPECT_EQ(error_of({}), "");
  EXPECT_EQ(error_of({0, 0}), "");
  EXPECT_EQ(error_of({1, 0}), "");  // cross attention beside a causal sequence
  EXPECT_NE(error_of({0, 1}).find("sequence 1 has 9 queries but kv_lens[1] = 4"),
            std::string::npos);
  EXPECT_NE(error_of({1}).find("the number of causal flags = 1 but the number of kv_lens = 2"),
            std::string::npos);

  std::vector<uint8_t> flags = {1, 0};
  batch.causal = flags;
  const HeadsView q = attention.q();
  Results results(q);
  results.view.lse = reinterpret_cast<float*>(flags.data());
  EXPECT_THROW(PagedAttention(q, attention.keys(), attention.values(), batch, results.view, {}),
               Error);
  EXPECT_EQ(flags[0], 1);
}

}  // namespace
}  // namespace riffle::test

// AttentionPlan and int64 indices: a call with them has the bits of the call without them, and a
// plan refuses what it was not made for.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "riffle/attention.h"
#include "riffle/error.h"
#include "riffle/roofline.h"
#include "testing/attention_case.h"
#include "testing/error_check.h"
#include "testing/rng.h"

namespace riffle::test {
namespace {

// The dense results of a case; NaN before the call.
struct Results {
  std::vector<uint8_t> out;
  std::vector<float> lse;
  AttentionOut view;

  explicit Results(const AttentionCase& attention) {
    const HeadsView q = attention.q();
    out.assign(static_cast<size_t>(q.tokens * q.heads * q.head_dim) * SizeOf(q.dtype), 0xff);
    lse.assign(static_cast<size_t>(q.tokens * q.heads), std::numeric_limits<float>::quiet_NaN());
    view = {out.data(), q.heads * q.head_dim, q.head_dim, lse.data(), q.heads};
  }
  bool SameBits(const Results& other) const {
    return out == other.out && (lse.empty() || std::memcmp(lse.data(), other.lse.data(),
                                                           lse.size() * sizeof(float)) == 0);
  }
};

Results Plain(const AttentionCase& attention) {
  Results results(attention);
  PagedAttention(attention.q(), attention.keys(), attention.values(), attention.batch(),
                 results.view, attention.options());
  return results;
}

Results Planned(const AttentionCase& attention, const AttentionPlan& plan,
                ThreadPool* pool = nullptr) {
  Results results(attention);
  AttentionOptions options = attention.options();
  options.pool = pool;
  PagedAttention(attention.q(), attention.keys(), attention.values(), plan, results.view, options);
  return results;
}

// A batch's arrays as int64.
struct WideBatch {
  std::vector<int64_t> cu_q_lens, kv_lens, table;
  PagedBatch batch;

  explicit WideBatch(const PagedBatch& from) : batch(from) {
    for (size_t i = 0; i < from.cu_q_lens.size(); ++i) cu_q_lens.push_back(from.cu_q_lens[i]);
    for (size_t b = 0; b < from.kv_lens.size(); ++b) {
      kv_lens.push_back(from.kv_lens[b]);
      for (int64_t i = 0; i < from.page_table_stride; ++i) {
        table.push_back(from.page_table[static_cast<int64_t>(b) * from.page_table_stride + i]);
      }
    }
    batch.cu_q_lens = cu_q_lens;
    batch.kv_lens = kv_lens;
    batch.page_table = table.data();
  }
};

AttentionSpec RandomSpec(Rng& rng) {
  AttentionSpec spec{.q_lens = {}, .kv_lens = {}};
  for (int64_t b = rng.Between(0, 4); b > 0; --b) {
    spec.kv_lens.push_back(static_cast<int>(rng.Below(rng.OneIn(3) ? 2500 : 200)));
    const int longest = spec.kv_lens.back();
    spec.q_lens.push_back(static_cast<int>(rng.OneIn(2) ? std::min(longest, 1)
                                                        : rng.Below(std::min(longest, 80) + 1)));
  }
  spec.kv_heads = static_cast<int>(rng.Between(1, 3));
  spec.group = static_cast<int>(rng.Between(1, 5));
  spec.dim = 40;
  spec.page_size = static_cast<int>(rng.Between(1, 40));
  spec.q_dtype = spec.kv_dtype = rng.OneIn(2) ? DType::kBF16 : DType::kF32;
  spec.causal = !rng.OneIn(3);
  if (rng.OneIn(3)) spec.window = rng.Between(1, 300);
  if (!spec.causal && rng.OneIn(2)) spec.window_right = rng.Between(0, 300);
  spec.sinks = rng.OneIn(3);
  spec.seed = rng.Next();
  return spec;
}

TEST(AttentionPlan, HasTheBitsOfTheCallWithoutIt) {
  Rng rng(2);
  ThreadPool one(1);
  ThreadPool three(3);
  AttentionPlan plan;  // made again for every case
  for (int i = 0; i < 80; ++i) {
    const AttentionCase attention(RandomSpec(rng));
    const Results plain = Plain(attention);
    for (ThreadPool* planned_on : {&one, &three}) {
      AttentionOptions options = attention.options();
      options.pool = planned_on;
      WideBatch wide(attention.batch());
      plan.Make(attention.q(), attention.keys(), rng.OneIn(2) ? wide.batch : attention.batch(),
                options);
      for (ThreadPool* pool : {&one, &three}) {
        ASSERT_TRUE(Planned(attention, plan, pool).SameBits(plain)) << "case " << i;
      }
    }
  }
}

TEST(AttentionPlan, IndicesOfInt64AreThoseOfInt32) {
  Rng rng(3);
  for (int i = 0; i < 40; ++i) {
    const AttentionCase attention(RandomSpec(rng));
    Results results(attention);
    const WideBatch wide(attention.batch());
    PagedAttention(attention.q(), attention.keys(), attention.values(), wide.batch, results.view,
                   attention.options());
    ASSERT_TRUE(results.SameBits(Plain(attention))) << "case " << i;
    EXPECT_EQ(ReadPages(attention.keys(), attention.values(), wide.batch),
              ReadPages(attention.keys(), attention.values(), attention.batch()));
  }
}

AttentionSpec SmallSpec() { return {.q_lens = {1, 3}, .kv_lens = {40, 700}, .causal = true}; }

// A plan keeps what the caller's arrays held when it was made.
TEST(AttentionPlan, KeepsItsOwnCopyOfTheBatch) {
  const AttentionCase attention(SmallSpec());
  WideBatch wide(attention.batch());
  AttentionPlan made(attention.q(), attention.keys(), wide.batch, attention.options());
  const AttentionPlan plan = std::move(made);
  for (std::vector<int64_t>* array : {&wide.cu_q_lens, &wide.kv_lens, &wide.table}) {
    array->assign(array->size(), std::numeric_limits<int64_t>::max());
  }
  EXPECT_TRUE(Planned(attention, plan).SameBits(Plain(attention)));
}

TEST(AttentionPlan, NeedsNoData) {
  const AttentionCase attention(SmallSpec());
  HeadsView q = attention.q();
  PagedKv keys = attention.keys();
  q.data = keys.data = nullptr;
  const AttentionPlan plan(q, keys, attention.batch(), attention.options());
  EXPECT_TRUE(Planned(attention, plan).SameBits(Plain(attention)));
}

TEST(AttentionPlan, RefusesOtherShapesAndOptions) {
  const AttentionCase attention(SmallSpec());
  const AttentionPlan plan(attention.q(), attention.keys(), attention.batch(), attention.options());
  const auto refuses = [&](Code code, const std::vector<std::string>& words, const auto& spoil) {
    HeadsView q = attention.q();
    PagedKv keys = attention.keys();
    PagedKv values = attention.values();
    AttentionOptions options = attention.options();
    spoil(q, keys, values, options);
    Results results(attention);
    const Results before = results;
    ExpectError(code, words, [&] { PagedAttention(q, keys, values, plan, results.view, options); });
    EXPECT_TRUE(results.out == before.out);
  };
  refuses(Code::kBadShape, {"q.tokens = 3", "4"}, [](auto& q, auto&, auto&, auto&) { --q.tokens; });
  refuses(Code::kBadShape, {"q.heads = 2", "4"}, [](auto& q, auto&, auto&, auto&) { q.heads = 2; });
  refuses(Code::kBadShape, {"q.head_dim = 32", "64"},
          [](auto& q, auto& k, auto& v, auto&) { q.head_dim = k.head_dim = v.head_dim = 32; });
  refuses(Code::kBadShape, {"keys.kv_heads = 1", "2"},
          [](auto&, auto& k, auto& v, auto&) { k.kv_heads = v.kv_heads = 1; });
  refuses(Code::kBadShape, {"keys.num_pages"},
          [](auto&, auto& k, auto& v, auto&) { v.num_pages = --k.num_pages; });
  refuses(Code::kBadShape, {"keys.page_size = 8", "16"},
          [](auto&, auto& k, auto& v, auto&) { v.page_size = k.page_size = 8; });
  refuses(Code::kBadShape, {"values.page_size"},
          [](auto&, auto&, auto& v, auto&) { v.page_size = 8; });
  refuses(Code::kBadShape, {"q.data"}, [](auto& q, auto&, auto&, auto&) { q.data = nullptr; });
  refuses(Code::kBadOption, {"causal = 0"}, [](auto&, auto&, auto&, auto& o) { o.causal = false; });
  refuses(Code::kBadOption, {"window = 9"}, [](auto&, auto&, auto&, auto& o) { o.window = 9; });
  refuses(Code::kBadOption, {"soft_cap"}, [](auto&, auto&, auto&, auto& o) { o.soft_cap = -1; });
  // Arguments that the plan does not depend on may differ.
  Results results(attention);
  AttentionOptions options = attention.options();
  options.scale = 0.5f;
  options.soft_cap = 3.0f;
  EXPECT_NO_THROW(PagedAttention(attention.q(), attention.keys(), attention.values(), plan,
                                 results.view, options));
}

TEST(AttentionPlan, IsOfNoBatchAfterAnError) {
  const AttentionCase attention(SmallSpec());
  AttentionPlan plan(attention.q(), attention.keys(), attention.batch(), attention.options());
  WideBatch wide(attention.batch());
  wide.table[1] = int64_t{1} << 32;  // its lower 32 bits would name a page
  const auto make = [&] {
    plan.Make(attention.q(), attention.keys(), wide.batch, attention.options());
  };
  ExpectError(Code::kBadPage, "page_table[0, 1] = 4294967296", make);
  ExpectError(Code::kBadShape, "no batch", [&] { Planned(attention, plan); });
  wide = WideBatch(attention.batch());
  wide.kv_lens[0] = (int64_t{1} << 32) + 40;
  wide.batch.kv_lens = wide.kv_lens;
  wide.batch.page_table = wide.table.data();
  wide.batch.cu_q_lens = wide.cu_q_lens;
  ExpectError(Code::kBadRange, "kv_lens[0] = 4294967336", make);
  AttentionPlan empty;
  ExpectError(Code::kBadShape, "no batch", [&] { Planned(attention, empty); });
  const AttentionPlan moved = std::move(empty);
  ExpectError(Code::kBadShape, "plan", [&] { Planned(attention, empty); });  // NOLINT
  wide.kv_lens[0] = 40;
  make();
  EXPECT_TRUE(Planned(attention, plan).SameBits(Plain(attention)));
}

TEST(AttentionPlan, OutMustNotTouchTheCallersIndices) {
  const AttentionCase attention(SmallSpec());
  WideBatch wide(attention.batch());
  Results results(attention);
  results.view.lse = reinterpret_cast<float*>(wide.table.data());
  ExpectError(Code::kOverlap, {"lse", "page_table"}, [&] {
    PagedAttention(attention.q(), attention.keys(), attention.values(), wide.batch, results.view,
                   attention.options());
  });
}

}  // namespace
}  // namespace riffle::test

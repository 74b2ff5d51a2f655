// SparseAttention and PagedAttention are one arithmetic: a selection of every key in order has the
// bits of attention to all keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "riffle/sparse_attention.h"
#include "testing/reference.h"
#include "testing/rng.h"
#include "testing/sparse_attention_reference.h"
#include "testing/targets.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

std::vector<uint8_t> Random(DType dtype, int64_t count, Rng& rng) {
  const auto element = static_cast<int64_t>(SizeOf(dtype));
  std::vector<uint8_t> bytes(static_cast<size_t>(count * element));
  for (int64_t i = 0; i < count; ++i) {
    Store(dtype, Encode(dtype, static_cast<float>(4 * rng.Unit() - 2)), bytes.data() + i * element);
  }
  return bytes;
}

struct Result {
  std::vector<uint8_t> out;
  std::vector<float> lse;
  bool operator==(const Result& other) const {
    return out == other.out && lse.size() == other.lse.size() &&
           std::memcmp(lse.data(), other.lse.data(), lse.size() * sizeof(float)) == 0;
  }
};

// One query of `heads` heads over `rows`, [count][stride] of which dim are a key.
struct Case {
  DType q_dtype, dtype;
  int64_t heads, dim, value_dim, count, page_size;
  bool sinks;
  uint64_t seed;

  std::vector<uint8_t> q = {}, rows = {};
  std::vector<float> sink = {};
  HeadsView view = {};

  void Make() {
    Rng rng(seed);
    q = Random(q_dtype, heads * dim, rng);
    rows = Random(dtype, pool_pages() * page_size * stride(), rng);
    for (int64_t h = 0; sinks && h < heads; ++h) {
      sink.push_back(static_cast<float>(rng.Unit() * 4 - 2));
    }
    view = {q.data(), q_dtype, 1, heads, dim, heads * dim, dim};
  }
  int64_t stride() const { return dim + 16; }
  int64_t pages() const { return (count + page_size - 1) / page_size; }
  // A pool has a page even where nothing is cached.
  int64_t pool_pages() const { return std::max<int64_t>(1, pages()); }

  Result Room() const {
    Result result;
    result.out.assign(static_cast<size_t>(heads * value_dim) * SizeOf(q_dtype), 0xee);
    result.lse.assign(static_cast<size_t>(heads), 7);
    return result;
  }
  AttentionOut To(Result& result) const {
    return {result.out.data(), heads * value_dim, value_dim, result.lse.data(), heads};
  }

  Result Paged() const {
    Result result = Room();
    const PagedKv keys{rows.data(), dtype, pool_pages(), page_size, 1, dim, page_size * stride(),
                       stride(),    0};
    PagedKv values = keys;
    values.head_dim = value_dim;
    std::vector<int32_t> table(static_cast<size_t>(pages()));
    std::iota(table.begin(), table.end(), 0);
    const std::vector<int32_t> lens = {static_cast<int32_t>(count)};
    AttentionOptions options;
    options.sinks = sink;
    PagedAttention(view, keys, values, {{}, lens, table.data(), pages(), pages()}, To(result),
                   options);
    return result;
  }

  // In scopes that end at `cuts`; pages that do not follow each other are not read in place.
  Result Sparse(std::vector<int64_t> cuts, int64_t scope_page, int threads,
                bool backwards = false) const {
    const auto element = static_cast<int64_t>(SizeOf(dtype));
    cuts.push_back(count);
    std::vector<SparseScope> scopes;
    std::vector<std::vector<uint8_t>> pools;
    std::vector<std::vector<int32_t>> slots;
    int64_t begin = 0;
    for (const int64_t end : cuts) {
      const int64_t n = end - begin;
      const int64_t page = scope_page == 0 ? std::max<int64_t>(n, 1) : scope_page;
      const int64_t page_stride = page * stride() + (scope_page == 0 ? 0 : 48);
      pools.emplace_back(static_cast<size_t>(((n + page - 1) / page * page_stride + 1) * element),
                         0xff);
      for (int64_t i = 0; i < n; ++i) {
        std::memcpy(pools.back().data() + (i / page * page_stride + i % page * stride()) * element,
                    rows.data() + (begin + i) * stride() * element,
                    static_cast<size_t>(dim * element));
      }
      slots.emplace_back(static_cast<size_t>(n));
      std::iota(slots.back().begin(), slots.back().end(), 0);
      if (backwards) std::reverse(slots.back().begin(), slots.back().end());
      scopes.push_back(
          {{pools.back().data(), dtype, n, dim, stride(), scope_page, page_stride}, nullptr, n, n});
      begin = end;
    }
    for (size_t s = 0; s < scopes.size(); ++s) {
      scopes[s].slots = slots[s].data();
    }
    Result result = Room();
    SparseAttentionOptions options;
    options.value_dim = value_dim;
    options.sinks = sink;
    options.pool = &PoolOf(threads);
    SparseAttention(view, scopes, To(result), options);
    return result;
  }
};

TEST(SparseAttentionBits, AreThoseOfPagedAttention) {
  uint64_t seed = 0;
  for (const DType q : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const DType rows : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (const int64_t count : {0, 1, 63, 512, 513, 1300}) {
        ++seed;
        Case test{q,
                  rows,
                  seed % 3 == 0 ? 128 : static_cast<int64_t>(1 + seed * 7 % 40),
                  seed % 2 == 0 ? 576 : 64,
                  seed % 2 == 0 ? 512 : 64,
                  count,
                  seed % 4 == 0 ? 7 : 16,
                  seed % 5 == 0,
                  seed};
        test.Make();
        for (const std::string& target : SweepTargets()) {
          SetTarget(target);
          const Result want = test.Paged();
          const std::string what = target + " q " + Name(q) + " rows " + Name(rows) + " count " +
                                   std::to_string(count) + " heads " + std::to_string(test.heads);
          EXPECT_EQ(test.Sparse({}, 0, 1), want) << what;
          EXPECT_EQ(test.Sparse({}, 0, 3, true), want) << what << " backwards";
          EXPECT_EQ(test.Sparse({}, 5, 2), want) << what << " in pages";
          EXPECT_EQ(test.Sparse({count / 3, count / 2}, 0, 2), want) << what << " in scopes";
        }
      }
    }
  }
  SetTarget("");
}

// Rows of DeepSeek-V3.2 whose scales are powers of two are bf16.
TEST(SparseAttentionBits, CodedRowsAreBF16) {
  OnEveryTarget([](const std::string& target) {
    Rng rng(9);
    constexpr int64_t kRows = 700;
    std::vector<uint8_t> coded(kRows * 656), plain(kRows * 576 * 2);
    for (int64_t r = 0; r < kRows; ++r) {
      uint8_t* at = coded.data() + r * 656;
      for (int i = 0; i < 512; ++i) {
        const auto code = static_cast<uint8_t>(rng.Below(256));
        at[i] = (code & 127) == 127 ? uint8_t{0} : code;
      }
      for (int i = 0; i < 4; ++i) {
        const float scale = std::ldexp(1.0f, static_cast<int>(rng.Between(-12, 3)));
        std::memcpy(at + 512 + 4 * i, &scale, 4);
      }
      for (int i = 0; i < 64; ++i) {
        Store(DType::kBF16, Encode(DType::kBF16, static_cast<float>(rng.Unit())), at + 528 + 2 * i);
      }
      const std::vector<double> values = DecodeMla656(at);
      for (size_t i = 0; i < 576; ++i) {
        Store(DType::kBF16, Encode(DType::kBF16, static_cast<float>(values[i])),
              plain.data() + (static_cast<size_t>(r) * 576 + i) * 2);
      }
    }
    std::vector<int32_t> slots(2 * 600);
    for (int32_t& slot : slots) slot = static_cast<int32_t>(rng.Below(kRows));
    const std::vector<uint8_t> q = Random(DType::kBF16, 2 * 64 * 576, rng);
    const HeadsView view{q.data(), DType::kBF16, 2, 64, 576, 64 * 576, 576};
    std::vector<uint8_t> out[2];
    for (const bool is_coded : {false, true}) {
      SparseScope scope{{plain.data(), DType::kBF16, kRows, 576, 576}, slots.data(), 600, 600};
      if (is_coded) {
        scope.rows = {coded.data(), DType::kU8, kRows, 576, 656, 0, 0, SparseRowFormat::kMla656};
      }
      out[is_coded].resize(2 * 64 * 512 * 2);
      SparseAttentionOptions options;
      options.value_dim = 512;
      options.scale = 0.01f;
      SparseAttention(view, std::span(&scope, 1), {out[is_coded].data(), 64 * 512, 512}, options);
    }
    EXPECT_EQ(out[0], out[1]) << target;
  });
}

}  // namespace
}  // namespace riffle::test

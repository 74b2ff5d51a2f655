// PagedAttention over keys and values of every dtype and block format, each pool in its own,
// against scalar loops in double, on every SIMD target.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "riffle/attention.h"
#include "testing/attention_case.h"
#include "testing/kv_codings.h"
#include "testing/rng.h"
#include "tests/attention/on_every_target.h"

namespace riffle::test {
namespace {

using Formats = AttentionOnEveryTarget;

TEST_F(Formats, EachWithEachQuery) {
  for (const KvCoding& coding : AllKvCodings()) {
    for (const DType q : kDTypes) {
      AttentionSpec spec{.q_lens = {1, 1, 1, 1},
                         .kv_lens = {1, 130, 700, 0},
                         .group = 4,
                         .q_dtype = q,
                         .keys = coding,
                         .values = coding};
      Check(spec);
      spec.q_lens = {100, 0, 40};
      spec.kv_lens = {100, 0, 600};
      spec.layout = Layout::kJAX;
      Check(spec);
    }
  }
}

TEST_F(Formats, KeysAndValuesOfDifferentOnes) {
  const std::vector<KvCoding> codings = AllKvCodings();
  for (size_t k = 0; k < codings.size(); ++k) {
    for (size_t v = k % 3; v < codings.size(); v += 3) {
      Check({.q_lens = {1, 7},
             .kv_lens = {150, 90},
             .q_dtype = (k + v) % 4 == 0 ? DType::kF32 : DType::kBF16,
             .keys = codings[k],
             .values = codings[v],
             .layout = static_cast<Layout>((k + v) % 3)});
    }
  }
}

// Kernels for 1 to 16 rows, then tiles; options that come after the scales.
TEST_F(Formats, HeadRatiosAndOptions) {
  for (const KvCoding& coding : AllKvCodings()) {
    for (const int group : {1, 2, 3, 5, 7, 8, 11, 16, 17, 40}) {
      Check({.q_lens = {1, 3},
             .kv_lens = {200, 70},
             .kv_heads = group > 4 ? 1 : 2,
             .group = group,
             .dim = 64,
             .q_dtype = group % 3 == 0 ? DType::kF16 : DType::kBF16,
             .keys = coding,
             .values = coding,
             .window = group % 2 == 0 ? std::optional<int64_t>(50) : std::nullopt,
             .soft_cap = group % 4 == 0 ? std::optional<float>(8.0f) : std::nullopt,
             .sinks = group % 5 == 0});
    }
  }
}

// Dims of whole and of part vectors, pages of every size, rows at any address.
TEST_F(Formats, HeadDimsPagesAndAddresses) {
  int i = 0;
  for (const KvCoding& coding : AllKvCodings()) {
    const bool grouped = coding.scaling == Scaling::kGroups || coding.format != KvFormat::kPlain;
    for (const int dim : {8, 40, 72, 200, 32, 96, 128, 160, 256, 1024}) {
      const int unit = coding.scaling == Scaling::kGroups ? coding.group : 32;
      if (grouped && dim % unit != 0) {
        continue;
      }
      ++i;
      Check({.q_lens = {1, 20},
             .kv_lens = {80, 45},
             .group = i % 2 == 0 ? 4 : 2,
             .dim = dim,
             .page_size = 1 + 7 * (i % 5),
             .q_dtype = kDTypes[(i + 2) % 3],
             .keys = coding,
             .values = coding,
             .layout = static_cast<Layout>(i % 3),
             .shift = i % 4 == 1 ? 1 : 0});
    }
  }
}

TEST_F(Formats, ValuesOfAnotherHeadDim) {
  for (const auto& [dim, value_dim] : std::vector<std::pair<int, int>>{
           {192, 128}, {128, 192}, {8, 1024}, {1024, 8}, {72, 40}, {576, 512}, {64, 32}}) {
    for (const DType q : kDTypes) {
      const bool blocks = dim % 32 == 0 && value_dim % 32 == 0;
      for (const KvCoding& coding :
           {KvCoding{.dtype = q}, KvCoding{.dtype = DType::kE4M3, .scaling = Scaling::kRow},
            blocks ? KvCoding{.dtype = DType::kU8, .format = KvFormat::kQ8_0}
                   : KvCoding{.dtype = DType::kF16}}) {
        Check({.q_lens = {1, 40},
               .kv_lens = {200, 70},
               .kv_heads = 1,
               .group = 5,
               .dim = dim,
               .q_dtype = q,
               .keys = coding,
               .values = coding,
               .value_dim = value_dim});
      }
    }
  }
}

// MLA: values are the first elements of their keys, or some in the middle.
TEST_F(Formats, ValuesThatLieInKeys) {
  for (const KvCoding& coding : AllKvCodings()) {
    if (coding.scaling == Scaling::kGroups) {
      continue;  // a view that begins inside of a group has no scales of its own
    }
    for (const DType q : kDTypes) {
      for (const int group : {1, 16, 48}) {
        for (const int offset : {0, 32}) {
          Check({.q_lens = {1, 2},
                 .kv_lens = {150, 70},
                 .kv_heads = 1,
                 .group = group,
                 .dim = 96,
                 .q_dtype = q,
                 .keys = coding,
                 .value_dim = 64,
                 .value_offset = offset});
        }
      }
    }
  }
}

TEST_F(Formats, HardData) {
  Rng draws(2);
  for (const KvData data : {KvData::kHugeLogits, KvData::kOneHotKey, KvData::kEqualKeys,
                            KvData::kConstant, KvData::kVisibleNaN, KvData::kInfiniteLater}) {
    for (const KvCoding& coding : AllKvCodings()) {
      for (const DType q : {DType::kF32, DType::kBF16}) {
        if (kSlow && !draws.OneIn(3)) continue;
        Check({.q_lens = {1, 90, 1, 3},
               .kv_lens = {700, 90, 53, 150},
               .q_dtype = q,
               .keys = coding,
               .values = coding,
               .data = data});
      }
    }
  }
}

TEST_F(Formats, RandomCases) {
  Rng rng(17);
  const std::vector<KvCoding> codings = AllKvCodings();
  for (int i = 0; i < (kSlow ? 30 : 200); ++i) {
    AttentionSpec spec{.q_lens = {}, .kv_lens = {}};
    for (int64_t b = rng.Between(1, 4); b > 0; --b) {
      spec.kv_lens.push_back(static_cast<int>(rng.Below(rng.OneIn(4) ? 1200 : 200)));
      const int max = spec.kv_lens.back();
      spec.q_lens.push_back(
          static_cast<int>(rng.OneIn(2) ? std::min(max, 1) : rng.Below(std::min(max, 60) + 1)));
    }
    spec.kv_heads = static_cast<int>(rng.Between(1, 3));
    spec.group = static_cast<int>(rng.Between(1, 9));
    spec.dim = static_cast<int>(64 * rng.Between(1, 3));
    spec.value_dim = static_cast<int>(64 * rng.Between(1, 3));
    spec.page_size = static_cast<int>(rng.OneIn(2) ? 16 : rng.Between(1, 300));
    spec.q_dtype = rng.OneIn(3) ? rng.Pick(kDTypes) : DType::kBF16;
    spec.keys = codings[static_cast<size_t>(rng.Below(static_cast<int64_t>(codings.size())))];
    spec.values = codings[static_cast<size_t>(rng.Below(static_cast<int64_t>(codings.size())))];
    spec.layout = static_cast<Layout>(rng.Below(3));
    spec.causal = !rng.OneIn(3);
    if (rng.OneIn(3)) spec.window = rng.Between(1, 300);
    if (rng.OneIn(3)) spec.soft_cap = 20.0f;
    spec.sinks = rng.OneIn(3);
    spec.seed = rng.Next();
    spec.page_seed = rng.Next();
    Check(spec);
    if (HasFatalFailure()) return;
  }
}

// Tokens a GiB apart, pages four: offsets of more than 32 bits, in bytes and in elements.
TEST_F(Formats, PoolsOfManyGigabytes) {
  constexpr int kDim = 32;
  constexpr int64_t kFarToken = int64_t{1} << 28;  // elements of f32
  constexpr size_t kBytes = size_t{8} << 30;
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  std::vector<float> near(8 * kDim);
  Rng rng(4);
  for (int token = 0; token < 8; ++token) {
    for (int i = 0; i < kDim; ++i) {
      const auto x = static_cast<float>(rng.Unit() - 0.5);
      near[static_cast<size_t>(token * kDim + i)] = x;
      static_cast<float*>(memory)[token * kFarToken + i] = x;
    }
  }
  std::vector<float> q(kDim, 0.5f);
  const std::vector<int32_t> lens = {8};
  const std::vector<int32_t> table = {0, 1};
  const PagedBatch batch{{}, lens, table.data(), 2, 2};
  const HeadsView queries{q.data(), DType::kF32, 1, 1, kDim, kDim, kDim};
  PagedKv far{memory, DType::kF32, 2, 4, 1, kDim, 4 * kFarToken, kFarToken, 0};
  PagedKv close{near.data(), DType::kF32, 2, 4, 1, kDim, 4 * kDim, kDim, 0};
  for (const std::string& target : Targets()) {
    SetTarget(target);
    std::vector<float> out(kDim), expected(kDim);
    PagedAttention(queries, far, far, batch, {out.data(), kDim, kDim});
    PagedAttention(queries, close, close, batch, {expected.data(), kDim, kDim});
    EXPECT_EQ(out, expected) << target;
  }
  munmap(memory, kBytes);
}

}  // namespace
}  // namespace riffle::test

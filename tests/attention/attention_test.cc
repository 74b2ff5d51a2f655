// PagedAttention against scalar loops in double, on every SIMD target.
#include "riffle/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "testing/attention_case.h"
#include "testing/rng.h"
#include "tests/attention/on_every_target.h"

namespace riffle::test {
namespace {

using Attention = AttentionOnEveryTarget;

TEST_F(Attention, DecodeInEveryPairOfDTypes) {
  for (const DType q : kDTypes) {
    for (const DType kv : kDTypes) {
      Check({.q_lens = {1, 1, 1},
             .kv_lens = {1, 130, 700},
             .q_dtype = q,
             .kv_dtype = kv,
             .implicit_q_lens = true});
    }
  }
}

TEST_F(Attention, PrefillInEveryPairOfDTypes) {
  for (const DType q : kDTypes) {
    for (const DType kv : kDTypes) {
      Check({.q_lens = {150, 40}, .kv_lens = {150, 600}, .q_dtype = q, .kv_dtype = kv});
    }
  }
}

TEST_F(Attention, Int8WithScalesInEveryPairOfDTypes) {
  for (const DType q : kDTypes) {
    for (const DType scales : kDTypes) {
      Check({.q_lens = {1, 1, 1},
             .kv_lens = {1, 130, 700},
             .q_dtype = q,
             .kv_dtype = scales,
             .int8 = true,
             .implicit_q_lens = true});
      Check({.q_lens = {150, 0, 40},
             .kv_lens = {150, 0, 600},
             .q_dtype = q,
             .kv_dtype = scales,
             .int8 = true,
             .layout = Layout::kJAX,
             .window = 100,
             .soft_cap = 30.0f});
    }
  }
}

TEST_F(Attention, Int8HeadDimsPagesAndAddresses) {
  int shift = 0;
  for (const int dim : {32, 40, 64, 72, 128, 256, 512}) {
    for (const int page_size : {1, 3, 16, 100}) {
      for (const Layout layout : {Layout::kHND, Layout::kNHD, Layout::kJAX}) {
        Check({.q_lens = {1, 20},
               .kv_lens = {80, 90},
               .dim = dim,
               .page_size = page_size,
               .q_dtype = DType::kBF16,
               .kv_dtype = kDTypes[shift % 3],
               .int8 = true,
               .layout = layout,
               .shift = shift++ % 2});
      }
    }
  }
}

TEST_F(Attention, HeadDims) {
  for (int dim = 32; dim <= 512; dim += dim < 96 ? 8 : 104) {
    for (const DType dtype : kDTypes) {
      Check({.q_lens = {1, 20},
             .kv_lens = {80, 90},
             .dim = dim,
             .q_dtype = dtype,
             .kv_dtype = dtype});
    }
  }
  Check({.q_lens = {9},
         .kv_lens = {70},
         .dim = 512,
         .q_dtype = DType::kBF16,
         .kv_dtype = DType::kBF16});
}

TEST_F(Attention, HeadRatios) {
  for (const int group : {1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33, 71, 130}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Check({.q_lens = {1, 3},
             .kv_lens = {140, 65},
             .kv_heads = group > 16 ? 1 : 3,
             .group = group,
             .dim = 40,
             .q_dtype = dtype,
             .kv_dtype = dtype});
    }
  }
}

TEST_F(Attention, PagesAndLayouts) {
  for (const int page_size : {1, 2, 3, 8, 15, 16, 17, 32, 48, 64, 100, 128, 256}) {
    for (const Layout layout : {Layout::kHND, Layout::kNHD, Layout::kJAX}) {
      Check({.q_lens = {1, 30},
             .kv_lens = {333, 90},
             .page_size = page_size,
             .q_dtype = DType::kBF16,
             .kv_dtype = DType::kBF16,
             .layout = layout});
    }
  }
}

TEST_F(Attention, Misaligned) {
  for (const DType dtype : kDTypes) {
    for (const int shift : {1, 3, 6}) {
      Check({.q_lens = {1, 10},
             .kv_lens = {90, 70},
             .dim = 72,
             .q_dtype = dtype,
             .kv_dtype = dtype,
             .layout = Layout::kNHD,
             .shift = shift});
    }
  }
}

TEST_F(Attention, Options) {
  Rng draws(2);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    AttentionSpec spec{.q_lens = {1, 70, 90, 5},
                       .kv_lens = {600, 700, 90, 5},
                       .q_dtype = dtype,
                       .kv_dtype = dtype};
    for (const bool causal : {true, false}) {
      for (const int window : {0, 1, 2, 64, 100, 513, 5000}) {
        for (const float cap : {0.0f, 0.5f, 30.0f}) {
          spec.causal = causal;
          spec.window = window > 0 ? std::optional<int64_t>(window) : std::nullopt;
          spec.soft_cap = cap > 0 ? std::optional<float>(cap) : std::nullopt;
          spec.sinks = window % 2 == 0;
          if (kSlow && !draws.OneIn(3)) continue;
          Check(spec);
        }
      }
    }
  }
}

// Encoders look both ways: keys on each side of a query, or all up to some distance behind it.
TEST_F(Attention, WindowsOnBothSides) {
  Rng draws(3);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    AttentionSpec spec{.q_lens = {1, 70, 90, 530},
                       .kv_lens = {600, 700, 90, 530},
                       .dim = 40,
                       .q_dtype = dtype,
                       .kv_dtype = dtype,
                       .causal = false};
    for (const int window : {0, 1, 40, 513}) {
      for (const int64_t right : {int64_t{0}, int64_t{1}, int64_t{64}, int64_t{300}, INT64_MAX}) {
        spec.window = window > 0 ? std::optional<int64_t>(window) : std::nullopt;
        spec.window_right = right;
        spec.sinks = window == 40;
        if (kSlow && !draws.OneIn(3)) continue;
        Check(spec);
      }
    }
  }
}

// Cross attention: queries that are no positions of the keys.
TEST_F(Attention, MoreQueriesThanKeys) {
  for (const DType dtype : kDTypes) {
    for (const bool sinks : {false, true}) {
      Check({.q_lens = {5, 300, 2, 3, 530},
             .kv_lens = {1, 100, 600, 0, 529},
             .dim = 40,
             .q_dtype = dtype,
             .kv_dtype = dtype,
             .causal = false,
             .soft_cap = sinks ? std::optional<float>(20.0f) : std::nullopt,
             .sinks = sinks});
    }
  }
}

// What JAX's own test of its kernel allows with several query heads for a KV head: no scale, so
// that logits are large and few keys count; dequantised exactly in the reference.
TEST_F(Attention, Int8ByBF16IsWithinJaxTolerance) {
  for (const int dim : {128, 256}) {
    for (const int group : {4, 8}) {
      const AttentionSpec spec{.q_lens = {1, 1, 1},
                               .kv_lens = {8, 253, 512},
                               .kv_heads = 2,
                               .group = group,
                               .dim = dim,
                               .q_dtype = DType::kBF16,
                               .kv_dtype = DType::kBF16,
                               .int8 = true,
                               .layout = Layout::kJAX,
                               .scale = 1.0f};
      const AttentionCase attention(spec);
      for (const std::string& target : Targets()) {
        SetTarget(target);
        EXPECT_LE(attention.LargestError(attention.Run()), 1e-2) << Describe(spec) << target;
      }
    }
  }
}

TEST_F(Attention, SoftCapsAndScalesOfAnySize) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    AttentionSpec spec{.q_lens = {1, 40}, .kv_lens = {90, 40}, .q_dtype = dtype, .kv_dtype = dtype};
    for (const float scale : {0.125f, 1e-44f, 1e-38f, -0.3f, 0.0f}) {
      for (const float cap :
           {0.0f, 1e-45f, 1e-44f, 1e-38f, 1e-37f, 1e-20f, 1e20f, 1.6e38f, 1.8e38f, 3.4e38f}) {
        spec.scale = scale;
        spec.soft_cap = cap > 0 ? std::optional<float>(cap) : std::nullopt;
        Check(spec);
      }
    }
  }
}

TEST_F(Attention, Scales) {
  for (const float scale : {-0.3f, 0.0f, 1.0f, 1e-20f}) {
    for (const float cap : {0.0f, 5.0f}) {
      Check({.q_lens = {1, 20},
             .kv_lens = {100, 50},
             .scale = scale,
             .soft_cap = cap > 0 ? std::optional<float>(cap) : std::nullopt});
    }
  }
}

TEST_F(Attention, HardData) {
  for (const KvData data :
       {KvData::kHugeLogits, KvData::kOneHotKey, KvData::kEqualKeys, KvData::kConstant,
        KvData::kTiny, KvData::kVisibleNaN, KvData::kInfiniteLater}) {
    for (const DType q : kDTypes) {
      for (const DType kv : kDTypes) {
        for (const bool int8 : {false, true}) {
          if (int8 && data == KvData::kTiny) {
            continue;  // scales are normal f32
          }
          Check({.q_lens = {1, 90, 1, 33},
                 .kv_lens = {1500, 90, 53, 300},
                 .dim = 40,
                 .q_dtype = q,
                 .kv_dtype = kv,
                 .int8 = int8,
                 .data = data});
        }
      }
    }
  }
}

TEST_F(Attention, EmptySequencesAndNoQueries) {
  for (const bool sinks : {false, true}) {
    Check({.q_lens = {0, 3, 0, 1, 5}, .kv_lens = {0, 0, 40, 0, 5}, .sinks = sinks});
    Check({.q_lens = {1, 1}, .kv_lens = {0, 0}, .sinks = sinks, .implicit_q_lens = true});
  }
  Check({.q_lens = {}, .kv_lens = {}});
  Check({.q_lens = {0, 0}, .kv_lens = {10, 0}});
}

TEST_F(Attention, ManySequences) {
  AttentionSpec spec{.q_lens = {},
                     .kv_lens = {},
                     .kv_heads = 1,
                     .dim = 32,
                     .page_size = 8,
                     .q_dtype = DType::kBF16,
                     .kv_dtype = DType::kBF16};
  Rng rng(5);
  for (int b = 0; b < 1024; ++b) {
    spec.kv_lens.push_back(static_cast<int>(rng.Below(40)));
    spec.q_lens.push_back(static_cast<int>(rng.Below(std::min(spec.kv_lens.back(), 3) + 1)));
  }
  Check(spec);
}

TEST_F(Attention, RandomCases) {
  Rng rng(11);
  for (int i = 0; i < (kSlow ? 25 : 150); ++i) {
    AttentionSpec spec{.q_lens = {}, .kv_lens = {}};
    for (int64_t b = rng.Between(1, 4); b > 0; --b) {
      spec.kv_lens.push_back(static_cast<int>(rng.Below(rng.OneIn(4) ? 1200 : 200)));
      const int most = spec.kv_lens.back();
      spec.q_lens.push_back(
          static_cast<int>(rng.OneIn(2) ? std::min(most, 1) : rng.Below(std::min(most, 80) + 1)));
    }
    spec.kv_heads = static_cast<int>(rng.Between(1, 4));
    spec.group = static_cast<int>(rng.Between(1, 9));
    spec.dim = static_cast<int>(8 * rng.Between(4, 18));
    spec.page_size = static_cast<int>(rng.OneIn(2) ? 16 : rng.Between(1, 70));
    spec.q_dtype = rng.Pick(kDTypes);
    spec.kv_dtype = rng.Pick(kDTypes);
    spec.int8 = rng.OneIn(4);
    spec.layout = static_cast<Layout>(rng.Below(3));
    spec.causal = !rng.OneIn(3);
    if (rng.OneIn(3)) spec.window = rng.Between(1, 300);
    if (!spec.causal && rng.OneIn(2)) spec.window_right = rng.Between(0, 300);
    if (rng.OneIn(3)) spec.soft_cap = 20.0f;
    spec.sinks = rng.OneIn(3);
    spec.seed = rng.Next();
    spec.page_seed = rng.Next();
    Check(spec);
    if (HasFatalFailure()) return;
  }
}

// What the contract says in one number, on data of unit variance and on the sums that round
// worst.
TEST_F(Attention, F32IsWithinTwoInAHundredThousand) {
  for (const KvData data : {KvData::kNormal, KvData::kEqualKeys, KvData::kConstant}) {
    const AttentionSpec spec{
        .q_lens = {1, 64}, .kv_lens = {9000, 700}, .kv_heads = 1, .dim = 128, .data = data};
    const AttentionCase attention(spec);
    for (const std::string& target : Targets()) {
      SetTarget(target);
      EXPECT_LE(attention.LargestError(attention.Run()), 2e-5) << Describe(spec) << " " << target;
    }
  }
}

}  // namespace
}  // namespace riffle::test

// PagedAttention over keys and values of every dtype and block format, each pool in its own,
// against scalar loops in double, on every SIMD target.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "riffle/attention.h"
#include "testing/attention_case.h"
#include "testing/distributions.h"
#include "testing/kv_codings.h"
#include "testing/reference.h"
#include "testing/rng.h"

namespace riffle::test {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

class Formats : public testing::Test {
 protected:
  ~Formats() override { SetTarget(""); }

  static void Check(const AttentionSpec& spec) {
    const AttentionCase attention(spec);
    for (const std::string& target : Targets()) {
      SetTarget(target);
      const std::string difference = attention.Check(attention.Run());
      ASSERT_EQ(difference, "") << Describe(spec) << " on " << target;
    }
  }
};

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
    for (const int dim : {8, 40, 72, 200, 32, 96, 128, 256, 1024}) {
      const int unit = coding.scaling == Scaling::kGroups ? coding.group : 32;
      if (grouped && dim % unit != 0) {
        continue;
      }
      ++i;
      Check({.q_lens = {1, 20},
             .kv_lens = {80, 45},
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
  for (const KvData data : {KvData::kHugeLogits, KvData::kOneHotKey, KvData::kEqualKeys,
                            KvData::kConstant, KvData::kVisibleNaN, KvData::kInfiniteLater}) {
    for (const KvCoding& coding : AllKvCodings()) {
      for (const DType q : {DType::kF32, DType::kBF16}) {
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
  for (int i = 0; i < 200; ++i) {
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

// A sequence of one key: its value comes out as it is, and its score is lse.
struct OneKey {
  OneKey(const KvCoding& coding, int head_dim, DType dtype, int count)
      : q_dtype(dtype),
        dim(head_dim),
        sequences(count),
        pool(coding, {.pages = count, .page_size = 1, .heads = 1, .dim = head_dim}),
        q(static_cast<size_t>(count * head_dim) * SizeOf(dtype)),
        out(q.size()),
        lse(static_cast<size_t>(count)) {
    for (int i = 0; i < sequences; ++i) {
      table.push_back(i);
    }
  }

  void SetQuery(int sequence, int i, float x) {
    EncodeElement(q_dtype, x, q.data() + static_cast<size_t>(sequence * dim) * SizeOf(q_dtype), i);
  }
  double Out(int sequence, int i) const {
    return Decode(q_dtype, out.data() + static_cast<size_t>(sequence * dim + i) * SizeOf(q_dtype));
  }

  void Run() {
    const std::vector<int32_t> lens(static_cast<size_t>(sequences), 1);
    PagedBatch batch;
    batch.kv_lens = lens;
    batch.page_table = table.data();
    batch.max_pages = batch.page_table_stride = 1;
    AttentionOptions options;
    options.scale = 1.0f;
    PagedAttention({q.data(), q_dtype, sequences, 1, dim, dim, dim}, pool.view(), pool.view(),
                   batch, {out.data(), dim, dim, lse.data(), 1}, options);
  }

  DType q_dtype;
  int dim;
  int sequences;
  CodedPool pool;
  std::vector<uint8_t> q, out;
  std::vector<float> lse;
  std::vector<int32_t> table;
};

// Key c has the code c as element 3 and zeros elsewhere.
TEST_F(Formats, EveryCodeOf8BitsIsExactAsAKey) {
  for (const DType dtype : {DType::kE4M3, DType::kE5M2, DType::kI8}) {
    const KvCoding coding{.dtype = dtype};
    for (const DType q_dtype : {DType::kF32, DType::kBF16}) {
      OneKey keys(coding, 64, q_dtype, 256);
      for (int code = 0; code < 256; ++code) {
        std::memset(keys.pool.Row(code, 0, 0), 0, 64);
        keys.pool.Row(code, 0, 0)[3] = static_cast<uint8_t>(code);
        keys.SetQuery(code, 3, 1.0f);
      }
      for (const std::string& target : Targets()) {
        SetTarget(target);
        keys.Run();
        for (int code = 0; code < 256; ++code) {
          const auto byte = static_cast<uint8_t>(code);
          const double expected = DecodeElement(coding, &byte, 0);
          const double got = static_cast<double>(keys.lse[static_cast<size_t>(code)]);
          if (std::isnan(expected) || expected == std::numeric_limits<double>::infinity()) {
            EXPECT_TRUE(std::isnan(got)) << Name(dtype) << " " << code << " " << target;
          } else if (got != expected) {
            // Logits are in units of log2: two roundings.
            EXPECT_NEAR(got, expected, 4 * 0x1p-24 * std::abs(expected))
                << Name(dtype) << " " << code << " " << target;
          }
        }
      }
    }
  }
}

TEST_F(Formats, EveryCodeOf8BitsIsExactAsAValue) {
  for (const DType dtype : {DType::kE4M3, DType::kE5M2, DType::kI8}) {
    const KvCoding coding{.dtype = dtype};
    for (const DType q_dtype : kDTypes) {
      // Keys of zeros; values that no NaN of a key hides.
      CodedPool key_pool({.dtype = DType::kBF16},
                         {.pages = 1, .page_size = 1, .heads = 1, .dim = 256});
      std::vector<double> zeros(256);
      key_pool.Put(0, 0, 0, zeros);
      CodedPool value_pool(coding, {.pages = 1, .page_size = 1, .heads = 1, .dim = 256});
      for (int code = 0; code < 256; ++code) {
        value_pool.Row(0, 0, 0)[code] = static_cast<uint8_t>(code);
      }
      const std::vector<uint8_t> q(256 * 4);
      std::vector<uint8_t> out(256 * 4);
      const std::vector<int32_t> lens = {1};
      const std::vector<int32_t> table = {0};
      const PagedBatch batch{{}, lens, table.data(), 1, 1};
      for (const std::string& target : Targets()) {
        SetTarget(target);
        PagedAttention({q.data(), q_dtype, 1, 1, 256, 256, 256}, key_pool.view(), value_pool.view(),
                       batch, {out.data(), 256, 256});
        for (int code = 0; code < 256; ++code) {
          const auto byte = static_cast<uint8_t>(code);
          const double expected = DecodeElement(coding, &byte, 0);
          const double got = Decode(q_dtype, out.data() + code * SizeOf(q_dtype));
          EXPECT_TRUE(got == expected || (std::isnan(got) && std::isnan(expected)))
              << Name(dtype) << " " << code << " is " << got << " but " << expected << " as "
              << Name(q_dtype) << " on " << target;
        }
      }
    }
  }
}

// Random codes under scales that bf16 holds: values come out as they are.
TEST_F(Formats, EveryCodeOfABlockIsExact) {
  Rng rng(3);
  for (const KvCoding& coding : AllKvCodings()) {
    if (coding.format == KvFormat::kPlain) {
      continue;
    }
    for (const DType q_dtype : {DType::kF32, DType::kBF16}) {
      const bool offsets = coding.format == KvFormat::kQ4_1 || coding.format == KvFormat::kQ5_1;
      OneKey call(coding, 1024, q_dtype, 4);
      const int64_t block = BlockBytes(coding.format);
      for (int s = 0; s < 4; ++s) {
        for (int b = 0; b < 32; ++b) {
          uint8_t* at = call.pool.Row(s, 0, 0) + b * block;
          for (int64_t i = 0; i < block; ++i) {
            at[i] = static_cast<uint8_t>(rng.Next());
          }
          EncodeScale(DType::kF16, std::ldexp(rng.OneIn(2) ? 1.0 : -1.0, b % 9 - 4), at);
          if (offsets) {
            EncodeScale(DType::kF16, 0.25 * (b % 3), at + 2);
          }
        }
      }
      for (const std::string& target : Targets()) {
        SetTarget(target);
        call.Run();
        for (int s = 0; s < 4; ++s) {
          for (int i = 0; i < 1024; ++i) {
            const double expected = DecodeElement(coding, call.pool.Row(s, 0, 0), i);
            // The result is rounded to bf16, f32 holds it.
            const double half_place = q_dtype == DType::kBF16 ? 0x1p-9 * std::abs(expected) : 0;
            ASSERT_LE(std::abs(call.Out(s, i) - expected), half_place)
                << Name(coding.format) << " element " << i << " on " << target;
          }
        }
      }
    }
  }
}

// Scales that are NaN or infinite: NaN for the queries that see them, nothing for the others.
TEST_F(Formats, ScalesThatAreNaN) {
  for (KvCoding coding : AllKvCodings()) {
    if (coding.scaling != Scaling::kRow && coding.format == KvFormat::kPlain) {
      continue;
    }
    for (const DType q_dtype : {DType::kF32, DType::kBF16}) {
      constexpr int kLength = 70;
      CodedPool pool(coding, {.pages = 1, .page_size = kLength, .heads = 1, .dim = 64});
      Rng rng(9);
      for (int position = 0; position < kLength; ++position) {
        std::vector<double> x;
        for (int i = 0; i < 64; ++i) {
          x.push_back(rng.Unit() - 0.5);
        }
        pool.Put(0, position, 0, x);
      }
      const PagedKv kv = pool.view();
      // The scale of position 40, whose bytes are not constant here.
      auto* scale =
          coding.format != KvFormat::kPlain
              ? pool.Row(0, 40, 0)
              : static_cast<uint8_t*>(const_cast<void*>(kv.scales.data)) +
                    40 * kv.scales.token_stride * static_cast<int64_t>(SizeOf(coding.scale_dtype));
      EncodeScale(coding.format != KvFormat::kPlain ? DType::kF16 : coding.scale_dtype,
                  std::numeric_limits<double>::quiet_NaN(), scale);
      std::vector<uint8_t> q(kLength * 64 * SizeOf(q_dtype));
      for (int i = 0; i < kLength * 64; ++i) {
        EncodeElement(q_dtype, 0.01 * (i % 37), q.data(), i);
      }
      std::vector<uint8_t> out(q.size());
      const std::vector<int32_t> lens = {kLength};
      const std::vector<int32_t> cu = {0, kLength};
      const std::vector<int32_t> table = {0};
      const PagedBatch batch{cu, lens, table.data(), 1, 1};
      for (const std::string& target : Targets()) {
        SetTarget(target);
        PagedAttention({q.data(), q_dtype, kLength, 1, 64, 64, 64}, kv, kv, batch,
                       {out.data(), 64, 64});
        for (int token = 0; token < kLength; ++token) {
          const double x = Decode(q_dtype, out.data() + token * 64 * SizeOf(q_dtype));
          EXPECT_EQ(std::isnan(x), token >= 40)
              << "token " << token << " " << Name(coding.dtype) << Name(coding.format) << target;
        }
      }
    }
  }
}

}  // namespace
}  // namespace riffle::test

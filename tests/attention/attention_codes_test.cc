// Every code of every dtype and format is decoded exactly, as a key and as a value, and a scale
// that is NaN reaches those that see it; on every SIMD target.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "riffle/attention.h"
#include "testing/coded_pool.h"
#include "testing/distributions.h"
#include "testing/kv_codings.h"
#include "testing/reference.h"
#include "testing/rng.h"

namespace riffle::test {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

class Codes : public testing::Test {
 protected:
  ~Codes() override { SetTarget(""); }
};

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
TEST_F(Codes, EveryCodeOf8BitsIsExactAsAKey) {
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

TEST_F(Codes, EveryCodeOf8BitsIsExactAsAValue) {
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
TEST_F(Codes, EveryCodeOfABlockIsExact) {
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
            const double half_place = q_dtype == DType::kBF16 ? 0x1p-8 * std::abs(expected) : 0;
            ASSERT_LE(std::abs(call.Out(s, i) - expected), half_place)
                << Name(coding.format) << " element " << i << " on " << target;
          }
        }
      }
    }
  }
}

// Scales that are NaN or infinite: NaN for the queries that see them, nothing for the others.
TEST_F(Codes, ScalesThatAreNaN) {
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

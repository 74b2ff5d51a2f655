// Queries of f32 and f16 under AttentionOptions::bf16_products: on targets with dot products of
// bf16 the answer is that for queries rounded to bf16 beforehand, but in the dtype of q; elsewhere,
// and over keys or values that bf16 does not hold, the option changes no bit.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "riffle/attention.h"
#include "testing/attention_case.h"
#include "testing/kv_codings.h"
#include "testing/reference.h"
#include "testing/round.h"
#include "testing/targets.h"

namespace riffle::test {
namespace {

bool HasBF16Products(const std::string& target) {
  return target == "AVX3_ZEN4" || target == "AVX3_SPR";
}

bool HoldsInBF16(const KvCoding& coding) {
  return coding.dtype != DType::kF32 && coding.dtype != DType::kF16 &&
         coding.format != KvFormat::kQ4_1 && coding.format != KvFormat::kQ5_1;
}

struct Answer {
  std::vector<uint8_t> out;
  std::vector<float> lse;
};

std::vector<uint8_t> Convert(DType from, const void* data, DType to, int64_t count) {
  std::vector<uint8_t> result(static_cast<size_t>(count) * SizeOf(to));
  for (int64_t i = 0; i < count; ++i) {
    const double x =
        Decode(from, static_cast<const uint8_t*>(data) + i * static_cast<int64_t>(SizeOf(from)));
    EncodeElement(to, to == DType::kBF16 ? RoundToBF16(x) : x, result.data(), static_cast<int>(i));
  }
  return result;
}

// Queries that lie densely.
Answer Attend(const AttentionCase& c, DType dtype, const std::vector<uint8_t>& q,
              const PagedBatch& batch, bool bf16_products) {
  HeadsView view = c.q();
  view.dtype = dtype;
  view.data = q.data();
  view.head_stride = view.head_dim;
  view.token_stride = view.heads * view.head_dim;
  view.tokens = static_cast<int64_t>(q.size() / SizeOf(dtype)) / view.token_stride;
  const int64_t dim = c.values().head_dim;
  Answer answer{
      std::vector<uint8_t>(static_cast<size_t>(view.tokens * view.heads * dim) * SizeOf(dtype)),
      std::vector<float>(static_cast<size_t>(view.tokens * view.heads))};
  AttentionOptions options = c.options();
  options.bf16_products = bf16_products;
  PagedAttention(view, c.keys(), c.values(), batch,
                 {answer.out.data(), view.heads * dim, dim, answer.lse.data(), view.heads},
                 options);
  return answer;
}

std::vector<uint8_t> DenseQueries(const AttentionCase& c) {
  const HeadsView q = c.q();
  std::vector<uint8_t> dense;
  for (int64_t token = 0; token < q.tokens; ++token) {
    for (int64_t head = 0; head < q.heads; ++head) {
      const auto size = static_cast<int64_t>(SizeOf(q.dtype));
      const auto* row = static_cast<const uint8_t*>(q.data) +
                        (token * q.token_stride + head * q.head_stride) * size;
      dense.insert(dense.end(), row, row + q.head_dim * size);
    }
  }
  return dense;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void Check(const AttentionSpec& spec, bool holds) {
  const AttentionCase c(spec);
  const DType dtype = spec.q_dtype;
  const std::vector<uint8_t> q = DenseQueries(c);
  const auto elements = static_cast<int64_t>(q.size() / SizeOf(dtype));
  const std::vector<uint8_t> rounded = Convert(dtype, q.data(), DType::kBF16, elements);
  for (const std::string& target : SweepTargets()) {
    SCOPED_TRACE(Describe(spec) + " on " + target);
    SetTarget(target);
    const Answer got = Attend(c, dtype, q, c.batch(), true);
    if (holds && HasBF16Products(target)) {
      const Answer expected = Attend(c, DType::kBF16, rounded, c.batch(), false);
      EXPECT_TRUE(SameBits(got.lse, expected.lse));
      const auto count = static_cast<int64_t>(got.out.size() / SizeOf(dtype));
      EXPECT_EQ(Convert(dtype, got.out.data(), DType::kBF16, count), expected.out);
      EXPECT_NE(got.out, Attend(c, dtype, q, c.batch(), false).out) << "nothing was rounded";
    } else {
      const Answer expected = Attend(c, dtype, q, c.batch(), false);
      EXPECT_TRUE(SameBits(got.lse, expected.lse));
      EXPECT_EQ(got.out, expected.out);
    }
  }
  SetTarget("");
}

TEST(BF16Products, EveryFormat) {
  for (const KvCoding& coding : AllKvCodings()) {
    Check({.q_lens = {1, 1, 3, 40},
           .kv_lens = {5, 300, 700, 90},
           .group = 4,
           .keys = coding,
           .values = coding},
          HoldsInBF16(coding));
  }
}

TEST(BF16Products, KeysAndValuesOfWhichBF16HoldsOnlyOne) {
  const KvCoding int8{.dtype = DType::kI8, .scaling = Scaling::kRow};
  const KvCoding half{.dtype = DType::kF16};
  Check({.kv_lens = {200}, .keys = int8, .values = half}, false);
  Check({.kv_lens = {200}, .keys = half, .values = int8}, false);
}

TEST(BF16Products, HeadDimsRatiosAndSigns) {
  for (const int group : {1, 3, 8, 17}) {
    for (const int dim : {32, 96, 128, 256}) {
      Check({.q_lens = {1, 9},
             .kv_lens = {130, 260},
             .group = group,
             .dim = dim,
             .keys = KvCoding{.dtype = DType::kU8, .format = KvFormat::kQ8_0},
             .values = KvCoding{.dtype = DType::kU8, .format = KvFormat::kQ4_0},
             .scale = group == 3 ? -0.2f : 0.2f},
            true);
    }
  }
}

// A query alone has the bits that it has as the last of a prefill.
TEST(BF16Products, DecodeIsPrefill) {
  const AttentionSpec spec{.q_lens = {37},
                           .kv_lens = {333},
                           .group = 4,
                           .dim = 128,
                           .keys = KvCoding{.dtype = DType::kE4M3},
                           .values = KvCoding{.dtype = DType::kE4M3}};
  const AttentionCase c(spec);
  const std::vector<uint8_t> q = DenseQueries(c);
  const size_t token = q.size() / 37;
  const std::vector<uint8_t> last(q.end() - static_cast<std::ptrdiff_t>(token), q.end());
  PagedBatch decode = c.batch();
  decode.cu_q_lens = {};
  OnEveryTarget([&](const std::string& target) {
    const Answer all = Attend(c, DType::kF32, q, c.batch(), true);
    const Answer alone = Attend(c, DType::kF32, last, decode, true);
    EXPECT_TRUE(std::memcmp(alone.out.data(), all.out.data() + 36 * token, token) == 0) << target;
  });
}

}  // namespace
}  // namespace riffle::test

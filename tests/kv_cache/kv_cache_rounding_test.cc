// KvCache rounds f32 to the nearest element of its dtype, on every SIMD target.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "riffle/kv_cache.h"
#include "riffle/runtime.h"
#include "testing/distributions.h"
#include "testing/kv_cache_check.h"
#include "testing/reference.h"

namespace riffle::test {
namespace {

// f32 values at and beside every midpoint between two neighbours of the format: the midpoint is
// rounded to the even neighbour, the floats beside it to the nearer one.
struct Boundary {
  float value;
  uint32_t bits;
};

std::vector<Boundary> Boundaries(DType dtype) {
  std::vector<Boundary> cases;
  const uint32_t inf = PlusInf(dtype);
  const auto decode = [dtype](uint32_t bits) {
    const auto half = static_cast<uint16_t>(bits);
    return Decode(dtype, &half);
  };
  for (uint32_t low = 0; low < inf; ++low) {
    const double a = decode(low);
    // Infinity begins half a step above the largest finite element.
    const double b = low + 1 < inf ? decode(low + 1) : 2 * a - decode(low - 1);
    const auto boundary = static_cast<float>((a + b) / 2);
    const uint32_t even = low % 2 == 0 ? low : low + 1;
    for (const uint32_t sign : {0u, SignBit(dtype)}) {
      const float s = sign != 0 ? -1.0f : 1.0f;
      cases.push_back({s * static_cast<float>(a), sign | low});
      cases.push_back({s * std::nextafter(boundary, 0.0f), sign | low});
      cases.push_back({s * boundary, sign | even});
      cases.push_back({s * std::nextafter(boundary, INFINITY), sign | (low + 1)});
    }
  }
  for (const uint32_t sign : {0u, SignBit(dtype)}) {
    const float s = sign != 0 ? -1.0f : 1.0f;
    cases.push_back({s * INFINITY, sign | inf});
    cases.push_back({s * std::numeric_limits<float>::max(), sign | inf});
    cases.push_back({s * std::numeric_limits<float>::denorm_min(), sign});
  }
  return cases;
}

class KvCacheRounding : public testing::TestWithParam<DType> {};

TEST_P(KvCacheRounding, ToTheNearestOnEveryTarget) {
  const DType dtype = GetParam();
  const std::vector<Boundary> cases = Boundaries(dtype);
  for (const std::string& target : Targets()) {
    SetTarget(target);
    for (const int64_t head_dim : {1, 7, 16, 33, 4096}) {  // whole vectors, and rests behind them
      KvCacheOptions options;
      options.head_dim = head_dim;
      options.page_size = 1;
      options.pages = static_cast<int64_t>(cases.size()) / head_dim;
      options.dtype = dtype;
      if (head_dim == 1) options.pages = 3000;
      const int64_t n = options.pages * head_dim;
      std::vector<float> in;
      for (int64_t i = 0; i < n; ++i) in.push_back(cases[static_cast<size_t>(i)].value);
      KvCache cache(options);
      const int64_t seq = cache.Create();
      cache.Extend(seq, options.pages);
      const HeadsView view{in.data(), DType::kF32, options.pages, 1, head_dim, head_dim, 0};
      cache.Write(0, seq, 0, view, view);
      const KvBatch batch = cache.Batch(std::vector<int64_t>{seq});
      for (const PagedKv& kv : {cache.Keys(0), cache.Values(0)}) {
        for (int64_t i = 0; i < n; ++i) {
          uint16_t bits = 0;
          const int64_t page = batch.page_table[static_cast<size_t>(i / head_dim)];
          std::memcpy(&bits, Element(kv, page, 0, 0, i % head_dim), sizeof(bits));
          const Boundary& c = cases[static_cast<size_t>(i)];
          ASSERT_EQ(bits, c.bits) << target << " " << std::hexfloat << c.value;
        }
      }
    }
  }
  SetTarget("");
}

TEST_P(KvCacheRounding, KeepsNaN) {
  const DType dtype = GetParam();
  for (const std::string& target : Targets()) {
    SetTarget(target);
    KvCacheOptions options;
    options.head_dim = 37;
    options.page_size = options.pages = 1;
    options.dtype = dtype;
    std::vector<float> in;
    for (uint32_t i = 0; i < 37; ++i) {  // NaNs with every payload bit, of both signs
      const uint32_t payload = i < 23 ? 1u << i : 0x7fffffu >> (i - 23);
      in.push_back(std::bit_cast<float>(0x7f800000u | payload | (i % 2 << 31)));
    }
    KvCache cache(options);
    const int64_t seq = cache.Create();
    cache.Extend(seq, 1);
    const HeadsView view{in.data(), DType::kF32, 1, 1, 37, 37, 37};
    cache.Write(0, seq, 0, view, view);
    for (int64_t i = 0; i < 37; ++i) {
      uint16_t bits = 0;
      std::memcpy(&bits, Element(cache.Keys(0), 0, 0, 0, i), sizeof(bits));
      EXPECT_TRUE(std::isnan(Decode(dtype, &bits))) << target << " " << i;
      // The result is a quiet NaN with the sign and the upper bits of the payload.
      const auto in_bits = std::bit_cast<uint32_t>(in[static_cast<size_t>(i)]);
      const uint32_t kept = dtype == DType::kF16 ? 0x7e00u | (in_bits >> 13 & 0x3ffu)
                                                 : 0x7fc0u | (in_bits >> 16 & 0x7fu);
      EXPECT_EQ(bits, kept | (in_bits >> 16 & 0x8000u)) << target << " " << i;
    }
  }
  SetTarget("");
}

// Targets convert by different instructions. One in 1021 of all floats is compared with what the
// first target makes of it.
TEST_P(KvCacheRounding, SameBitsOnEveryTarget) {
  KvCacheOptions options;
  options.head_dim = 4096;
  options.page_size = 16;
  options.pages = 65;
  options.dtype = GetParam();
  const int64_t tokens = options.pages * options.page_size;
  std::vector<float> in;
  for (int64_t i = 0; i < tokens * options.head_dim; ++i) {
    in.push_back(std::bit_cast<float>(static_cast<uint32_t>(1021 * i)));
  }
  ASSERT_GT(1021 * in.size(), size_t{1} << 32);
  const HeadsView view{in.data(), DType::kF32, tokens, 1, options.head_dim, options.head_dim, 0};
  std::vector<uint16_t> first;
  for (const std::string& target : Targets()) {
    SetTarget(target);
    KvCache cache(options);
    const int64_t seq = cache.Create();
    cache.Extend(seq, tokens);
    cache.Write(0, seq, 0, view, view);
    const KvBatch batch = cache.Batch(std::vector<int64_t>{seq});
    std::vector<uint16_t> bits(in.size());
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t page = batch.page_table[static_cast<size_t>(t / options.page_size)];
      std::memcpy(bits.data() + t * options.head_dim,
                  Element(cache.Values(0), page, t % options.page_size, 0, 0),
                  static_cast<size_t>(options.head_dim) * sizeof(uint16_t));
    }
    if (first.empty()) first = bits;
    EXPECT_EQ(std::memcmp(bits.data(), first.data(), bits.size() * sizeof(uint16_t)), 0) << target;
  }
  SetTarget("");
}

INSTANTIATE_TEST_SUITE_P(, KvCacheRounding, testing::Values(DType::kF16, DType::kBF16),
                         [](const auto& param) { return std::string(Name(param.param)); });

}  // namespace
}  // namespace riffle::test

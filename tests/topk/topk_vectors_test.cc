// The answers of top-k are the same bits on every kind of processor: those of tests/data/
// topk_vectors.txt, which make_topk_vectors.py computed without Riffle.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "riffle/runtime.h"
#include "riffle/topk.h"
#include "testing/paths.h"

namespace riffle::test {
namespace {

struct Vector {
  std::string dtype, pattern;
  int64_t rows, n, k;
  std::string indices_hash, values_hash;

  DType type() const {
    for (int i = 0; i < kNumDTypes; ++i) {
      if (dtype == Name(static_cast<DType>(i))) return static_cast<DType>(i);
    }
    ADD_FAILURE() << "there is no dtype " << dtype;
    return DType::kF32;
  }
};

std::istream& operator>>(std::istream& in, Vector& v) {
  return in >> v.dtype >> v.pattern >> v.rows >> v.n >> v.k >> v.indices_hash >> v.values_hash;
}

uint64_t SplitMix64(uint64_t i) {
  uint64_t x = i * 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// [rows, n] elements, as `elements` of make_topk_vectors.py.
std::vector<uint8_t> Elements(const Vector& v) {
  const size_t size = SizeOf(v.type());
  const auto width = static_cast<unsigned>(8 * size);
  std::vector<uint8_t> x(static_cast<size_t>(v.rows * v.n) * size);
  for (size_t i = 0; i < x.size() / size; ++i) {
    const uint64_t random = SplitMix64(width * 1000 + static_cast<uint64_t>(v.n) + i);
    const uint64_t bits =
        v.pattern == "bits" ? random >> (64 - width) : random >> 60 << (width - 4);
    std::memcpy(x.data() + i * size, &bits, size);  // little endian
  }
  return x;
}

template <typename T>
std::string Fnv1a(const std::vector<T>& values) {
  const auto* const bytes = reinterpret_cast<const uint8_t*>(values.data());
  uint64_t hash = 0xCBF29CE484222325;
  for (size_t i = 0; i < values.size() * sizeof(T); ++i) {
    hash = (hash ^ bytes[i]) * 0x100000001B3;
  }
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

void ExpectAnswers(const Vector& v, const std::vector<uint8_t>& x, Algorithm algorithm) {
  const DType dtype = v.type();
  std::vector<int32_t> indices(static_cast<size_t>(v.rows * v.k));
  std::vector<uint8_t> values(indices.size() * SizeOf(dtype));
  TopK({x.data(), dtype, v.rows, v.n, v.n}, v.k, View(values.data(), indices.data(), v.k),
       {.algorithm = algorithm});
  const std::string what = v.dtype + ", " + v.pattern + ", n = " + std::to_string(v.n) + ", " +
                           Target() + ", algorithm " + std::to_string(static_cast<int>(algorithm));
  EXPECT_EQ(Fnv1a(indices), v.indices_hash) << what;
  EXPECT_EQ(Fnv1a(values), v.values_hash) << what;
}

TEST(TopKVectors, EveryTargetGivesTheCommittedBits) {
  std::ifstream file(std::string(kTestData) + "/topk_vectors.txt");
  int count = 0;
  for (Vector v; file >> v; ++count) {
    const std::vector<uint8_t> x = Elements(v);
    for (const std::string& target : Targets()) {
      SetTarget(target);
      ExpectAnswers(v, x, Algorithm::kAuto);
      ExpectAnswers(v, x, Algorithm::kBucketMaxima);
      if (v.type() <= DType::kBF16) ExpectAnswers(v, x, Algorithm::kLaneSort);
    }
    SetTarget("");
  }
  EXPECT_EQ(count, 12 * 2 * 6);
}

}  // namespace
}  // namespace riffle::test

// A small generator whose numbers are the same on every platform, so that a seed names a case.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

namespace riffle::test {

// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
class Rng {
 public:
  explicit Rng(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // A number in 0..limit - 1. The slight bias of the remainder does not matter for tests.
  int64_t Below(int64_t limit) {
    return static_cast<int64_t>(Next() % static_cast<uint64_t>(limit));
  }
  int64_t Between(int64_t first, int64_t last) { return first + Below(last - first + 1); }
  bool OneIn(int64_t n) { return Below(n) == 0; }
  // A number in [0, 1).
  double Unit() { return static_cast<double>(Next() >> 11) * 0x1p-53; }

  // Nearly normal, with variance 1 and at most 4.9: the sum of eight bytes, and a fraction below
  // them. Tests draw hundreds of millions, for which logarithms and cosines would take most of
  // their time.
  double Normal() {
    constexpr uint64_t kEven = 0x00ff00ff00ff00ff;
    const uint64_t bytes = Next();
    const uint64_t pairs = (bytes & kEven) + (bytes >> 8 & kEven);  // four sums of two
    const uint64_t sum = pairs * 0x0001000100010001 >> 48;
    return (static_cast<double>(sum) + Unit() - (8 * 127.5 + 0.5)) / 209.02;
  }

  template <typename Container>
  auto Pick(const Container& container) {
    return *std::next(std::begin(container), Below(static_cast<int64_t>(std::size(container))));
  }

 private:
  uint64_t state_;
};

}  // namespace riffle::test

#include "cli/logits.h"

#include <bit>

namespace riffle::cli {
namespace {

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit of the result depends on every
// bit of the argument.
uint64_t Mix(uint64_t word) {
  word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
  word = (word ^ (word >> 27)) * 0x94d049bb133111ebu;
  return word ^ (word >> 31);
}

// A different random number for each (seed, row, token, draw).
uint64_t Draw(uint64_t seed, uint64_t row, uint64_t token, uint64_t draw) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;
  uint64_t word = Mix(seed + kGolden);
  word = Mix(word ^ (row + kGolden));
  word = Mix(word ^ (token * 4 + draw + kGolden));
  return word;
}

// log2 by its series around 1: x = 2^e m, log2 m = 2/ln 2 * (s + s^3/3 + ...), s = (m-1)/(m+1).
double Log2(uint64_t x) {
  const int exponent = 63 - std::countl_zero(x);
  const double m = static_cast<double>(x) / static_cast<double>(uint64_t{1} << exponent);
  const double s = (m - 1) / (m + 1);  // at most 1/3
  double sum = 0;
  double power = s;
  for (int i = 1; i < 32; i += 2) {
    sum += power / i;
    power *= s * s;
  }
  return exponent + sum * 2.8853900817779268;  // 2 / ln 2
}

// Mean 0, deviation 1, from twelve 16-bit numbers.
double Noise(uint64_t seed, uint64_t row, uint64_t token) {
  uint64_t sum = 0;
  for (uint64_t draw = 0; draw < 3; ++draw) {
    const uint64_t word = Draw(seed, row, token, draw);
    sum += (word & 0xffff) + ((word >> 16) & 0xffff) + ((word >> 32) & 0xffff) + (word >> 48);
  }
  return static_cast<double>(sum) / 65536.0 - 6.0;
}

}  // namespace

float MakeLogit(uint64_t seed, uint64_t row, uint64_t token) {
  const double bias = 4.0 - 0.35 * Log2(token + 1);
  const uint64_t word = Draw(seed, row, token, 3);
  double lift = 0;
  if (word % 8192 == 0) {
    const double u = static_cast<double>(word >> 32) / 4294967296.0;
    lift = 12.0 * u * u;  // only a few rows are sharply peaked
  }
  return static_cast<float>(bias + 2.2 * Noise(seed, row, token) + lift);
}

}  // namespace riffle::cli

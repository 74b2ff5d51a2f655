// Rounds as kernels do, but shares no code with src/core/round-inl.h.
#pragma once

#include <bit>
#include <cstdint>

namespace riffle::test {

// The nearest number of bf16, ties to even; NaN as it is.
inline double RoundToBF16(double value) {
  const auto bits = std::bit_cast<uint32_t>(static_cast<float>(value));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return value;
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  return static_cast<double>(std::bit_cast<float>(rounded));
}

}  // namespace riffle::test

// The random number of a draw.
#pragma once

#include <Random123/philox.h>

#include <cstddef>
#include <cstdint>

namespace riffle::sampling {

// Numbers in [0, 1) of 53 bits, a function of the arguments alone: Philox4x32 with ten rounds
// (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; 2011). `which`: 0 or 1
// selects one of two independent numbers for the other arguments.
inline double Uniform(uint64_t seed, int64_t stream, int64_t position, size_t which = 0) {
  const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
  const auto high = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
  const auto s = static_cast<uint64_t>(stream);
  const auto p = static_cast<uint64_t>(position);
  const r123::Philox4x32::ctr_type counter = {{low(p), high(p), low(s), high(s)}};
  const r123::Philox4x32::key_type key = {{low(seed), high(seed)}};
  const r123::Philox4x32::ctr_type random = r123::Philox4x32()(counter, key);
  const uint64_t bits = uint64_t{random[2 * which + 1]} << 32 | random[2 * which];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace riffle::sampling

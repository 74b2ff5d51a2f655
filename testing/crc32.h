// CRC-32 as in zlib: fixtures store it instead of long results.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace riffle::testing {

inline uint32_t Crc32(const void* data, size_t size) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> entries{};
    for (uint32_t i = 0; i < 256; ++i) {
      entries[i] = i;
      for (int bit = 0; bit < 8; ++bit) {
        entries[i] = entries[i] >> 1 ^ (entries[i] & 1 ? 0xedb88320u : 0);
      }
    }
    return entries;
  }();
  const auto* bytes = static_cast<const uint8_t*>(data);
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; ++i) {
    crc = crc >> 8 ^ table[(crc ^ bytes[i]) & 255];
  }
  return ~crc;
}

}  // namespace riffle::testing

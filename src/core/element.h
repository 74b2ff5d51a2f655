#pragma once

#include <cstdint>
#include <cstring>

#include "core/order.h"
#include "riffle/types.h"

namespace riffle::core {

// The element at an address of any alignment as an f32: exact for every dtype.
inline float LoadElement(DType dtype, const uint8_t* at) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return ToFloat(bits, dtype);
}

}  // namespace riffle::core

// Element types by the bit, one element at a time, for reading results and making data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "riffle/types.h"

namespace riffle::cli {

// Element `i` of an array of `dtype` at any alignment; exact for what f32 can hold, as is all that
// StoreFloat stores.
float LoadFloat(const void* data, DType dtype, int64_t i);

// Rounds to nearest, ties to even, and stores. NaN stays NaN; what is too large becomes infinite.
// Integers are scaled: 16 and -16 are the ends of their range.
void StoreFloat(float value, void* data, DType dtype, int64_t i);

// "f32", "bf16", "f16", and their long names.
std::optional<DType> ParseDType(std::string_view name);

// A value for a reader, shortest text that reads back: "nan", "inf", "-inf", "-0", "12.5".
std::string FormatValue(float value);

}  // namespace riffle::cli

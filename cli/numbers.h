// Conversion between f32 and other element types, one element at a time, to read and make data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "riffle/types.h"

namespace riffle::cli {

// Element `i` of an array of any dtype at any alignment, rounded to float where that is narrower.
float LoadFloat(const void* data, DType dtype, int64_t i);

// Stores `value` as element `i` of an array of f32, f16 or bf16 at any alignment: rounded to
// nearest, ties to even. NaN stays NaN; what is too large becomes infinite.
void StoreFloat(float value, void* data, DType dtype, int64_t i);

// "f32", "bf16", "f16", and their long names.
std::optional<DType> ParseDType(std::string_view name);

// The shortest text that reads back as the value: "nan", "inf", "-inf", "-0", "12.5".
std::string FormatValue(float value);

}  // namespace riffle::cli

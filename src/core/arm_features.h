// What Highway does not ask a 64-bit ARM processor.
#pragma once

namespace riffle::core {

// Whether it multiplies matrices of int8 (SMMLA, the extension I8MM). Every processor of Armv8.6
// has that and dot products of bf16; before 8.6 each is optional.
bool HasInt8Matrices();

}  // namespace riffle::core

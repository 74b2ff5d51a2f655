// Made-up logits with the shape of a language model's: the same numbers on every machine.
#pragma once

#include <cstdint>

namespace riffle::cli {

// The logit of a token in a row, a pure function of its arguments:
//   a bias that falls with the logarithm of the token's number, as tokenizers number tokens by
//   frequency and frequencies follow Zipf's law;
//   noise, the sum of twelve uniform numbers, near enough normal with deviation 2.2;
//   and for about one token in 8192 of a row a lift of up to 12: a token that the context favours.
// Only integers and IEEE additions, multiplications and divisions are used, no library function
// whose last bit differs between systems.
float MakeLogit(uint64_t seed, uint64_t row, uint64_t token);

}  // namespace riffle::cli

// Rounding tokens into a page: the same for every SIMD target.
#pragma once

#include <cstdint>

#include "riffle/types.h"

namespace riffle::kv_cache {

// Tokens that go into one page.
struct RoundTask {
  const uint8_t* in = nullptr;  // f32 [tokens, heads, head_dim], any alignment
  int64_t in_token = 0;         // bytes from a token to the next
  int64_t in_head = 0;          // bytes from a head to the next
  uint8_t* out = nullptr;       // f16 or bf16 [heads, tokens, head_dim]
  int64_t out_token = 0;        // bytes
  int64_t out_head = 0;         // bytes
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
};

// To the nearest, ties to even (core/round-inl.h), bitwise the same on every target; `dtype` is
// a 16-bit one. For a call that has done EnsureTarget().
void RoundTokens(const RoundTask& task, DType dtype);

}  // namespace riffle::kv_cache

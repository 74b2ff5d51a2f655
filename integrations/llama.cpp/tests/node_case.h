// Random nodes FLASH_ATTN_EXT as llama.cpp makes them, and their results in double.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "testing/rng.h"

namespace riffle::llama::test {

enum class MaskKind { kNone, kCausal, kWindow, kMixed, kRandom, kAdditive, kCount };

struct Case {
  int64_t key_dim = 64;
  int64_t value_dim = 64;
  int64_t kv_heads = 1;
  int64_t group = 1;
  int64_t tokens = 1;
  int64_t streams = 1;
  int64_t cells = 256;    // that the node sees
  int64_t kv_size = 256;  // of the cache
  std::string key_type = "f16";
  std::string value_type = "f16";
  bool values_in_keys = false;
  MaskKind mask = MaskKind::kCausal;
  bool sinks = false;
  float soft_cap = 0.0f;
  float max_bias = 0.0f;
  int layers = 1;
  int threads = 2;
};

std::string Describe(const Case& c);

Case RandomCase(riffle::test::Rng& rng);

// Bits of f16, [streams, tokens, cells]; what the node does not see is -inf.
std::vector<uint16_t> RandomMask(const Case& c, riffle::test::Rng& rng);

// The numbers of a node.
struct Numbers {
  const float* q = nullptr;       // [streams, tokens, heads, key_dim]
  const float* keys = nullptr;    // [streams, kv_size, kv_heads, key_dim]
  const float* values = nullptr;  // [streams, kv_size, kv_heads, value_dim], or the keys
  const float* sinks = nullptr;   // [heads] or null
  float scale = 1.0f;
};

// The node's result, [streams, tokens, heads, value_dim].
std::vector<double> Exact(const Case& c, const Numbers& numbers, const std::vector<uint16_t>& mask);

// Sum of squared errors by that of squares.
double Error(const float* x, const std::vector<double>& exact);

}  // namespace riffle::llama::test

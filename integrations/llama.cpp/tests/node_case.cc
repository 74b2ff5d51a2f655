#include "node_case.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace riffle::llama::test {
namespace {

using riffle::test::Rng;

constexpr uint16_t kHidden = 0xfc00;  // -inf in f16

bool InBlocks(const std::string& type) { return type[0] == 'q' || type[0] == 'i'; }

double MaskValue(uint16_t bits) {
  if (bits == kHidden) {
    return -INFINITY;
  }
  const double value = std::ldexp(1024 + (bits & 0x3ff), ((bits >> 10) & 31) - 25);
  return (bits & 0x7fff) == 0 ? 0.0 : (bits & 0x8000) != 0 ? -value : value;
}

// What ALiBi multiplies the mask of a head by.
double Slope(const Case& c, int64_t head) {
  if (c.max_bias == 0.0f) {
    return 1.0;
  }
  const int64_t heads = c.kv_heads * c.group;
  const double power = std::exp2(std::floor(std::log2(static_cast<double>(heads))));
  const double bias = static_cast<double>(c.max_bias);
  return static_cast<double>(head) < power
             ? std::pow(std::exp2(-bias / power), static_cast<double>(head + 1))
             : std::pow(std::exp2(-bias / 2 / power), 2 * (static_cast<double>(head) - power) + 1);
}

// Logits of one query; cells that it does not see have -inf.
std::vector<double> Logits(const Case& c, const Numbers& numbers, const uint16_t* mask,
                           int64_t stream, int64_t token, int64_t head) {
  const int64_t heads = c.kv_heads * c.group;
  const float* q = numbers.q + ((stream * c.tokens + token) * heads + head) * c.key_dim;
  const auto cap = static_cast<double>(c.soft_cap);
  std::vector<double> logits;
  for (int64_t cell = 0; cell < c.cells; ++cell) {
    const int64_t row = (stream * c.kv_size + cell) * c.kv_heads + head / c.group;
    double x = 0;
    for (int64_t i = 0; i < c.key_dim; ++i) {
      x += static_cast<double>(q[i]) * static_cast<double>(numbers.keys[row * c.key_dim + i]);
    }
    x *= static_cast<double>(numbers.scale);
    if (cap != 0) {
      x = cap * std::tanh(x / cap);
    }
    if (c.mask != MaskKind::kNone) {
      x += Slope(c, head) * MaskValue(mask[(stream * c.tokens + token) * c.cells + cell]);
    }
    logits.push_back(x);
  }
  return logits;
}

}  // namespace

std::string Describe(const Case& c) {
  char text[256];
  std::snprintf(text, sizeof(text),
                "K %s %ld V %s %ld%s, heads %ld*%ld, tokens %ld, streams %ld, cells %ld of %ld, "
                "mask %d%s, cap %g, bias %g, layers %d, threads %d",
                c.key_type.c_str(), c.key_dim, c.value_type.c_str(), c.value_dim,
                c.values_in_keys ? " in K" : "", c.kv_heads, c.group, c.tokens, c.streams, c.cells,
                c.kv_size, static_cast<int>(c.mask), c.sinks ? ", sinks" : "",
                static_cast<double>(c.soft_cap), static_cast<double>(c.max_bias), c.layers,
                c.threads);
  return text;
}

Case RandomCase(Rng& rng) {
  constexpr const char* kTypes[] = {"f16",  "f16",  "f16",  "bf16", "f32",  "q8_0",
                                    "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"};
  constexpr int64_t kDims[] = {32, 64, 64, 96, 128, 128, 192, 256};
  Case c;
  c.key_dim = rng.Pick(kDims);
  c.value_dim = rng.OneIn(4) ? rng.Pick(kDims) : c.key_dim;
  c.key_type = rng.Pick(kTypes);
  c.value_type = rng.OneIn(3) ? rng.Pick(kTypes) : c.key_type;
  c.kv_heads = rng.Between(1, 4);
  c.group = rng.Between(1, 6);
  c.tokens = rng.OneIn(2) ? 1 : rng.Between(1, 70);
  c.streams = rng.OneIn(3) ? rng.Between(2, 5) : 1;
  c.cells = rng.OneIn(3) ? rng.Between(1, 700) : 256 * rng.Between(1, 4);
  c.kv_size = c.cells + (rng.OneIn(2) ? 0 : rng.Between(1, 300));
  c.mask = static_cast<MaskKind>(rng.Below(static_cast<int64_t>(MaskKind::kCount)));
  c.sinks = rng.OneIn(4);
  c.soft_cap = rng.OneIn(4) ? 20.0f : 0.0f;
  c.max_bias = rng.OneIn(12) && c.mask != MaskKind::kNone ? 8.0f : 0.0f;
  c.layers = static_cast<int>(rng.Between(1, 3));
  c.threads = static_cast<int>(rng.Between(1, 3));
  if (rng.OneIn(12)) {  // MLA
    c.key_dim = 576;
    c.value_dim = 512;
    c.kv_heads = 1;
    c.value_type = c.key_type;
    c.values_in_keys = true;
  } else if (rng.OneIn(12) && !InBlocks(c.key_type) && !InBlocks(c.value_type)) {
    c.key_dim = c.value_dim = 8 * rng.Between(1, 20);
  }
  return c;
}

std::vector<uint16_t> RandomMask(const Case& c, Rng& rng) {
  std::vector<uint16_t> mask(static_cast<size_t>(c.streams * c.tokens * c.cells), 0);
  const int64_t owners = rng.Between(1, 4);
  std::vector<int64_t> owner(static_cast<size_t>(c.cells));
  for (int64_t& o : owner) {
    o = rng.Below(owners);
  }
  const bool owned_in_runs = rng.OneIn(2);
  for (int64_t s = 0; s < c.streams; ++s) {
    const int64_t used = rng.Between(0, c.cells);
    const int64_t window = rng.Between(1, c.cells);
    for (int64_t t = 0; t < c.tokens; ++t) {
      uint16_t* row = mask.data() + (s * c.tokens + t) * c.cells;
      const int64_t end = std::min(c.cells, used + t + 1);
      for (int64_t j = 0; j < c.cells; ++j) {
        bool seen = j < end;
        switch (c.mask) {
          case MaskKind::kWindow:
            seen &= j >= end - window;
            break;
          case MaskKind::kMixed:
            seen &=
                t % owners == (owned_in_runs ? j / 100 % owners : owner[static_cast<size_t>(j)]);
            break;
          case MaskKind::kRandom:
            seen = !rng.OneIn(2);
            break;
          case MaskKind::kAdditive:  // -0.5 to -1.99
            row[j] = static_cast<uint16_t>(0xb800 + rng.Below(0x7ff));
            break;
          default:
            break;
        }
        if (!seen) {
          row[j] = kHidden;
        }
      }
    }
  }
  return mask;
}

std::vector<double> Exact(const Case& c, const Numbers& numbers,
                          const std::vector<uint16_t>& mask) {
  const int64_t row_dim = c.values_in_keys ? c.key_dim : c.value_dim;
  std::vector<double> result;
  for (int64_t stream = 0; stream < c.streams; ++stream) {
    for (int64_t token = 0; token < c.tokens; ++token) {
      for (int64_t head = 0; head < c.kv_heads * c.group; ++head) {
        const std::vector<double> logits = Logits(c, numbers, mask.data(), stream, token, head);
        const double sink =
            numbers.sinks != nullptr ? static_cast<double>(numbers.sinks[head]) : -INFINITY;
        const double largest = std::max(sink, *std::max_element(logits.begin(), logits.end()));
        double total = sink == -INFINITY ? 0.0 : std::exp(sink - largest);
        std::vector<double> sum(static_cast<size_t>(c.value_dim), 0.0);
        for (int64_t cell = 0; cell < c.cells; ++cell) {
          if (logits[static_cast<size_t>(cell)] == -INFINITY) {
            continue;
          }
          const double p = std::exp(logits[static_cast<size_t>(cell)] - largest);
          const float* v = numbers.values +
                           ((stream * c.kv_size + cell) * c.kv_heads + head / c.group) * row_dim;
          total += p;
          for (int64_t i = 0; i < c.value_dim; ++i) {
            sum[static_cast<size_t>(i)] += p * static_cast<double>(v[i]);
          }
        }
        for (const double x : sum) {
          result.push_back(total == 0 ? 0.0 : x / total);
        }
      }
    }
  }
  return result;
}

double Error(const float* x, const std::vector<double>& exact) {
  double wrong = 0;
  double all = 1e-30;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double difference = static_cast<double>(x[i]) - exact[i];
    wrong += difference * difference;
    all += exact[i] * exact[i];
  }
  return wrong / all;
}

}  // namespace riffle::llama::test

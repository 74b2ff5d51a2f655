// How the engine keeps keys and values in its cache, under the names of commands and logs.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "riffle/attention.h"
#include "riffle/types.h"

namespace riffle::engine {

// A dtype, or a block format, for which dtype is ignored, as in KvCacheOptions. The default is f16:
// bf16 moved the gap between Gemma 3's two best logits by up to 0.063, f16 by up to 0.0076
// (README.md), and the largest key or value was 132, far from f16's limit.
struct KvKind {
  DType dtype = DType::kF16;
  KvFormat format = KvFormat::kPlain;
  friend bool operator==(const KvKind&, const KvKind&) = default;
};

struct NamedKvKind {
  std::string_view name;
  KvKind kind;
};
// e4m3, e5m2 and int8 have a scale for each row of head_dim elements.
inline constexpr NamedKvKind kKvKinds[] = {
    {"f32", {DType::kF32}},
    {"f16", {DType::kF16}},
    {"bf16", {DType::kBF16}},
    {"e4m3", {DType::kE4M3}},
    {"e5m2", {DType::kE5M2}},
    {"int8", {DType::kI8}},
    {"q8_0", {DType::kU8, KvFormat::kQ8_0}},
    {"q5_1", {DType::kU8, KvFormat::kQ5_1}},
    {"q5_0", {DType::kU8, KvFormat::kQ5_0}},
    {"q4_1", {DType::kU8, KvFormat::kQ4_1}},
    {"q4_0", {DType::kU8, KvFormat::kQ4_0}},
    {"iq4_nl", {DType::kU8, KvFormat::kIQ4NL}},
};

// "fp8", as other engines name it, is e4m3.
inline std::optional<KvKind> KvKindOf(std::string_view name) {
  if (name == "fp8") {
    name = "e4m3";
  }
  for (const NamedKvKind& known : kKvKinds) {
    if (known.name == name) {
      return known.kind;
    }
  }
  return std::nullopt;
}

// "f32, f16, ..."
inline std::string KvKindNames() {
  std::string names;
  for (const NamedKvKind& known : kKvKinds) {
    names += (names.empty() ? "" : ", ") + std::string(known.name);
  }
  return names;
}

}  // namespace riffle::engine

#include "engine/arch/architectures.h"

#include <fmt/format.h>

#include <string_view>

namespace riffle::engine {
namespace {

struct Architecture {
  std::string_view name;  // general.architecture
  ModelSpec (*read)(const SpecReader& reader);
};
constexpr Architecture kArchitectures[] = {
    {"gemma2", ReadGemma2}, {"gemma3", ReadGemma3}, {"llama", ReadLlama},
    {"qwen2", ReadQwen2},   {"qwen3", ReadQwen3},
};

// A model in several files: only the first one has the metadata, and none has all tensors.
void CheckWhole(const GgufFile& file) {
  if (!file.Has("split.count") || file.Integer("split.count") <= 1) {
    return;
  }
  const int64_t part = file.Has("split.no") ? file.Integer("split.no") + 1 : 1;
  file.Fail(fmt::format(
      "is part {} of {} of a split model; this program takes one file: llama-gguf-split --merge "
      "makes it",
      part, file.Integer("split.count")));
}

}  // namespace

std::string ArchitectureNames() {
  std::string names;
  for (const Architecture& architecture : kArchitectures) {
    names += (names.empty() ? "" : ", ") + std::string(architecture.name);
  }
  return names;
}

ModelSpec ReadSpec(const GgufFile& file) {
  CheckWhole(file);
  const SpecReader reader(file);
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == reader.architecture()) {
      return architecture.read(reader);
    }
  }
  file.Fail(fmt::format("general.architecture is '{}'; this program runs {}",
                        Printable(reader.architecture()), ArchitectureNames()));
}

}  // namespace riffle::engine

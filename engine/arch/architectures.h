// The architectures that the engine knows.
#pragma once

#include <string>

#include "engine/arch/model_spec.h"
#include "engine/arch/spec_reader.h"
#include "engine/gguf/gguf.h"

namespace riffle::engine {

// Each is defined in the file of its name. They throw BadModel.
ModelSpec ReadGemma2(const SpecReader& reader);
ModelSpec ReadGemma3(const SpecReader& reader);
ModelSpec ReadLlama(const SpecReader& reader);
ModelSpec ReadQwen2(const SpecReader& reader);
ModelSpec ReadQwen3(const SpecReader& reader);

// The spec of a file, by its general.architecture. Throws BadModel if that is unknown (listing the
// known ones), or if a key is missing or has a value that cannot be run (naming it).
ModelSpec ReadSpec(const GgufFile& file);

std::string ArchitectureNames();  // "gemma2, gemma3, ..."

}  // namespace riffle::engine

// GGUF files of small models with random weights, one for each kind that the engine runs. They are
// the same on every machine: tests compare the engine with results that Transformers computed from
// the same files (tests/engine/make_random_models_fixture.py).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace riffle::testing {

std::vector<std::string> RandomModelNames();
// The bytes of the file with that name.
std::vector<uint8_t> RandomModelFile(const std::string& name);

// A file with one tensor [40, 512] of each type, named after its type.
std::vector<uint8_t> RandomFormatsFile();

}  // namespace riffle::testing

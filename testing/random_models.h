// GGUF files of small models with random weights, one of each kind that the engine runs. They are
// the same on every machine: tests hold them against what Transformers made of them
// (tests/engine/make_random_models_fixture.py).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace riffle::testing {

std::vector<std::string> RandomModelNames();
// The bytes of the file of that name.
std::vector<uint8_t> RandomModelFile(const std::string& name);

// A file of one tensor [40, 512] of each type, named by it.
std::vector<uint8_t> RandomFormatsFile();

}  // namespace riffle::testing

// Writes the files of testing/random_models.h to a folder, for make_random_models_fixture.py and
// make_dequantize_fixture.py.
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "testing/random_models.h"

namespace {

bool Write(const std::string& path, const std::vector<uint8_t>& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<int64_t>(bytes.size()));
  return static_cast<bool>(file.flush());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: write_random_models FOLDER\n");
    return 2;
  }
  const std::string folder = std::string(argv[1]) + "/";
  bool written = Write(folder + "formats.gguf", riffle::testing::RandomFormatsFile());
  for (const std::string& name : riffle::testing::RandomModelNames()) {
    written &= Write(folder + name + ".gguf", riffle::testing::RandomModelFile(name));
  }
  return written ? 0 : 1;
}

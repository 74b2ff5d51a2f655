// Writes the files of testing/random_models.h to a folder, for make_random_models_fixture.py.
#include <cstdio>
#include <fstream>
#include <string>

#include "testing/random_models.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: write_random_models FOLDER\n");
    return 2;
  }
  for (const std::string& name : riffle::testing::RandomModelNames()) {
    const std::vector<uint8_t> bytes = riffle::testing::RandomModelFile(name);
    std::ofstream file(std::string(argv[1]) + "/" + name + ".gguf", std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<int64_t>(bytes.size()));
    if (!file.flush()) return 1;
  }
  return 0;
}

// Where llama.cpp keeps its CPU backends, and Riffle's file among them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace riffle::cli {

// The file that llama.cpp loads.
inline constexpr const char* kLlamaBackend = "libggml-cpu-riffle.so";

struct LlamaFolder {
  std::filesystem::path path;
  int variants = 0;        // libggml-cpu-*.so, without Riffle's
  std::string ggml;        // version of libggml-base near it; empty: unknown
  bool installed = false;  // Riffle's file is there
};

// What is in a folder. Throws BadInput if it holds no variant of llama.cpp's CPU backend.
LlamaFolder InspectLlamaFolder(const std::filesystem::path& path);

// The folders of this machine: those of distributions, of Ollama, and those beside llama.cpp's
// programs in PATH.
std::vector<LlamaFolder> FindLlamaFolders();

// The file to install, which was built or installed with this command. Empty if there is none.
std::filesystem::path FindLlamaBackend();

}  // namespace riffle::cli

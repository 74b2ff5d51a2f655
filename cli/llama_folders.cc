#include "cli/llama_folders.h"

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <string_view>
#include <system_error>

#include "cli/failure.h"

namespace riffle::cli {
namespace {

namespace fs = std::filesystem;

template <typename Visit>
void ForEachEntry(const fs::path& folder, const Visit& visit) {
  std::error_code error;
  fs::directory_iterator entry(folder, fs::directory_options::skip_permission_denied, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    visit(entry->path());
  }
}

// ggml's version, from the name libggml-base.so.VERSION in the folder or one of the two above it.
std::string FindGgmlVersion(const fs::path& folder) {
  constexpr std::string_view kPrefix = "libggml-base.so.";
  std::string version;
  fs::path place = folder;
  for (int up = 0; up < 3 && version.empty(); ++up, place = place.parent_path()) {
    ForEachEntry(place, [&](const fs::path& path) {
      const std::string name = path.filename().string();
      // The longest name has the full version; libggml-base.so.0 is a link to it.
      if (name.starts_with(kPrefix) && name.size() - kPrefix.size() > version.size()) {
        version = name.substr(kPrefix.size());
      }
    });
  }
  return version;
}

bool Inspect(const fs::path& path, LlamaFolder& folder) {
  folder = {};
  folder.path = path;
  ForEachEntry(path, [&](const fs::path& file) {
    const std::string name = file.filename().string();
    if (name == kLlamaBackend) {
      folder.installed = true;
    } else if (name.starts_with("libggml-cpu-") && name.ends_with(".so")) {
      ++folder.variants;
    }
  });
  folder.ggml = FindGgmlVersion(path);
  return folder.variants > 0;
}

fs::path OwnFolder() {
  std::error_code error;
  return fs::read_symlink("/proc/self/exe", error).parent_path();
}

// Folders that may hold variants; the caller inspects each.
std::vector<fs::path> Candidates() {
  std::vector<fs::path> candidates;
  for (const char* root : {"/usr/lib", "/usr/local/lib"}) {
    ForEachEntry(root, [&](const fs::path& machine) {  // /usr/lib/x86_64-linux-gnu/ggml/backends0
      ForEachEntry(machine / "ggml", [&](const fs::path& path) { candidates.push_back(path); });
    });
    candidates.push_back(fs::path(root) / "ollama");
    candidates.push_back(fs::path(root) / "llama.cpp");
  }
  const char* path_variable = std::getenv("PATH");
  std::istringstream folders(path_variable == nullptr ? "" : path_variable);
  for (std::string folder; std::getline(folders, folder, ':');) {
    for (const char* program : {"llama-server", "llama-cli", "ollama"}) {
      std::error_code error;
      const fs::path found = fs::canonical(fs::path(folder) / program, error);
      if (!error) {
        candidates.push_back(found.parent_path());
        candidates.push_back(found.parent_path().parent_path() / "lib" / "ollama");
      }
    }
  }
  return candidates;
}

}  // namespace

LlamaFolder InspectLlamaFolder(const fs::path& path) {
  LlamaFolder folder;
  if (!Inspect(path, folder)) {
    FailInput(
        "'{}' holds no libggml-cpu-*.so, the variants of llama.cpp's CPU backend: give the folder "
        "that does, or use a llama.cpp that was built with them, as its releases are",
        path.string());
  }
  return folder;
}

std::vector<LlamaFolder> FindLlamaFolders() {
  std::vector<LlamaFolder> folders;
  for (const fs::path& candidate : Candidates()) {
    std::error_code error;
    const fs::path path = fs::canonical(candidate, error);
    const auto known = [&](const LlamaFolder& folder) { return folder.path == path; };
    LlamaFolder folder;
    if (!error && std::none_of(folders.begin(), folders.end(), known) && Inspect(path, folder)) {
      folders.push_back(folder);
    }
  }
  return folders;
}

fs::path FindLlamaBackend() {
  const fs::path own = OwnFolder();
  for (const fs::path& folder :
       {own / "integrations" / "llama.cpp", own.parent_path() / "lib" / "riffle",
        own.parent_path() / "lib64" / "riffle", own}) {
    std::error_code error;
    if (fs::is_regular_file(folder / kLlamaBackend, error)) {
      return folder / kLlamaBackend;
    }
  }
  return {};
}

}  // namespace riffle::cli

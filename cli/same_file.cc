#include "cli/same_file.h"

#include <sys/stat.h>

#include <cstdint>
#include <filesystem>
#include <system_error>

namespace riffle::cli {
namespace {

// Identifies a file by its device and inode number; a file that does not exist by those of its
// folder, and its name.
struct FileId {
  bool known = false;
  uint64_t device = 0;
  uint64_t inode = 0;
  std::string name{};  // empty: the file exists

  bool operator==(const FileId&) const = default;
};

FileId Identify(std::filesystem::path path) {
  constexpr int kMaxLinks = 40;  // Linux has the same limit
  struct stat status;
  for (int links = 0; links < kMaxLinks; ++links) {
    if (::stat(path.c_str(), &status) == 0) {
      return {!S_ISCHR(status.st_mode), status.st_dev, status.st_ino};
    }
    if (::lstat(path.c_str(), &status) != 0) {
      break;
    }
    // A link may point to a file that does not exist yet.
    std::error_code error;
    const std::filesystem::path target = std::filesystem::read_symlink(path, error);
    if (error) {
      return {};
    }
    path = target.is_absolute() ? target : path.parent_path() / target;
  }
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  if (::stat(folder.c_str(), &status) != 0) {
    return {};
  }
  return {true, status.st_dev, status.st_ino, path.filename().string()};
}

}  // namespace

bool IsSameFile(const std::string& a, const std::string& b) {
  const FileId id = Identify(a);
  return id.known && id == Identify(b);
}

}  // namespace riffle::cli

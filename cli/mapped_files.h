// Mapped files that another process shortens while they are read: the system raises SIGBUS at the
// next read past their end.
#pragma once

#include <cstddef>
#include <string>

namespace riffle::cli {

// From then on that signal ends the command with exit code 1 and an error on stderr, which names
// the file if a MappedFile has registered it. Any other SIGBUS has its previous effect.
void CatchShrinkingFiles();

// Registers the file mapped at [data, data + bytes) while it lives.
class MappedFile {
 public:
  MappedFile(const std::string& path, const void* data, size_t bytes);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

 private:
  int slot_;
};

}  // namespace riffle::cli

// Files that are mapped into memory and become shorter while they are read: the system raises
// SIGBUS at the next look behind their end.
#pragma once

#include <cstddef>
#include <string>

namespace riffle::cli {

// From now on such a signal ends the command with exit code 1 and an error on stderr, which names
// the file if a MappedFile knows it. Every other SIGBUS does what it did.
void CatchShrinkingFiles();

// Says which file lies at [data, data + bytes), as long as it lives.
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

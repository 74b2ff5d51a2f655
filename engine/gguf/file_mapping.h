// A file as memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace riffle::engine {

struct FileMapping {
  std::shared_ptr<const void> owner;  // the bytes are there as long as a copy of it is
  std::span<const uint8_t> bytes;
};

// Maps a regular file of at least one byte for reading. Throws BadModel naming the file, and
// Error(kOutOfMemory).
FileMapping MapFile(const std::string& path);

}  // namespace riffle::engine

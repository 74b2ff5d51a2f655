// Files mapped into memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace riffle::engine {

struct FileMapping {
  std::shared_ptr<const void> owner;  // keeps the bytes mapped; copies share it
  std::span<const uint8_t> bytes;
};

// Maps a regular file of at least one byte for reading. Throws BadModel naming the file, and
// Error(kOutOfMemory).
FileMapping MapFile(const std::string& path);

}  // namespace riffle::engine

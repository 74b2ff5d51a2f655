// Memory straight from the system, for what is large and lives long.
#pragma once

#include <cstddef>
#include <cstdint>

namespace riffle::kv_cache {

// `bytes` zero bytes that cost nothing until they are touched. Larger than a huge page: aligned to
// one and asked to consist of them, because attention over small memory pages is bound by TLB
// misses; whether the system grants it is its own affair.
class Storage {
 public:
  // bytes > 0. Throws Error(kOutOfMemory).
  explicit Storage(size_t bytes);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  uint8_t* data() const { return data_; }  // aligned to a memory page at least
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace riffle::kv_cache

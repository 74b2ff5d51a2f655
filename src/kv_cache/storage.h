// Large, long-lived memory, taken directly from the system.
#pragma once

#include <cstddef>
#include <cstdint>

namespace riffle::kv_cache {

// `bytes` zero bytes, which cost nothing until they are touched. If larger than a huge page, the
// memory is aligned to one and asks for huge pages, because attention over small pages is limited
// by TLB misses. The system may refuse them.
class Storage {
 public:
  // bytes > 0. Throws Error(kOutOfMemory).
  explicit Storage(size_t bytes);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  uint8_t* data() const { return data_; }  // aligned at least to a page of the system
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace riffle::kv_cache

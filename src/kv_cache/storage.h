// Large, long-lived memory, taken directly from the system.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/system_memory.h"

namespace riffle::kv_cache {

// `bytes` zero bytes, which cost nothing until they are touched. If larger than a huge page, the
// memory is aligned to one and asks for huge pages, because attention over small pages is limited
// by TLB misses. The system may refuse them.
class Storage {
 public:
  // bytes > 0. Throws Error(kOutOfMemory).
  explicit Storage(size_t bytes) : memory_(core::AllocateSystemMemory(bytes)) {}
  ~Storage() { core::FreeSystemMemory(memory_); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  uint8_t* data() const { return memory_.data; }  // aligned at least to a page of the system
  size_t bytes() const { return memory_.bytes; }

 private:
  core::SystemMemory memory_;
};

}  // namespace riffle::kv_cache

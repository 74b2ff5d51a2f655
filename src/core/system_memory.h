// Memory in whole pages from the system itself, and huge pages. The only file of the library that
// asks for them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace riffle::core {

inline constexpr size_t kHugePage = size_t{2} << 20;

struct SystemMemory {
  uint8_t* data = nullptr;
  size_t bytes = 0;  // at least those asked for
};

// `bytes` > 0 zero bytes, aligned at least to a page of the system, which cost nothing until they
// are touched. From the size of a huge page on they are aligned to one and ask for huge pages; the
// system may refuse these. Throws Error(kOutOfMemory).
SystemMemory AllocateSystemMemory(size_t bytes);
void FreeSystemMemory(const SystemMemory& memory);

}  // namespace riffle::core

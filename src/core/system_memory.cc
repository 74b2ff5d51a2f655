// Linux, and elsewhere POSIX (macOS) or Windows. The last two are untested.
#include "core/system_memory.h"

#include <hwy/base.h>

#include <limits>
#include <system_error>

#include "core/check.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <sys/mman.h>

#include <cerrno>
#endif

namespace riffle::core {
namespace {

void CheckSize(size_t bytes) {
  HWY_DASSERT(bytes > 0);
  Check(bytes <= static_cast<size_t>(std::numeric_limits<ptrdiff_t>::max()) - 2 * kHugePage,
        Code::kOutOfMemory, "no ", bytes, " bytes of memory: more than the address space");
}

}  // namespace

#if defined(_WIN32)

// Windows grants huge pages only to privileged processes, so they are not asked for.
SystemMemory AllocateSystemMemory(size_t bytes) {
  CheckSize(bytes);
  void* const start = VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
  const auto reason = static_cast<int>(GetLastError());
  Check(start != nullptr, Code::kOutOfMemory, "no ", bytes,
        " bytes of memory: ", std::system_category().message(reason));
  return {static_cast<uint8_t*>(start), bytes};
}

void FreeSystemMemory(const SystemMemory& memory) { VirtualFree(memory.data, 0, MEM_RELEASE); }

#else

namespace {

uint8_t* Map(size_t bytes, size_t wanted) {
  void* start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const int reason = errno;
  Check(start != MAP_FAILED, Code::kOutOfMemory, "no ", wanted,
        " bytes of memory: ", std::generic_category().message(reason));
  return static_cast<uint8_t*>(start);
}

}  // namespace

SystemMemory AllocateSystemMemory(size_t bytes) {
  CheckSize(bytes);
  if (bytes < kHugePage) {
    return {Map(bytes, bytes), bytes};
  }
  // Maps one huge page more than needed, so that the data can begin at a multiple of its size; the
  // rest before and after is unmapped.
  const size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  uint8_t* const start = Map(whole + kHugePage, bytes);
  const size_t head = -reinterpret_cast<uintptr_t>(start) % kHugePage;
  uint8_t* const data = start + head;
  if (head > 0) {
    munmap(start, head);
  }
  if (head < kHugePage) {
    munmap(data + whole, kHugePage - head);
  }
#ifdef MADV_HUGEPAGE  // Linux
  madvise(data, whole, MADV_HUGEPAGE);  // kernels without huge pages refuse, which does no harm
#endif
  return {data, whole};
}

void FreeSystemMemory(const SystemMemory& memory) { munmap(memory.data, memory.bytes); }

#endif

}  // namespace riffle::core

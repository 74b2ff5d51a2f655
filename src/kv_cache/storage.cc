#include "kv_cache/storage.h"

#include <hwy/base.h>
#include <sys/mman.h>

#include <cerrno>
#include <limits>
#include <system_error>

#include "core/check.h"

namespace riffle::kv_cache {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

uint8_t* Map(size_t bytes, size_t wanted) {
  void* start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const int reason = errno;
  core::Check(start != MAP_FAILED, Code::kOutOfMemory, "no ", wanted,
              " bytes of memory: ", std::generic_category().message(reason));
  return static_cast<uint8_t*>(start);
}

}  // namespace

Storage::Storage(size_t bytes) : bytes_(bytes) {
  HWY_DASSERT(bytes > 0);
  core::Check(bytes <= static_cast<size_t>(std::numeric_limits<ptrdiff_t>::max()) - 2 * kHugePage,
              Code::kOutOfMemory, "no ", bytes, " bytes of memory: more than the address space");
  if (bytes < kHugePage) {
    data_ = Map(bytes, bytes);
    return;
  }
  // One huge page more than needed, so that the data can begin at a multiple of it; the rest before
  // and after is unmapped.
  bytes_ = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  uint8_t* const start = Map(bytes_ + kHugePage, bytes);
  const size_t head = -reinterpret_cast<uintptr_t>(start) % kHugePage;
  data_ = start + head;
  if (head > 0) {
    munmap(start, head);
  }
  if (head < kHugePage) {
    munmap(data_ + bytes_, kHugePage - head);
  }
#ifdef MADV_HUGEPAGE
  madvise(data_, bytes_, MADV_HUGEPAGE);  // kernels without huge pages refuse, which does no harm
#endif
}

Storage::~Storage() { munmap(data_, bytes_); }

}  // namespace riffle::kv_cache

#include "cli/huge_buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <utility>

#include "cli/failure.h"

namespace riffle::cli {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

HugeBuffer::HugeBuffer(size_t bytes, PageKind pages) : bytes_(bytes) {
  mapped_bytes_ = (bytes / kHugePage + 2) * kHugePage;
  mapping_ =
      mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED) {
    mapping_ = nullptr;
    FailRun("no memory for a buffer of {} bytes: {}", bytes, std::strerror(errno));
  }
  // If the kernel refuses, the pages stay small, and PagesOf reports that. macOS has no such
  // request.
#ifdef MADV_HUGEPAGE
  madvise(mapping_, mapped_bytes_, pages == PageKind::kHuge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
  const size_t misaligned = reinterpret_cast<uintptr_t>(mapping_) % kHugePage;
  data_ = static_cast<uint8_t*>(mapping_) + (misaligned == 0 ? 0 : kHugePage - misaligned);
  if (pages == PageKind::kOrdinary) {
    data_ += 16;  // malloc, and so NumPy, puts a large array 16 bytes past the start of a line
  }
}

HugeBuffer::~HugeBuffer() {
  if (mapping_ != nullptr) {
    munmap(mapping_, mapped_bytes_);
  }
}

HugeBuffer::HugeBuffer(HugeBuffer&& other) noexcept { *this = std::move(other); }

HugeBuffer& HugeBuffer::operator=(HugeBuffer&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

std::string PagesOf(const void* data, size_t bytes) {
  std::ifstream smaps("/proc/self/smaps");
  const auto wanted = reinterpret_cast<uintptr_t>(data);
  bool inside = false;
  std::string line;
  while (std::getline(smaps, line)) {
    unsigned long begin;
    unsigned long end;
    size_t huge_kib;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      inside = begin <= wanted && wanted < end;
    } else if (inside && std::sscanf(line.c_str(), "AnonHugePages: %zu kB", &huge_kib) == 1) {
      const size_t percent = bytes == 0 ? 0 : huge_kib * 1024 * 100 / bytes;
      return percent >= 90 ? "2M" : percent == 0 ? "4K" : fmt::format("{}% 2M", percent);
    }
  }
  return "?";
}

}  // namespace riffle::cli

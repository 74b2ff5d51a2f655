// Memory for matrices that are timed: page-aligned, on 2 MiB pages if the kernel grants them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace riffle::cli {

// kOrdinary: 4 KiB pages, and 16 bytes past the start of a cache line, as malloc places a large
// array.
enum class PageKind : uint8_t { kHuge, kOrdinary };

class HugeBuffer {
 public:
  HugeBuffer() = default;
  // Zeroed memory. Asks for 2 MiB pages, or refuses them, by madvise. Throws std::runtime_error.
  explicit HugeBuffer(size_t bytes, PageKind pages = PageKind::kHuge);
  ~HugeBuffer();
  HugeBuffer(HugeBuffer&& other) noexcept;
  HugeBuffer& operator=(HugeBuffer&& other) noexcept;

  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* mapping_ = nullptr;
  size_t mapped_bytes_ = 0;
  uint8_t* data_ = nullptr;  // in the mapping, aligned to 2 MiB; kOrdinary: 16 bytes past that
  size_t bytes_ = 0;
};

// The pages that hold [data, data + bytes) now, as the kernel reports them: "2M", "4K", or "37%
// 2M"; "?" if /proc/self/smaps cannot be read.
std::string PagesOf(const void* data, size_t bytes);

}  // namespace riffle::cli

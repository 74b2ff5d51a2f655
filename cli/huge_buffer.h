// Memory for matrices that are timed: page-aligned, on 2 MiB pages where the kernel grants them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace riffle::cli {

// kOrdinary: 4 KiB, and 16 bytes past a line of the cache, as malloc places a large array.
enum class PageKind : uint8_t { kHuge, kOrdinary };

class HugeBuffer {
 public:
  HugeBuffer() = default;
  // Zeroed memory, asked for on 2 MiB pages or kept from them (madvise). Throws std::runtime_error.
  explicit HugeBuffer(size_t bytes, PageKind pages = PageKind::kHuge);
  ~HugeBuffer();
  HugeBuffer(HugeBuffer&& other) noexcept;
  HugeBuffer& operator=(HugeBuffer&& other) noexcept;

  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* mapping_ = nullptr;
  size_t mapped_bytes_ = 0;
  uint8_t* data_ = nullptr;  // in the mapping, aligned to 2 MiB; ordinary ones 16 bytes past that
  size_t bytes_ = 0;
};

// Which pages hold [data, data + bytes) now, as the kernel reports it: "2M", "4K", or "37% 2M".
// "?" where /proc/self/smaps cannot be read.
std::string PagesOf(const void* data, size_t bytes);

}  // namespace riffle::cli

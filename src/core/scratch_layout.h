// Where arrays lie in a thread's scratch or in a call's shared memory.
#pragma once

#include <hwy/base.h>

#include <cstddef>
#include <cstdint>

namespace riffle::core {

inline constexpr size_t kScratchAlignment = 64;  // a cache line, and the longest vector

// An array of T at a byte offset from the start of a block of memory.
template <typename T>
struct ScratchArray {
  size_t offset = 0;

  // The block is aligned to kScratchAlignment.
  T* At(uint8_t* block) const {
    HWY_DASSERT(reinterpret_cast<uintptr_t>(block) % kScratchAlignment == 0);
    return reinterpret_cast<T*>(block + offset);
  }
};

// Places arrays one after another, each aligned. A plan holds the ScratchArrays and bytes(), so the
// code that reserves memory and the kernel that uses it cannot disagree.
class ScratchLayout {
 public:
  // Starts after the first `begin` bytes.
  explicit ScratchLayout(size_t begin = 0) : end_(begin) {
    HWY_DASSERT(begin % kScratchAlignment == 0);
  }

  template <typename T>
  ScratchArray<T> Place(int64_t count) {
    HWY_DASSERT(count >= 0);
    const ScratchArray<T> array{end_};
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    end_ += (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
    return array;
  }

  size_t bytes() const { return end_; }

 private:
  size_t end_;
};

}  // namespace riffle::core

// Lays out arrays one behind the other.
#pragma once

#include <cstddef>
#include <cstdint>

namespace riffle::lm_head {

class Layout {
 public:
  explicit Layout(size_t begin = 0) : end_(begin) {}
  // The offset of `count` elements of `width` bytes, a multiple of 64 as `begin` is.
  size_t Place(int64_t count, size_t width) {
    const size_t begin = end_;
    end_ += (static_cast<size_t>(count) * width + 63) / 64 * 64;
    return begin;
  }
  size_t end() const { return end_; }

 private:
  size_t end_;
};

}  // namespace riffle::lm_head

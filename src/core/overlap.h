// Whether two strided sets of rows share a byte.
#pragma once

#include <cstdint>

namespace riffle::core {

// `rows` intervals of `width` bytes, `stride` bytes apart.
struct ByteRows {
  const void* data = nullptr;
  int64_t rows = 0;
  int64_t stride = 0;
  int64_t width = 0;
};

// Exact, so outputs may be interleaved with each other. Takes O(rows) steps, and only when the
// regions' hulls intersect.
bool Overlaps(const ByteRows& a, const ByteRows& b);

// Whether the rows of one output share a byte with each other.
inline bool OverlapsItself(const ByteRows& a) {
  return a.rows > 1 && (a.stride < 0 ? -a.stride : a.stride) < a.width;
}

}  // namespace riffle::core

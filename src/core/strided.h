// Regions of memory with up to three strides: do they fit in the address space, do they share
// bytes?
#pragma once

#include <cstdint>

#include "core/check.h"
#include "core/overlap.h"

namespace riffle::core {

inline int64_t SaturatingMul(int64_t a, int64_t b) {
  int64_t product = 0;
  if (!__builtin_mul_overflow(a, b, &product)) {
    return product;
  }
  return (a < 0) == (b < 0) ? INT64_MAX : INT64_MIN;
}

// The bytes of a stride along an axis of `size` elements of `element` bytes; 0 if no step is ever
// taken, since the stride may then be any number. It may also be any number if another axis is
// empty, because then no address is checked: hence the multiplication saturates.
inline int64_t StrideBytes(int64_t stride, int64_t element, int64_t size) {
  return size > 1 ? SaturatingMul(stride, element) : 0;
}

// size[0] * size[1] * size[2] rows of `width` bytes; the strides are in bytes.
struct Strided {
  const void* data = nullptr;
  int64_t size[3] = {0, 1, 1};
  int64_t stride[3] = {0, 0, 0};
  int64_t width = 0;

  bool empty() const { return size[0] == 0 || size[1] == 0 || size[2] == 0 || width == 0; }
  // The rows of the first axis at (i, j) of the others.
  ByteRows Rows(int64_t i, int64_t j) const {
    return {static_cast<const uint8_t*>(data) + i * stride[1] + j * stride[2], size[0], stride[0],
            width};
  }
};

// The addresses [begin, end) that an addressable region spans.
struct Hull {
  int64_t begin = 0;
  int64_t end = 0;
};

// False when an element's address overflows.
bool FindHull(const Strided& x, Hull* hull);

// Throws Error(kBadShape) naming `name`.
inline void CheckAddressable(const char* name, const Strided& x) {
  Hull hull;
  Check(x.empty() || FindHull(x, &hull), Code::kBadShape, "the strides of ", name, " (",
        x.stride[0], ", ", x.stride[1], ", ", x.stride[2], " bytes) times its shape (", x.size[0],
        ", ", x.size[1], ", ", x.size[2], ") do not fit an address");
}

// Exact. Steps are taken only where hulls intersect. They are as many as the rows there if the axes
// of each region nest, as those of tensors do, and more if strides interleave the sub-regions of
// one region. Both regions must be addressable.
bool Overlaps(const Strided& a, const Strided& b);

// Whether two rows of a region share a byte. The region is addressable and has at most two axes,
// rows and heads; takes one step per head.
bool OverlapsItself(const Strided& x);

}  // namespace riffle::core

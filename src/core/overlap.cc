#include "core/overlap.h"

namespace riffle::core {
namespace {

// ByteRows in ascending order of address; rows that are all at one address become one row.
struct AscendingRows {
  uintptr_t begin;
  int64_t rows;
  uintptr_t stride;
  uintptr_t width;

  explicit AscendingRows(const ByteRows& a)
      : begin(reinterpret_cast<uintptr_t>(a.data)),
        rows(a.width == 0 ? 0 : a.rows),
        stride(static_cast<uintptr_t>(a.stride < 0 ? -a.stride : a.stride)),
        width(static_cast<uintptr_t>(a.width)) {
    if (rows > 1 && a.stride < 0) {
      begin -= stride * static_cast<uintptr_t>(rows - 1);
    }
    if (rows > 1 && stride == 0) {
      rows = 1;
    }
  }

  uintptr_t At(int64_t row) const { return begin + stride * static_cast<uintptr_t>(row); }
  uintptr_t End() const { return At(rows - 1) + width; }
};

}  // namespace

bool Overlaps(const ByteRows& a_rows, const ByteRows& b_rows) {
  const AscendingRows a(a_rows);
  const AscendingRows b(b_rows);
  if (a.rows == 0 || b.rows == 0 || a.End() <= b.begin || b.End() <= a.begin) {
    return false;
  }
  for (int64_t i = 0, j = 0; i < a.rows && j < b.rows;) {
    if (a.At(i) + a.width <= b.At(j)) {
      ++i;
    } else if (b.At(j) + b.width <= a.At(i)) {
      ++j;
    } else {
      return true;
    }
  }
  return false;
}

}  // namespace riffle::core

#include "core/strided.h"

namespace riffle::core {

bool FindHull(const Strided& x, Hull* hull) {
  __extension__ using Wide = __int128;
  Wide begin = static_cast<Wide>(reinterpret_cast<uintptr_t>(x.data));
  Wide end = begin + x.width;
  for (int axis = 0; axis < 3; ++axis) {
    const Wide extent = static_cast<Wide>(x.stride[axis]) * (x.size[axis] - 1);
    (extent < 0 ? begin : end) += extent;
  }
  if (begin < 0 || end > INT64_MAX) {
    return false;
  }
  *hull = {static_cast<int64_t>(begin), static_cast<int64_t>(end)};
  return true;
}

bool Overlaps(const Strided& a, const Strided& b) {
  Hull hull_a;
  Hull hull_b;
  if (a.empty() || b.empty() || !FindHull(a, &hull_a) || !FindHull(b, &hull_b) ||
      hull_a.end <= hull_b.begin || hull_b.end <= hull_a.begin) {
    return false;
  }
  for (int64_t i = 0; i < a.size[1] * a.size[2]; ++i) {
    const ByteRows rows = a.Rows(i % a.size[1], i / a.size[1]);
    for (int64_t j = 0; j < b.size[1] * b.size[2]; ++j) {
      if (Overlaps(rows, b.Rows(j % b.size[1], j / b.size[1]))) {
        return true;
      }
    }
  }
  return false;
}

bool OverlapsItself(const Strided& x) {
  if (x.empty()) {
    return false;
  }
  if (OverlapsItself(x.Rows(0, 0))) {
    return true;
  }
  // Whether two heads share bytes depends on their distance alone.
  for (int64_t head = 1; head < x.size[1]; ++head) {
    if (Overlaps(x.Rows(0, 0), x.Rows(head, 0))) {
      return true;
    }
  }
  return false;
}

}  // namespace riffle::core

#include "core/strided.h"

#include <algorithm>
#include <utility>

namespace riffle::core {
namespace {

// A region as nested sub-regions: its axes of more than one element in descending order of stride,
// all strides positive, with rows that touch or overlap merged into longer ones.
struct Nest {
  int64_t begin = 0;
  int axes = 0;
  int64_t size[3] = {};
  int64_t stride[3] = {};
  int64_t extent[4] = {};  // bytes of a sub-region whose first `axis` indices are fixed

  explicit Nest(const Strided& x) {
    Hull hull;
    FindHull(x, &hull);
    begin = hull.begin;
    int64_t width = x.width;
    for (int axis = 0; axis < 3; ++axis) {
      if (x.size[axis] > 1 && x.stride[axis] != 0) {
        int at = axes++;
        const int64_t distance = std::abs(x.stride[axis]);
        for (; at > 0 && stride[at - 1] < distance; --at) {
          size[at] = size[at - 1];
          stride[at] = stride[at - 1];
        }
        size[at] = x.size[axis];
        stride[at] = distance;
      }
    }
    for (; axes > 0 && stride[axes - 1] <= width; --axes) {
      width += (size[axes - 1] - 1) * stride[axes - 1];
    }
    extent[axes] = width;
    for (int axis = axes; axis > 0; --axis) {
      extent[axis - 1] = extent[axis] + (size[axis - 1] - 1) * stride[axis - 1];
    }
  }
};

struct SubRegion {
  const Nest* nest;
  int fixed;      // how many indices are fixed
  int64_t begin;  // address

  int64_t extent() const { return nest->extent[fixed]; }
  bool solid() const { return fixed == nest->axes; }
};

int64_t FloorDiv(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

bool Meet(SubRegion a, SubRegion b);

// Whether sub-regions i of a and j of b meet depends only on i - j, so it is tested once per value
// of i - j at which their hulls meet: few values even where two pools share all their pages.
bool MeetAtEqualStrides(SubRegion a, SubRegion b) {
  const int64_t stride = a.nest->stride[a.fixed];
  const int64_t a_extent = a.nest->extent[a.fixed + 1];
  const int64_t b_extent = b.nest->extent[b.fixed + 1];
  const int64_t first =
      std::max(1 - b.nest->size[b.fixed], FloorDiv(b.begin - a.begin - a_extent, stride) + 1);
  const int64_t last =
      std::min(a.nest->size[a.fixed] - 1, FloorDiv(b.begin + b_extent - 1 - a.begin, stride));
  for (int64_t i = first; i <= last; ++i) {
    if (Meet({a.nest, a.fixed + 1, a.begin + i * stride}, {b.nest, b.fixed + 1, b.begin})) {
      return true;
    }
  }
  return false;
}

// Whether two sub-regions share a byte. Takes the larger one apart and looks only at the parts
// whose hull meets the other. As long as sub-regions of the same region do not interleave, each
// meets one or two sub-regions of the other region on average, so the number of steps grows with
// the number of rows, not with its square.
bool Meet(SubRegion a, SubRegion b) {
  if (a.begin + a.extent() <= b.begin || b.begin + b.extent() <= a.begin) {
    return false;
  }
  if (a.solid() && b.solid()) {
    return true;
  }
  if (!a.solid() && !b.solid() && a.nest->stride[a.fixed] == b.nest->stride[b.fixed]) {
    return MeetAtEqualStrides(a, b);
  }
  if (a.solid() || (!b.solid() && b.extent() > a.extent())) {
    std::swap(a, b);
  }
  const int64_t stride = a.nest->stride[a.fixed];
  const int64_t extent = a.nest->extent[a.fixed + 1];
  const int64_t first = std::max<int64_t>(0, FloorDiv(b.begin - a.begin - extent, stride) + 1);
  const int64_t last =
      std::min(a.nest->size[a.fixed] - 1, FloorDiv(b.begin + b.extent() - 1 - a.begin, stride));
  for (int64_t i = first; i <= last; ++i) {
    if (Meet({a.nest, a.fixed + 1, a.begin + i * stride}, b)) {
      return true;
    }
  }
  return false;
}

}  // namespace

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
  const Nest nest_a(a);
  const Nest nest_b(b);
  return Meet({&nest_a, 0, nest_a.begin}, {&nest_b, 0, nest_b.begin});
}

bool OverlapsItself(const Strided& x) {
  if (x.empty()) {
    return false;
  }
  const ByteRows rows = x.Rows(0, 0);
  if (OverlapsItself(rows)) {
    return true;
  }
  // Whether two heads share bytes depends only on the distance between them: they do if a row of
  // one starts less than a row's width from a row of the other. Rows are `rows.stride` apart.
  const int64_t stride = rows.rows > 1 ? std::abs(rows.stride) : 0;  // of one row: meaningless
  for (int64_t head = 1; head < x.size[1]; ++head) {
    const int64_t distance = std::abs(head * x.stride[1]);
    const int64_t below = stride == 0 ? 0 : std::min(distance / stride, rows.rows - 1);
    const int64_t above = std::min(below + 1, rows.rows - 1);
    if (distance - below * stride < x.width || std::abs(above * stride - distance) < x.width) {
      return true;
    }
  }
  return false;
}

}  // namespace riffle::core

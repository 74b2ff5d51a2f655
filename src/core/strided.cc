#include "core/strided.h"

#include <algorithm>
#include <utility>

namespace riffle::core {
namespace {

// A region as nested sub-regions: its axes of more than one element in descending order of stride,
// all strides positive, with rows that touch or overlap merged into longer ones.
struct SortedAxes {
  int64_t begin = 0;
  int axes = 0;
  int64_t size[3] = {};
  int64_t stride[3] = {};
  int64_t extent[4] = {};  // bytes of a sub-region whose first `axis` indices are fixed

  explicit SortedAxes(const Strided& x) {
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
  const SortedAxes* region;
  int fixed;      // how many indices are fixed
  int64_t begin;  // address

  int64_t extent() const { return region->extent[fixed]; }
  bool is_contiguous() const { return fixed == region->axes; }
};

int64_t FloorDiv(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

bool SubRegionsOverlap(SubRegion a, SubRegion b);

// Whether sub-regions i of a and j of b overlap depends only on i - j, so it is tested once per
// value of i - j at which their hulls overlap: few values even where two pools share all their
// pages.
bool SubRegionsOverlapAtEqualStrides(SubRegion a, SubRegion b) {
  const int64_t stride = a.region->stride[a.fixed];
  const int64_t a_extent = a.region->extent[a.fixed + 1];
  const int64_t b_extent = b.region->extent[b.fixed + 1];
  const int64_t first =
      std::max(1 - b.region->size[b.fixed], FloorDiv(b.begin - a.begin - a_extent, stride) + 1);
  const int64_t last =
      std::min(a.region->size[a.fixed] - 1, FloorDiv(b.begin + b_extent - 1 - a.begin, stride));
  for (int64_t i = first; i <= last; ++i) {
    if (SubRegionsOverlap({a.region, a.fixed + 1, a.begin + i * stride},
                          {b.region, b.fixed + 1, b.begin})) {
      return true;
    }
  }
  return false;
}

// Whether two sub-regions share a byte. Takes the larger one apart and looks only at the parts
// whose hull overlaps the other. As long as sub-regions of the same region do not interleave, each
// meets one or two sub-regions of the other region on average, so the number of steps grows with
// the number of rows, not with its square.
bool SubRegionsOverlap(SubRegion a, SubRegion b) {
  if (a.begin + a.extent() <= b.begin || b.begin + b.extent() <= a.begin) {
    return false;
  }
  if (a.is_contiguous() && b.is_contiguous()) {
    return true;
  }
  if (!a.is_contiguous() && !b.is_contiguous() &&
      a.region->stride[a.fixed] == b.region->stride[b.fixed]) {
    return SubRegionsOverlapAtEqualStrides(a, b);
  }
  if (a.is_contiguous() || (!b.is_contiguous() && b.extent() > a.extent())) {
    std::swap(a, b);
  }
  const int64_t stride = a.region->stride[a.fixed];
  const int64_t extent = a.region->extent[a.fixed + 1];
  const int64_t first = std::max<int64_t>(0, FloorDiv(b.begin - a.begin - extent, stride) + 1);
  const int64_t last =
      std::min(a.region->size[a.fixed] - 1, FloorDiv(b.begin + b.extent() - 1 - a.begin, stride));
  for (int64_t i = first; i <= last; ++i) {
    if (SubRegionsOverlap({a.region, a.fixed + 1, a.begin + i * stride}, b)) {
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
  const SortedAxes region_a(a);
  const SortedAxes region_b(b);
  return SubRegionsOverlap({&region_a, 0, region_a.begin}, {&region_b, 0, region_b.begin});
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

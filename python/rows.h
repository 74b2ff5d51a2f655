// Arrays of any number of axes as matrices.
#pragma once

#include <cstdint>
#include <utility>

#include "arguments.h"
#include "array.h"

namespace riffle::python {

// The rows of x [..., n]. If the strides of the leading axes do not merge into one, x is split into
// blocks of rows, each with one row stride.
class Rows {
 public:
  explicit Rows(const Array& x) : data_(static_cast<uint8_t*>(x.data())) {
    if (x.ndim() == 0) {
      CheckAxes(x, 1, "[..., n]");
    }
    CheckLastAxisContiguous(x);
    element_size_ = SizeOf(x.element());
    cols_ = x.axis(-1).size;
    for (int i = 0; i + 1 < x.ndim(); ++i) {
      rows_ *= x.axis(i).size;
    }
    if (rows_ > 1) {
      outer_ = MergeAxes(x, 0, x.ndim() - 1, axes_) - 1;
    } else {
      axes_[0] = {rows_, 0};
    }
  }

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t block_rows() const { return axes_[outer_].size; }
  int64_t stride() const { return axes_[outer_].stride; }
  int64_t blocks() const { return rows_ == 0 ? 0 : rows_ / block_rows(); }

  uint8_t* Block(int64_t block) const {
    int64_t offset = 0;
    for (int i = outer_ - 1; i >= 0; --i) {
      offset += block % axes_[i].size * axes_[i].stride;
      block /= axes_[i].size;
    }
    return data_ + offset * element_size_;
  }

  // The byte range from the start of the lowest row to the end of the highest.
  std::pair<const uint8_t*, const uint8_t*> Extent() const {
    int64_t low = 0;
    int64_t high = cols_;
    for (int i = 0; i <= outer_; ++i) {
      const int64_t last = (axes_[i].size - 1) * axes_[i].stride;
      (last < 0 ? low : high) += last;
    }
    return {data_ + low * element_size_, data_ + high * element_size_};
  }

 private:
  uint8_t* data_;
  int64_t element_size_;
  int64_t cols_;
  int64_t rows_ = 1;
  int outer_ = 0;  // axes outside a block's rows
  Axis axes_[kMaxAxes];
};

}  // namespace riffle::python

// What selection is given in Python beside x: k, ids, outputs.
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "arguments.h"
#include "array.h"
#include "riffle/topk.h"
#include "rows.h"

namespace riffle::python {

// One k, or one per row.
class KArgument {
 public:
  std::optional<Int32Span> per_row;
  int64_t width = 0;  // the largest

  KArgument(nb::handle k, const MatrixView& x, const TopKOptions& options) {
    // Lets the entry point check k and the options before anything is allocated.
    MatrixView no_rows = x;
    no_rows.rows = 0;
    if (!IsArray(k)) {
      width = Int64(k, "k");
      TopK(no_rows, width, {}, options);
      return;
    }
    const std::span<const int32_t> values = per_row.emplace(k, "k").get();
    TopK(no_rows, std::span<const int32_t>(), {}, options);
    const auto [min, max] = std::minmax_element(values.begin(), values.end());
    if (static_cast<int64_t>(values.size()) != x.rows ||
        (x.rows > 0 && (*min < 1 || *max > x.cols))) {
      TopK(x, values, {}, options);  // throws, with the library's text
    }
    width = x.rows > 0 ? *max : 0;
  }
};

// Ids [n], or of x's shape, read in place; the indices returned have their type.
class IdsArgument {
 public:
  IdsArgument(nb::handle given, const Array& x, const Rows& rows) {
    if (given.is_none()) {
      return;
    }
    const Array& ids = array_.emplace(given, "ids");
    if (ids.element() != Element::kI32 && ids.element() != Element::kI64) {
      ThrowTypeError("ids has dtype " + ids.DTypeName() + "; it must be int32 or int64");
    }
    view_.type = ids.element() == Element::kI64 ? IndexType::kInt64 : IndexType::kInt32;
    CheckLastAxisContiguous(ids);
    if (ids.ndim() == 1) {
      const int64_t shape[] = {rows.cols()};
      CheckShape(ids, shape);
    } else {
      int64_t shape[kMaxAxes];
      for (int i = 0; i < x.ndim(); ++i) {
        shape[i] = x.axis(i).size;
      }
      CheckShape(ids, {shape, static_cast<size_t>(x.ndim())});
      rows_.emplace(ids);
      if (rows_->blocks() > 1) {
        ThrowValueError("ids' leading axes have no common row stride; make it contiguous");
      }
      view_.row_stride = rows.rows() > 1 ? rows_->stride() : 0;
    }
    view_.data = ids.data();
  }

  Element element() const {
    return view_.type == IndexType::kInt64 ? Element::kI64 : Element::kI32;
  }
  // The ids of the rows from `row` on.
  IdsView At(int64_t row) const {
    IdsView ids = view_;
    if (ids.data != nullptr) {
      ids.data = static_cast<const uint8_t*>(ids.data) +
                 row * ids.row_stride * static_cast<int64_t>(SizeOf(ids.type));
    }
    return ids;
  }

 private:
  std::optional<Array> array_;
  std::optional<Rows> rows_;
  IdsView view_;
};

// An output [..., width]: the caller's, or for a null handle a new one like x.
class TopKOutput {
 public:
  TopKOutput(const Array& x, nb::handle given, const char* name, Element element,
             std::span<const int64_t> shape, int64_t rows) {
    if (!given.is_valid()) {
      fresh_ = NewArrayLike(x, element, shape);
      data_ = static_cast<uint8_t*>(fresh_.data);
      stride_ = shape.back();
    } else {
      Adopt(given, name, element, shape, rows);
    }
    row_bytes_ = stride_ * SizeOf(element);
  }

  bool given() const { return given_.has_value(); }
  const Rows& rows() const { return *rows_; }  // of a given one
  int64_t stride() const { return stride_; }
  uint8_t* Row(int64_t row) const { return data_ + row * row_bytes_; }
  nb::object Finish(const Array& x) {
    return given() ? nb::borrow(given_->object()) : Finished(x, std::move(fresh_));
  }

 private:
  void Adopt(nb::handle given, const char* name, Element element, std::span<const int64_t> shape,
             int64_t rows) {
    const Array& array = given_.emplace(given, name, Access::kWrite);
    CheckElement(array, element);
    CheckShape(array, shape);
    rows_.emplace(array);
    if (rows_->blocks() > 1) {
      ThrowValueError(std::string(name) +
                      "'s leading axes have no common row stride; rows must be evenly spaced");
    }
    data_ = static_cast<uint8_t*>(array.data());
    stride_ = rows > 1 ? rows_->stride() : shape.back();
  }

  std::optional<Array> given_;
  std::optional<Rows> rows_;
  NewArray fresh_;
  uint8_t* data_ = nullptr;
  int64_t stride_ = 0;
  int64_t row_bytes_ = 0;
};

}  // namespace riffle::python

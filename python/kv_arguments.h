// Pages of keys or values as Python passes them, to be read or written: an array, what its scales
// are, how its rows are coded.
#pragma once

#include <optional>

#include "arguments.h"
#include "array.h"
#include "riffle/attention.h"
#include "riffle/write_kv.h"

namespace riffle::python {

// Where a layout has the axes of pages, tokens and heads.
struct Layout {
  int page, token, head;
  const char* form;

  static Layout Of(nb::handle name);
};

// Keys or values of tokens, [tokens, kv_heads, head_dim], to write.
HeadsView TokensView(const Array& x);

// A number argument or None, else TypeError.
std::optional<float> OptionalFloat(nb::handle value, const char* name);

// Queries, keys or values of tokens; form: "[tokens, heads, head_dim]".
HeadsView Heads(const Array& x, const char* form);

// One pool. Names are for texts and outlive it.
class KvPagesArgument {
 public:
  // `format`: None, or for pages of uint8 the name of what they are: "float8_e4m3fn", "float8_e5m2"
  // or a block format, whose last axis is the bytes of a row.
  KvPagesArgument(nb::handle pages, const char* name, nb::handle format, const char* format_name,
                  const Layout& layout, Access access = Access::kRead);

  // `scales`: None, a number, or an array that broadcasts to pages.shape[:-1] in the layout given,
  // or has one more axis, of groups along head_dim. To be written they must be an array.
  void AddScales(nb::handle scales, const char* scales_name, Access access = Access::kRead);

  // Whether the pages have scales of their own: those of a block format are in its rows.
  bool takes_scales() const {
    return view_.dtype == DType::kI8 || view_.dtype == DType::kE4M3 || view_.dtype == DType::kE5M2;
  }
  const PagedKv& view() const { return view_; }
  PagedKvOut out() const;  // of pages to be written, with scales to be read or written

 private:
  void SetFormat(nb::handle format, const char* format_name);
  void SetStrides(const Array& scales);
  int64_t ScaleStride(int axis) const;

  Array pages_;
  Layout layout_;
  std::optional<Array> scales_;
  Access scales_access_ = Access::kRead;
  float number_ = 0;
  PagedKv view_;
};

}  // namespace riffle::python

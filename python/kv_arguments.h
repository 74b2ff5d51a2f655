// Pages of keys or values as Python passes them: an array, what its scales are, how its rows are
// coded.
#pragma once

#include <optional>

#include "arguments.h"
#include "array.h"
#include "riffle/attention.h"

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

// One pool. Names are for texts and outlive it.
class KvPagesArgument {
 public:
  // `scales`: None, a number, or an array that broadcasts to pages.shape[:-1] in the layout given,
  // or has one more axis, of groups along head_dim. `format`: None, or the name of a block format
  // of pages of uint8, whose last axis is the bytes of a row.
  KvPagesArgument(nb::handle pages, const char* name, nb::handle scales, const char* scales_name,
                  nb::handle format, const char* format_name, const Layout& layout);

  const PagedKv& view() const { return view_; }

 private:
  void SetFormat(nb::handle format, const char* format_name);
  void SetScales(nb::handle scales, const char* scales_name, const Layout& layout);
  int64_t ScaleStride(int axis) const;

  Array pages_;
  std::optional<Array> scales_;
  float number_ = 0;
  PagedKv view_;
};

}  // namespace riffle::python

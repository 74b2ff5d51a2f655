// Pages of keys or values as Python passes them, to be read or written: an array, its scales, and
// the format of its rows.
#pragma once

#include <optional>

#include "arguments.h"
#include "array.h"
#include "riffle/attention.h"
#include "riffle/write_kv.h"

namespace riffle::python {

// The positions of the axes of pages, tokens and heads in a layout.
struct Layout {
  int page, token, head;
  const char* form;

  static Layout Of(nb::handle name);
};

// Keys or values of tokens to write, [tokens, kv_heads, head_dim].
HeadsView TokensView(const Array& x);

// A number argument or None, else TypeError.
std::optional<float> OptionalFloat(nb::handle value, const char* name);

// Queries, keys or values of tokens; form: "[tokens, heads, head_dim]".
HeadsView Heads(const Array& x, const char* form);

// One pool. The names are for error texts and must outlive it.
class KvPagesArgument {
 public:
  // `format`: None, or for pages of uint8 what they hold: "float8_e4m3fn", "float8_e5m2" or a block
  // format, for which the last axis is the bytes of a row.
  KvPagesArgument(nb::handle pages, const char* name, nb::handle format, const char* format_name,
                  const Layout& layout, Access access = Access::kRead);

  // `scales`: None, a number, or an array that broadcasts to pages.shape[:-1] in the same layout or
  // has one more axis, of groups along head_dim. Scales that are written must be an array.
  void AddScales(nb::handle scales, const char* scales_name, Access access = Access::kRead);

  // Whether the pages take scales; those of a block format are inside its rows.
  bool takes_scales() const {
    return view_.dtype == DType::kI8 || view_.dtype == DType::kE4M3 || view_.dtype == DType::kE5M2;
  }
  const PagedKv& view() const { return view_; }
  PagedKvOut out() const;  // pages to be written, with scales to be read or written

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

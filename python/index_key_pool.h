// A pool of index keys as Python passes it.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "riffle/indexer.h"
#include "sparse_arguments.h"

namespace riffle::python {

// A pool of index keys, to be read or written: IndexKeys or IndexKeysOut.
template <typename Keys>
class KeyPool {
 public:
  KeyPool(nb::handle object, nb::handle scales, nb::handle format, int64_t head_dim,
          const char* name, const char* scales_name, Access access)
      : array_(object, name, access) {
    constexpr std::string_view kFormats[] = {"plain", "deepgemm", "e4m3", "mxfp4"};
    const int kind = format.is_none() ? 0
                                      : OneOf(format, "key_format", kFormats,
                                              "None, 'plain', 'deepgemm', 'e4m3', 'mxfp4'");
    keys_.data = array_.data();
    keys_.head_dim = head_dim;
    keys_.num_pages = array_.ndim() > 0 ? array_.axis(0).size : 0;
    if (kind == 1 || kind == 3) {
      if (!scales.is_none()) {
        ThrowValueError(std::string(scales_name) + " is given; the format '" +
                        std::string(kFormats[kind]) + "' has its own");
      }
      SetFused(kind == 1 ? IndexKeyFormat::kDeepGemm : IndexKeyFormat::kMxFp4, head_dim);
      return;
    }
    CheckAxes(array_, 3, "[pages, page_size, head_dim]");
    CheckLastAxisContiguous(array_);
    keys_.dtype = IndexDType(array_, kind == 2);
    keys_.page_size = array_.axis(1).size;
    keys_.head_dim = array_.axis(2).size;
    keys_.page_stride = array_.axis(0).stride;
    keys_.token_stride = array_.axis(1).stride;
    if (!scales.is_none()) {
      SetScales(scales, scales_name, access);
    }
  }

  const Keys& view() const { return keys_; }

 private:
  // A page has its rows first, then four bytes of scales per row.
  void SetFused(IndexKeyFormat format, int64_t head_dim) {
    const bool mxfp4 = format == IndexKeyFormat::kMxFp4;
    const char* row = mxfp4 ? "head_dim / 2 + 4" : "head_dim + 4";
    const int64_t bytes = (mxfp4 ? head_dim / 2 : head_dim) + 4;
    CheckElement(array_, Element::kU8);
    CheckAxes(
        array_, 2,
        mxfp4 ? "[pages, page_size * (head_dim / 2 + 4)]" : "[pages, page_size * (head_dim + 4)]");
    CheckLastAxisContiguous(array_);
    if (array_.axis(1).size % bytes != 0) {
      ThrowValueError(std::string(array_.name()) + " has shape " + array_.Shape() +
                      "; a page is a multiple of " + row + " = " + std::to_string(bytes) +
                      " bytes");
    }
    keys_.dtype = DType::kU8;
    keys_.format = format;
    keys_.page_size = array_.axis(1).size / bytes;
    keys_.page_stride = array_.axis(0).stride;
  }

  // Broadcasts to [pages, page_size] by NumPy's rules.
  void SetScales(nb::handle object, const char* name, Access access) {
    const Array& scales = scales_.emplace(object, name, access);
    CheckElement(scales, Element::kF32);
    const int64_t want[] = {keys_.num_pages, keys_.page_size};
    int64_t stride[2] = {0, 0};
    const int skipped = 2 - scales.ndim();
    for (int axis = std::max(skipped, 0); axis < 2 && skipped >= 0; ++axis) {
      const Axis& own = scales.axis(axis - skipped);
      stride[axis] = own.size == 1 && access == Access::kRead ? 0 : own.stride;
      if (own.size != want[axis] && (own.size != 1 || access == Access::kWrite)) {
        stride[0] = -1;
        break;
      }
    }
    if (skipped < 0 || stride[0] == -1 || (access == Access::kWrite && skipped != 0)) {
      ThrowValueError(std::string(name) + " has shape " + scales.Shape() + "; it must " +
                      (access == Access::kWrite ? "be " : "broadcast to ") + ShapeText(want));
    }
    keys_.scales.data = static_cast<decltype(keys_.scales.data)>(scales.data());
    keys_.scales.page_stride = stride[0];
    keys_.scales.token_stride = stride[1];
  }

  Array array_;
  std::optional<Array> scales_;
  Keys keys_;
};

}  // namespace riffle::python

// Writing keys and values into pages in XLA programs. Pages, and computed scales, are both operands
// and results: XLA gives both one buffer, and first copies an operand that is needed later.
// riffle/_jax_write_kv.py has checked shapes and dtypes.
#include "xla_write_kv.h"

#include <cstdint>
#include <cstring>

#include "riffle/error.h"
#include "riffle/write_kv.h"
#include "xla_call.h"
#include "xla_operands.h"

namespace riffle::python {
namespace {

// Strides of a row-major buffer's axes; 0 for axes of size 1, whose one element serves all.
struct Strides {
  int64_t of[4] = {};
  explicit Strides(ffi::AnyBuffer::Dimensions dims) {
    Require(dims.size() == 3 || dims.size() == 4, "pages or scales have another number of axes");
    int64_t stride = 1;
    for (size_t axis = dims.size(); axis-- > 0;) {
      of[axis] = dims[axis] == 1 ? 0 : stride;
      stride *= dims[axis];
    }
  }
};

// Where a layout has the axes of pages, tokens and heads: HND, NHD, JAX.
constexpr size_t kAxes[3][3] = {{0, 2, 1}, {0, 1, 2}, {1, 2, 0}};

// The result buffer, which already holds the operand's contents.
ffi::AnyBuffer Updated(const ffi::AnyBuffer& operand, const ffi::AnyBuffer& result) {
  if (result.untyped_data() != operand.untyped_data()) {
    size_t bytes = ffi::ByteWidth(operand.element_type());
    for (const int64_t size : operand.dimensions()) {
      bytes *= static_cast<size_t>(size);
    }
    std::memcpy(result.untyped_data(), operand.untyped_data(), bytes);
  }
  return result;
}

HeadsView Tokens(const ffi::AnyBuffer& x) {
  const auto dims = x.dimensions();
  Require(dims.size() == 3, "keys or values are not [tokens, kv_heads, head_dim]");
  return {x.untyped_data(), DTypeOf(x.element_type()), dims[0], dims[1],
          dims[2],          dims[1] * dims[2],         dims[2]};
}

PagedKvOut Pages(const ffi::AnyBuffer& x, int64_t layout, int64_t format) {
  const auto dims = x.dimensions();
  Require(dims.size() == 4, "pages have another number of axes");
  const auto& [page, token, head] = kAxes[layout];
  const Strides strides(dims);
  PagedKvOut pages;
  pages.data = x.untyped_data();
  pages.dtype = KvDTypeOf(x.element_type());
  pages.format = static_cast<KvFormat>(format);
  pages.num_pages = dims[page];
  pages.page_size = dims[token];
  pages.kv_heads = dims[head];
  pages.head_dim =
      pages.format == KvFormat::kPlain ? dims[3] : dims[3] / BlockBytes(pages.format) * 32;
  pages.page_stride = strides.of[page];
  pages.token_stride = strides.of[token];
  pages.head_stride = strides.of[head];
  return pages;
}

// Adds scales of three axes, or of four whose last axis counts groups.
void AddScales(const ffi::AnyBuffer& x, int64_t layout, bool computed, PagedKvOut* pages) {
  const auto dims = x.dimensions();
  const Strides strides(dims);
  const auto& [page, token, head] = kAxes[layout];
  KvScales& scales = pages->scales;
  scales.dtype = KvDTypeOf(x.element_type());
  scales.page_stride = strides.of[page];
  scales.token_stride = strides.of[token];
  scales.head_stride = strides.of[head];
  if (dims.size() == 4 && dims[3] > 1) {
    scales.group = pages->head_dim / dims[3];
    scales.group_stride = 1;
  }
  if (computed) {
    pages->computed_scales = x.untyped_data();
  } else {
    scales.data = x.untyped_data();
  }
}

// The values of the attribute `scales` for keys or for values.
enum ScaleKind : int64_t { kNoScales, kGivenScales, kComputedScales, kScaleKinds };

// Operands after the pages: the scales of keys, then of values, for sides that have some. Results:
// the pages, then the computed scales.
ffi::Error XlaWriteKv(ffi::AnyBuffer keys, ffi::AnyBuffer values, ffi::AnyBuffer slots,
                      ffi::AnyBuffer key_pages, ffi::AnyBuffer value_pages,
                      ffi::RemainingArgs scales, ffi::Result keys_out, ffi::Result values_out,
                      ffi::RemainingResults scales_out, int64_t layout, int64_t key_format,
                      int64_t value_format, int64_t kinds) {
  return Run([&] {
    Require(layout >= 0 && layout < 3 && key_format >= 0 && key_format < kNumKvFormats &&
                value_format >= 0 && value_format < kNumKvFormats,
            "an attribute is out of its range");
    PagedKvOut pages[] = {Pages(Updated(key_pages, *keys_out), layout, key_format),
                          Pages(Updated(value_pages, *values_out), layout, value_format)};
    size_t next = 0, next_out = 0;
    for (int side = 0; side < 2; ++side) {
      const int64_t kind = side == 0 ? kinds % kScaleKinds : kinds / kScaleKinds;
      if (kind == kNoScales) {
        continue;
      }
      Require(next < scales.size(), "the call lacks scales");
      ffi::AnyBuffer buffer = scales[next++];
      if (kind == kComputedScales) {
        Require(next_out < scales_out.size(), "the call lacks results of scales");
        buffer = Updated(buffer, scales_out[next_out++]);
      }
      AddScales(buffer, layout, kind == kComputedScales, &pages[side]);
    }
    Require(slots.dimensions().size() == 1, "slots are not [tokens]");
    const IndexSpan list(IndexPointerOf(slots.element_type(), slots.untyped_data()),
                         static_cast<size_t>(slots.dimensions()[0]));
    WriteKv(Tokens(keys), Tokens(values), list, pages[0], pages[1]);
  });
}

constexpr std::string_view kAttributes[] = {"layout", "key_format", "value_format", "scales"};

}  // namespace

nanobind::capsule WriteKvHandler() {
  return nanobind::capsule(reinterpret_cast<void*>(ffi::Handler<XlaWriteKv, kAttributes>));
}

}  // namespace riffle::python

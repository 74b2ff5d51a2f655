// Writing keys and values into pages: Python's arguments to riffle/write_kv.h.
#include "riffle/write_kv.h"

#include <string>

#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "kernel_scope.h"
#include "kv_arguments.h"

namespace riffle::python {
namespace {

void PyWriteKv(nb::handle keys_object, nb::handle values_object, nb::handle slots_object,
               nb::handle key_pages_object, nb::handle value_pages_object, nb::handle layout_name,
               nb::handle key_scales, nb::handle value_scales, nb::handle key_format,
               nb::handle value_format, nb::handle compute_object) {
  constexpr const char* kForm = "[tokens, kv_heads, head_dim]";
  const Array keys(keys_object, "keys"), values(values_object, "values");
  const HeadsView k = Heads(keys, kForm), v = Heads(values, kForm);
  const Indices slots(slots_object, "slots", 1, "1-dimensional");
  const Layout layout = Layout::Of(layout_name);
  KvPagesArgument key_pages(key_pages_object, "key_pages", key_format, "key_format", layout,
                            Access::kWrite);
  KvPagesArgument value_pages(value_pages_object, "value_pages", value_format, "value_format",
                              layout, Access::kWrite);
  // Only quantised pages have scales: the other side of the call may have any dtype.
  const bool compute = Bool(compute_object, "compute_scales");
  if (compute && !key_pages.takes_scales() && !value_pages.takes_scales()) {
    ThrowValueError(
        "compute_scales = True but neither key_pages nor value_pages is of a dtype "
        "with scales: float8_e4m3fn, float8_e5m2 or int8");
  }
  const auto access = [&](const KvPagesArgument& pages) {
    return compute && pages.takes_scales() ? Access::kWrite : Access::kRead;
  };
  const auto check_int8 = [&](const KvPagesArgument& pages, const char* name, nb::handle scales,
                              const char* scales_name) {
    if (pages.view().dtype == DType::kI8 && scales.is_none() && !compute) {
      ThrowValueError(std::string(scales_name) + " is None but " + name +
                      " are int8 and have no scales: give some, or have them computed");
    }
  };
  check_int8(key_pages, "key_pages", key_scales, "key_scales");
  check_int8(value_pages, "value_pages", value_scales, "value_scales");
  key_pages.AddScales(key_scales, "key_scales", access(key_pages));
  value_pages.AddScales(value_scales, "value_scales", access(value_pages));
  const PagedKvOut to_keys = key_pages.out(), to_values = value_pages.out();
  const KernelScope scope;
  WriteKv(k, v, slots.get(), to_keys, to_values);
}

}  // namespace

void BindWriteKv(nb::module_& m) {
  const auto any = nb::arg().none();  // the functions below handle None
  m.def("write_kv", &PyWriteKv, any, any, any, any, any, any, any, any, any, any, any);
}

}  // namespace riffle::python

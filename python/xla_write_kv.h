// The custom call of riffle.jax.write_kv.
#pragma once

#include <nanobind/nanobind.h>

namespace riffle::python {

nanobind::capsule WriteKvHandler();

}  // namespace riffle::python

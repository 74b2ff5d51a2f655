// What a kernel runs in: without the GIL.
#pragma once

#include <nanobind/nanobind.h>

namespace riffle::python {

// No lock is needed for set_target: a call stays on the target that it began with.
class KernelScope {
 private:
  nanobind::gil_scoped_release no_gil_;
};

}  // namespace riffle::python

// What a kernel runs in: without the GIL, and never while set_target switches the kernels.
#pragma once

#include <nanobind/nanobind.h>

#include <mutex>
#include <shared_mutex>

namespace riffle::python {

inline std::shared_mutex target_mutex;

class KernelScope {
 private:
  nanobind::gil_scoped_release no_gil_;  // first, so that nobody waits for the lock with the GIL
  std::shared_lock<std::shared_mutex> lock_{target_mutex};
};

}  // namespace riffle::python

// Scopes in which kernels run: without the GIL.
#pragma once

#include <Python.h>

#include <chrono>
#include <thread>

namespace riffle::python {

// Runs `call`, which uses the C API and may take the GIL. When the interpreter exits,
// CPython up to 3.13 ends any other thread that wants the GIL by pthread_exit. That unwinds
// its stack, through destructors that release Python objects without the GIL, and into
// catch-all handlers that end the process by SIGABRT. Here such a thread sleeps until the
// process ends, as in CPython 3.14. `call` throws no C++ exception, so only that unwinding
// is caught.
template <typename Call>
auto SleepAtExit(const Call& call) noexcept {
  try {
    return call();
  } catch (...) {
    for (;;) {
      std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }
}

// Releases the GIL while it lives.
class GilReleased {
 public:
  GilReleased() : state_(PyEval_SaveThread()) {}
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;
  ~GilReleased() {
    SleepAtExit([this] { PyEval_RestoreThread(state_); });
  }

 private:
  PyThreadState* state_;
};

// set_target needs no lock: a call stays on the target that it began with.
class KernelScope {
 private:
  GilReleased no_gil_;
};

}  // namespace riffle::python

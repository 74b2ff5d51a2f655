// What a kernel runs in: without the GIL, and never while set_target switches the kernels.
#pragma once

#include <Python.h>

#include <mutex>
#include <shared_mutex>

#include <unistd.h>

namespace riffle::python {

// Runs `call`, a call of the C API that may take the GIL. Once the interpreter exits, CPython up to
// 3.13 ends any other thread that wants the GIL by pthread_exit, which unwinds its stack: through
// destructors that release Python objects without the GIL, and into handlers of all exceptions that
// end the process by SIGABRT. Such a thread sleeps here instead, until the process is gone, which
// is what CPython 3.14 does itself. `call` throws no exception of C++, so only that unwinding is
// caught.
template <typename Call>
auto SleepAtExit(const Call& call) noexcept {
  try {
    return call();
  } catch (...) {
    for (;;) {
      pause();
    }
  }
}

// No GIL in the scope of this.
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

inline std::shared_mutex target_mutex;

class KernelScope {
 private:
  GilReleased no_gil_;  // first, so that nobody waits for the lock with the GIL
  std::shared_lock<std::shared_mutex> lock_{target_mutex};
};

}  // namespace riffle::python

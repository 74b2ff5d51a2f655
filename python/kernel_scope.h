// What a kernel runs in: without the GIL.
#pragma once

#include <Python.h>

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

// No lock is needed for set_target: a call stays on the target that it began with.
class KernelScope {
 private:
  GilReleased no_gil_;
};

}  // namespace riffle::python

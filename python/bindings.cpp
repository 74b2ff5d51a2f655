// The module riffle._core: errors, and what concerns the whole process.
#include "bindings.h"

#include <nanobind/stl/vector.h>

#include <string>

#include "arguments.h"
#include "frameworks.h"
#include "kernel_scope.h"
#include "riffle/error.h"
#include "riffle/runtime.h"

namespace riffle::python {
namespace {

PyObject* out_of_pages = nullptr;  // made with the module, never released

PyObject* ExceptionOf(Code code) {
  switch (code) {
    case Code::kBadDType:
      return PyExc_TypeError;
    case Code::kOutOfPages:
      return out_of_pages;
    case Code::kOutOfMemory:
      return PyExc_MemoryError;
    default:
      return PyExc_ValueError;
  }
}

void Translate(const std::exception_ptr& error, void*) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    PyErr_SetString(ExceptionOf(e.code()), e.what());
  }
}

nb::dict PyInfo() {
  nb::dict info;
  info["version"] = Version();
  info["target"] = Target();
  info["targets"] = Targets();
  info["threads"] = NumThreads();
  return info;
}

// Runs call(); in its errors, the argument has the name that Python gives it.
template <typename Call>
void Renaming(const char* python_name, const Call& call) {
  try {
    call();
  } catch (const Error& e) {
    if (e.argument().empty()) {
      throw;
    }
    const std::string name(python_name);
    throw Error(e.code(), name + (e.what() + e.argument().size()), name.size());
  }
}

void PySetNumThreads(nb::handle n) {
  const int threads = Int32(n, "n");
  const GilReleased no_gil;  // the call waits for a running one
  Renaming("n", [threads] { SetNumThreads(threads); });
}

// `function` is the address of a ParallelRegion; 0: none.
void PySetParallelRegion(uintptr_t function) {
  const GilReleased no_gil;
  SetParallelRegion(reinterpret_cast<ParallelRegion>(function));
}

void PySetTarget(nb::handle name) {
  std::string target;
  if (!name.is_none() && !nb::try_cast(name, target)) {
    ThrowTypeError("name must be a str or None, not " + Repr(name));
  }
  const GilReleased no_gil;
  Renaming("name", [&target] { SetTarget(target); });
}

void PyReleaseScratch() {
  const GilReleased no_gil;  // the call waits for a running one
  ReleaseScratch();
}

}  // namespace

void BindRuntime(nb::module_& m) {
  out_of_pages =
      Checked(PyErr_NewExceptionWithDoc(
                  "riffle.OutOfPages",
                  "A KvCache has fewer free pages than a call needs; nothing has changed.",
                  PyExc_RuntimeError, nullptr))
          .release()
          .ptr();
  m.attr("OutOfPages") = nb::borrow(out_of_pages);
  m.attr("__version__") = std::string(Version());
  m.def("info", &PyInfo);
  m.def("set_num_threads", &PySetNumThreads, nb::arg().none());
  m.def("release_scratch", &PyReleaseScratch);
  m.def("set_parallel_region", &PySetParallelRegion);
  m.def("set_target", &PySetTarget, nb::arg().none());
}

}  // namespace riffle::python

NB_MODULE(_core, m) {
  // Daemon threads that still run when the interpreter exits do not release their objects.
  nanobind::set_leak_warnings(false);
  nanobind::register_exception_translator(riffle::python::Translate);
  riffle::python::LoadKnown();
  riffle::python::BindAttention(m);
  riffle::python::BindDenseAttention(m);
  riffle::python::BindKvCache(m);
  riffle::python::BindWriteKv(m);
  riffle::python::BindLinear(m);
  riffle::python::BindRuntime(m);
  riffle::python::BindSampling(m);
  riffle::python::BindCompressKv(m);
  riffle::python::BindIndexer(m);
  riffle::python::BindIndexKeys(m);
  riffle::python::BindSparseAttention(m);
  riffle::python::BindTopK(m);
  riffle::python::BindXlaFfi(m);
  riffle::python::BindXlaSparse(m);
  riffle::python::BindTorch(m);
}

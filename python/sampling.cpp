// Sampling: Python's arguments to riffle/sampling.h and back.
#include "riffle/sampling.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "kernel_scope.h"

namespace riffle::python {
namespace {

// Beyond T: its limits, which no parameter admits, and for floats infinity.
template <typename T, typename From>
T Narrow(From value) {
  if constexpr (std::is_integral_v<T>) {
    constexpr int64_t kMin = std::numeric_limits<T>::min();
    constexpr int64_t kMax = std::numeric_limits<T>::max();
    return static_cast<T>(std::clamp<int64_t>(value, kMin, kMax));
  } else {
    return static_cast<T>(value);
  }
}

// A number, an array [rows], or None for the default: what each list of SampleOptions is made of.
// Copied: a few numbers a row, of either width.
template <typename T>
class List {
 public:
  List(nb::handle object, const char* name) {
    if (object.is_none()) {
      return;
    }
    if (!IsArray(object)) {
      values_.push_back(Number(object, name));
      return;
    }
    const Array array(object, name);
    CheckAxes(array, 1, "one number, or [rows]");
    if (array.element() == (kInt ? Element::kI32 : Element::kF32)) {
      Copy<std::conditional_t<kInt, int32_t, float>>(array);
    } else if (array.element() == (kInt ? Element::kI64 : Element::kF64)) {
      Copy<std::conditional_t<kInt, int64_t, double>>(array);
    } else {
      ThrowTypeError(std::string(name) + " has dtype " + array.DTypeName() + "; it must be " +
                     (kInt ? "int32 or int64" : "float32 or float64"));
    }
  }

  std::span<const T> get() const { return values_; }

 private:
  static constexpr bool kInt = std::is_integral_v<T>;

  // Scalars of NumPy and arrays without axes are numbers.
  static bool IsArray(nb::handle object) {
    if (PyFloat_Check(object.ptr()) || PyLong_Check(object.ptr()) ||
        FrameworkOf(object) == Framework::kNone) {
      return false;
    }
    const nb::object ndim = nb::getattr(object, "ndim", nb::none());
    return ndim.is_none() || Int64(ndim, "ndim") != 0;
  }

  static T Number(nb::handle object, const char* name) {
    if constexpr (std::is_integral_v<T>) {
      return Narrow<T>(Int64(object, name));
    } else {
      const double value = PyFloat_AsDouble(object.ptr());
      if (value == -1 && PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        ThrowTypeError(std::string(name) + " must be a float, not " +
                       nb::cast<std::string>(nb::repr(object)));
      }
      return Narrow<T>(value);
    }
  }

  template <typename From>
  void Copy(const Array& array) {
    const auto [size, stride] = array.axis(0);
    const auto* data = static_cast<const uint8_t*>(array.data());
    for (int64_t i = 0; i < size; ++i) {
      From value;
      std::memcpy(&value, data + i * stride * static_cast<int64_t>(sizeof(From)), sizeof(From));
      values_.push_back(Narrow<T>(value));
    }
  }

  std::vector<T> values_;
};

uint64_t Seed(nb::handle seed) {
  const nb::object index = nb::steal(PyNumber_Index(seed.ptr()));
  if (!index.is_valid()) {
    PyErr_Clear();
    ThrowTypeError("seed must be an int, not " + nb::cast<std::string>(nb::repr(seed)));
  }
  const unsigned long long value = PyLong_AsUnsignedLongLong(index.ptr());
  if (PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    ThrowValueError("seed = " + nb::cast<std::string>(nb::str(index)) + " is not in 0..2^64 - 1");
  }
  return value;
}

nb::object PySample(nb::handle logits_object, nb::handle temperature, nb::handle top_k,
                    nb::handle top_p, nb::handle min_p, nb::handle seed, nb::handle stream,
                    nb::handle position, bool return_logprobs) {
  const Array logits(logits_object, "logits");
  const DType dtype = FloatingDType(logits);
  CheckAxes(logits, 2, "[rows, vocab]");
  CheckLastAxisContiguous(logits);
  const List<float> temperatures(temperature, "temperature");
  const List<int32_t> top_ks(top_k, "top_k");
  const List<float> top_ps(top_p, "top_p");
  const List<float> min_ps(min_p, "min_p");
  const List<int64_t> streams(stream, "stream");
  const List<int64_t> positions(position, "position");
  const SampleOptions options{.temperature = temperatures.get(),
                              .top_k = top_ks.get(),
                              .top_p = top_ps.get(),
                              .min_p = min_ps.get(),
                              .seed = Seed(seed),
                              .stream = streams.get(),
                              .position = positions.get()};
  const int64_t shape[] = {logits.axis(0).size};
  const auto rows = static_cast<size_t>(shape[0]);
  NewArray tokens = NewArrayLike(logits, Element::kI32, shape);
  NewArray logprobs;
  if (return_logprobs) {
    logprobs = NewArrayLike(logits, Element::kF32, shape);
  }
  {
    const KernelScope scope;
    Sample({logits.data(), dtype, shape[0], logits.axis(1).size, logits.axis(0).stride}, options,
           {static_cast<int32_t*>(tokens.data), rows},
           {static_cast<float*>(logprobs.data), return_logprobs ? rows : 0});
  }
  if (!return_logprobs) {
    return Finished(logits, std::move(tokens));
  }
  return nb::make_tuple(Finished(logits, std::move(tokens)), Finished(logits, std::move(logprobs)));
}

}  // namespace

void BindSampling(nb::module_& m) {
  m.def("sample", &PySample, nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg().none(),
        nb::arg().none(), nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg());
}

}  // namespace riffle::python

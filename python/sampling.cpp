// Sampling: Python's arguments to riffle/sampling.h and back.
#include "riffle/sampling.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "kernel_scope.h"

namespace riffle::python {
namespace {

// The double `value` of parameter `name` as a float. A value that rounds to 0 acts as 0.
float Narrow(double value, const std::string& name) {
  const auto narrow = static_cast<float>(value);
  if (std::isinf(narrow) && !std::isinf(value)) {
    ThrowValueError(name + " = " + Repr(nb::float_(value)) + " is not in the range of float32");
  }
  return narrow;
}

// The int `value` of parameter `name` as a T.
template <typename T, typename From>
T Narrow(From value, const std::string& name) {
  if (!std::in_range<T>(value)) {
    // A top_k beyond int32 is off, like any top_k above the number of columns.
    if (std::is_same_v<T, int32_t> && value > 0) {
      return std::numeric_limits<T>::max();
    }
    ThrowValueError(name + " = " + std::to_string(value) + " is not in the range of int" +
                    std::to_string(8 * sizeof(T)));
  }
  return static_cast<T>(value);
}

// A number, an array [rows], or None for the default, for one of SampleOptions' lists. Arrays are
// copied, as they are small: any integers, and for float parameters any floats too.
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
    Read(array);
  }

  std::span<const T> get() const { return values_; }

 private:
  static constexpr bool kInt = std::is_integral_v<T>;

  static T Number(nb::handle object, const char* name) {
    if constexpr (kInt) {
      const nb::object index = Index(object, name);
      int overflow = 0;
      const long long value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
      if (overflow == 0) {
        return Narrow<T>(value, name);
      }
      if (std::is_same_v<T, int32_t> && overflow > 0) {
        return std::numeric_limits<T>::max();
      }
      ThrowValueError(std::string(name) + " = " + Text(index) + " is not in the range of int" +
                      std::to_string(8 * sizeof(T)));
    } else {
      const double value = Double(object, name, "a float");
      return static_cast<T>(value);  // beyond float32: infinity, which every parameter rejects
    }
  }

  void Read(const Array& array) {
    switch (array.element()) {
      case Element::kI8:
        return Copy<int8_t>(array);
      case Element::kI16:
        return Copy<int16_t>(array);
      case Element::kI32:
        return Copy<int32_t>(array);
      case Element::kI64:
        return Copy<int64_t>(array);
      case Element::kU8:
        return Copy<uint8_t>(array);
      case Element::kU16:
        return Copy<uint16_t>(array);
      case Element::kU32:
        return Copy<uint32_t>(array);
      case Element::kU64:
        return Copy<uint64_t>(array);
      default:
        ReadFloats(array);
    }
  }

  void ReadFloats(const Array& array) {
    if constexpr (!kInt) {
      if (array.element() == Element::kF64) {
        return Copy<double>(array);
      }
      const Element type = array.element();
      if (type == Element::kF32 || type == Element::kF16 || type == Element::kBF16) {
        const DType dtype = FloatingDType(array);
        return ForEach(array, [&](const uint8_t* element, const std::string&) {
          values_.push_back(FloatAt(element, dtype));
        });
      }
    }
    ThrowTypeError(std::string(array.name()) + " has dtype " + array.DTypeName() + "; it must be " +
                   (kInt ? "an integer type" : "a float or an integer type"));
  }

  template <typename From>
  void Copy(const Array& array) {
    ForEach(array, [&](const uint8_t* element, const std::string& name) {
      From value;
      std::memcpy(&value, element, sizeof(From));
      if constexpr (kInt) {
        values_.push_back(Narrow<T>(value, name));
      } else {
        values_.push_back(Narrow(static_cast<double>(value), name));
      }
    });
  }

  // Calls call(address, "name[i]") for each element.
  template <typename Call>
  static void ForEach(const Array& array, const Call& call) {
    const auto [size, stride] = array.axis(0);
    const auto* data = static_cast<const uint8_t*>(array.data());
    for (int64_t i = 0; i < size; ++i) {
      call(data + i * stride * SizeOf(array.element()),
           std::string(array.name()) + "[" + std::to_string(i) + "]");
    }
  }

  std::vector<T> values_;
};

uint64_t Seed(nb::handle seed) {
  const nb::object index = Index(seed, "seed");
  const unsigned long long value = PyLong_AsUnsignedLongLong(index.ptr());
  if (PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    ThrowValueError("seed = " + nb::cast<std::string>(nb::str(index)) + " is not in 0..2^64 - 1");
  }
  return value;
}

nb::object PySample(nb::handle logits_object, nb::handle temperature, nb::handle top_k,
                    nb::handle top_p, nb::handle min_p, nb::handle seed, nb::handle stream,
                    nb::handle position, nb::handle return_logprobs_object) {
  const bool return_logprobs = Bool(return_logprobs_object, "return_logprobs");
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
    Sample({logits.data(), dtype, shape[0], logits.axis(1).size, logits.axis(0).stride},
           {static_cast<int32_t*>(tokens.data), rows},
           {static_cast<float*>(logprobs.data), return_logprobs ? rows : 0}, options);
  }
  if (!return_logprobs) {
    return Finished(logits, std::move(tokens));
  }
  return nb::make_tuple(Finished(logits, std::move(tokens)), Finished(logits, std::move(logprobs)));
}

}  // namespace

void BindSampling(nb::module_& m) {
  const auto any = nb::arg().none();  // the functions below handle None
  m.def("sample", &PySample, any, any, any, any, any, any, any, any, any);
}

}  // namespace riffle::python

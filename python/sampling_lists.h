// The parameters of sampling as Python gives them: one number, or one a row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "riffle/sampling.h"

namespace riffle::python {

// The double `value` of parameter `name` as a float. A value that rounds to 0 acts as 0.
inline float Narrow(double value, const std::string& name) {
  const auto narrow = static_cast<float>(value);
  if (std::isinf(narrow) && !std::isinf(value)) {
    ThrowValueError(name + " = " + Repr(nb::float_(value)) + " is not in the range of float32");
  }
  return narrow;
}

// The limits of T, for an error text.
template <typename T>
std::string Limits() {
  return std::is_unsigned_v<T> ? "0..2^64 - 1" : "the range of int" + std::to_string(8 * sizeof(T));
}

// The int `value` of parameter `name` as a T.
template <typename T, typename From>
T Narrow(From value, const std::string& name) {
  if (!std::in_range<T>(value)) {
    // A top_k beyond int32 is off, like any top_k above the number of columns.
    if (std::is_same_v<T, int32_t> && value > 0) {
      return std::numeric_limits<T>::max();
    }
    ThrowValueError(name + " = " + std::to_string(value) + " is not in " + Limits<T>());
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
    if constexpr (std::is_unsigned_v<T>) {
      const nb::object index = Index(object, name);
      const unsigned long long value = PyLong_AsUnsignedLongLong(index.ptr());
      if (PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        ThrowValueError(std::string(name) + " = " + Text(index) + " is not in " + Limits<T>());
      }
      return value;
    } else if constexpr (kInt) {
      const nb::object index = Index(object, name);
      int overflow = 0;
      const long long value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
      if (overflow == 0) {
        return Narrow<T>(value, name);
      }
      if (std::is_same_v<T, int32_t> && overflow > 0) {
        return std::numeric_limits<T>::max();
      }
      ThrowValueError(std::string(name) + " = " + Text(index) + " is not in " + Limits<T>());
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

// Token ids as the library takes them. What is beyond int32 becomes its limit, which no vocabulary
// reaches, so that the library's check refuses it.
inline std::vector<int32_t> Tokens(const Indices& given) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  const IndexSpan from = given.get();
  std::vector<int32_t> tokens(from.size());
  for (size_t i = 0; i < from.size(); ++i) {
    tokens[i] = static_cast<int32_t>(std::clamp<int64_t>(from[i], -kMax, kMax));
  }
  return tokens;
}

// (tokens, offsets) of rows, or (tokens, values, offsets): int32 or int64 arrays, and floats; or
// None. `parts` is 2 or 3.
class Ragged {
 public:
  Ragged(nb::handle object, const char* name, size_t parts) {
    if (object.is_none()) {
      return;
    }
    const char* const form =
        parts == 2 ? "(tokens, offsets) or None" : "(tokens, values, offsets) or None";
    if (!nb::isinstance<nb::tuple>(object) && !nb::isinstance<nb::list>(object)) {
      ThrowTypeError(std::string(name) + " must be " + form + ", not " + Repr(object));
    }
    const nb::list given = Items(object, name, "arrays");
    if (given.size() != parts) {
      ThrowValueError(std::string(name) + ", a " + nb::type_name(object.type()).c_str() + ", has " +
                      std::to_string(given.size()) + " parts; it must be " + form);
    }
    tokens_ = Tokens(Indices(given[0], name, 1, "[tokens]"));
    if (parts == 3) {
      values_.emplace(given[1], name);
    }
    const Indices offsets(given[parts - 1], name, 1, "[rows + 1]");
    for (size_t i = 0; i < offsets.get().size(); ++i) {
      offsets_.push_back(offsets.get()[i]);
    }
  }

  TokenLists lists() const { return {tokens_, offsets_}; }
  std::span<const float> values() const {
    return values_.has_value() ? values_->get() : std::span<const float>();
  }

 private:
  std::vector<int32_t> tokens_;
  std::vector<int64_t> offsets_;
  std::optional<List<float>> values_;
};

}  // namespace riffle::python

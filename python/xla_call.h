// Custom calls of XLA as C++ functions: Handler<Function> takes a call frame apart and calls
//   Error Function(AnyBuffer..., RemainingArgs, Result..., RemainingResults,
//                  float | bool | int64_t...)
// by its parameters: operands in order, results in order, then attributes by name.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#include "xla_abi.h"

namespace riffle::python::ffi {

using DataType = xla::Type;
using xla::ErrorCode;

constexpr size_t ByteWidth(DataType type) {
  switch (type) {
    case DataType::kPred:
    case DataType::kS8:
    case DataType::kU8:
    case DataType::kF8E5M2:
    case DataType::kF8E4M3FN:
    case DataType::kF8E8M0FNU:
      return 1;
    case DataType::kS16:
    case DataType::kU16:
    case DataType::kF16:
    case DataType::kBF16:
      return 2;
    case DataType::kS32:
    case DataType::kU32:
    case DataType::kF32:
      return 4;
    case DataType::kS64:
    case DataType::kU64:
    case DataType::kF64:
      return 8;
  }
  return 0;  // a type that no handler supports
}

// An operand or result of any type and shape.
class AnyBuffer {
 public:
  using Dimensions = std::span<const int64_t>;

  explicit AnyBuffer(const xla::Buffer* buffer) : buffer_(buffer) {}

  Dimensions dimensions() const { return {buffer_->dims, static_cast<size_t>(buffer_->rank)}; }
  DataType element_type() const { return buffer_->type; }
  void* untyped_data() const { return buffer_->data; }

 private:
  const xla::Buffer* buffer_;
};

// A buffer for the call to fill.
class Result {
 public:
  explicit Result(const xla::Buffer* buffer) : buffer_(buffer) {}
  const AnyBuffer& operator*() const { return buffer_; }

 private:
  AnyBuffer buffer_;
};

// The buffers after those that a handler names.
class RemainingBuffers {
 public:
  RemainingBuffers(xla::Buffer* const* buffers, int64_t size)
      : buffers_(buffers), size_(static_cast<size_t>(size)) {}
  size_t size() const { return size_; }
  AnyBuffer operator[](size_t i) const { return AnyBuffer(buffers_[i]); }

 private:
  xla::Buffer* const* buffers_;
  size_t size_;
};

struct RemainingArgs : RemainingBuffers {  // of operands
  using RemainingBuffers::RemainingBuffers;
};
struct RemainingResults : RemainingBuffers {
  using RemainingBuffers::RemainingBuffers;
};

// The outcome of a call: success or an error.
class Error {
 public:
  Error(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}
  static Error Success() { return {}; }

  // The error as XLA's object, null for success.
  xla::Error* Make(const xla::Api& api) const {
    if (success_) {
      return nullptr;
    }
    xla::ErrorCreateArgs args{sizeof(args), nullptr, message_.c_str(), code_};
    return api.create_error(&args);
  }

 private:
  Error() : success_(true) {}

  bool success_ = false;
  ErrorCode code_ = ErrorCode::kInternal;
  std::string message_;
};

// Hands out the parts of a call frame in the order of a function's parameters. Throws Error.
class CallReader {
 public:
  CallReader(const xla::CallFrame& frame, std::span<const std::string_view> attributes)
      : frame_(frame), attributes_(attributes) {
    Check(frame.struct_size >= sizeof(xla::CallFrame) && frame.stage == xla::Stage::kExecute,
          "XLA makes this call in a way that is unknown here");
    for (const xla::Buffers* list : {&frame.operands, &frame.results}) {
      Check(std::all_of(list->kinds, list->kinds + list->size,
                        [](int kind) { return kind == xla::kBufferKind; }),
            "an operand or result is not a buffer");
    }
  }

  template <typename T>
  T Next() {
    if constexpr (std::is_same_v<T, AnyBuffer>) {
      return T(NextOf(frame_.operands, next_operand_));
    } else if constexpr (std::is_same_v<T, Result>) {
      return T(NextOf(frame_.results, next_result_));
    } else if constexpr (std::is_same_v<T, RemainingArgs>) {
      return Rest<T>(frame_.operands, next_operand_);
    } else if constexpr (std::is_same_v<T, RemainingResults>) {
      return Rest<T>(frame_.results, next_result_);
    } else if constexpr (std::is_same_v<T, float>) {
      return *static_cast<const float*>(NextAttribute(DataType::kF32));
    } else if constexpr (std::is_same_v<T, bool>) {
      return *static_cast<const bool*>(NextAttribute(DataType::kPred));
    } else {
      static_assert(std::is_same_v<T, int64_t>);
      return *static_cast<const int64_t*>(NextAttribute(DataType::kS64));
    }
  }

  void CheckAllTaken() const {
    Check(next_operand_ == frame_.operands.size && next_result_ == frame_.results.size,
          "the call has too many operands or results");
  }

 private:
  static void Check(bool condition, std::string_view what) {
    if (!condition) {
      throw Error(ErrorCode::kInvalidArgument, std::string(what));
    }
  }

  static const xla::Buffer* NextOf(const xla::Buffers& list, int64_t& next) {
    Check(next < list.size, "the call has too few operands or results");
    return list.buffers[next++];
  }

  template <typename T>
  static T Rest(const xla::Buffers& list, int64_t& next) {
    const int64_t from = std::exchange(next, list.size);
    Check(from <= list.size, "the call has too few operands or results");
    return T(list.buffers + from, list.size - from);
  }

  const void* NextAttribute(DataType type) {
    const std::string_view name = attributes_[next_attribute_++];
    const xla::Attributes& all = frame_.attributes;
    for (int64_t i = 0; i < all.size; ++i) {
      if (std::string_view(all.names[i]->data, all.names[i]->size) == name &&
          all.kinds[i] == xla::kScalarKind) {
        const auto& scalar = *static_cast<const xla::Scalar*>(all.values[i]);
        Check(scalar.type == type, "an attribute has another type");
        return scalar.value;
      }
    }
    throw Error(ErrorCode::kInvalidArgument, "the call lacks the attribute " + std::string(name));
  }

  const xla::CallFrame& frame_;
  std::span<const std::string_view> attributes_;
  int64_t next_operand_ = 0;
  int64_t next_result_ = 0;
  size_t next_attribute_ = 0;
};

template <typename... Parameters>
Error CallWithFrame(Error (*function)(Parameters...), const xla::CallFrame& frame,
                    std::span<const std::string_view> attributes) {
  try {
    CallReader reader(frame, attributes);
    // Braces guarantee evaluation from left to right.
    std::tuple<Parameters...> arguments{reader.Next<Parameters>()...};
    reader.CheckAllTaken();
    return std::apply(function, arguments);
  } catch (const Error& error) {
    return error;
  } catch (const std::exception& e) {
    return {ErrorCode::kInternal, e.what()};
  }
}

// Tells XLA which version of the interface the handler was built for. XLA refuses a version newer
// than its own, and JAX then does not start; it accepts older ones for at least a year. So every
// XLA up to the newest version that xla_abi.h was compared with is told its own version.
inline void AnswerVersion(const xla::CallFrame& frame, xla::Metadata& metadata) {
  xla::Version version{sizeof(version), nullptr, xla::kMajor, 1};
  if (frame.api != nullptr && frame.api->version.major == xla::kMajor) {  // 0.1 passes no version
    version.minor = std::min(frame.api->version.minor, xla::kNewestMinor);
  }
  metadata.version = version;
  metadata.traits = 0;
  if (version.minor >= 2) {
    metadata.state_type_id = 0;
  }
}

inline constexpr std::string_view kNoAttributes[] = {""};

// The function that XLA calls. kAttributes: the names of kFunction's attributes, in its order.
template <auto kFunction, const auto& kAttributes = kNoAttributes>
xla::Error* Handler(xla::CallFrame* frame) {
  xla::Extension* const extension = frame->extensions;
  if (extension != nullptr && extension->type == xla::kMetadataExtension) {
    AnswerVersion(*frame, *reinterpret_cast<xla::MetadataExtension*>(extension)->metadata);
    return nullptr;
  }
  return CallWithFrame(kFunction, *frame, kAttributes).Make(*frame->api);
}

}  // namespace riffle::python::ffi

// Helpers for handlers of XLA's custom calls: operands and errors.
#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
#include <span>
#include <vector>

#include "riffle/error.h"
#include "riffle/indices.h"
#include "riffle/types.h"
#include "xla_call.h"

namespace riffle::python {

inline void Require(bool condition, const char* what) {
  if (!condition) {
    throw Error(Code::kBadShape, what);
  }
}

inline DType DTypeOf(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::kF32:
      return DType::kF32;
    case ffi::DataType::kF16:
      return DType::kF16;
    case ffi::DataType::kBF16:
      return DType::kBF16;
    default:
      throw Error(Code::kBadDType, "an operand is none of float32, float16 and bfloat16");
  }
}

// The dtype of pages of keys and values, or of their scales.
inline DType KvDTypeOf(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::kF8E4M3FN:
      return DType::kE4M3;
    case ffi::DataType::kF8E5M2:
      return DType::kE5M2;
    case ffi::DataType::kF8E8M0FNU:
      return DType::kE8M0;
    case ffi::DataType::kS8:
      return DType::kI8;
    case ffi::DataType::kU8:
      return DType::kU8;
    default:
      return DTypeOf(type);
  }
}

// The dtype of top-k's operands; bool counts as uint8.
inline DType SelectionDTypeOf(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::kF64:
      return DType::kF64;
    case ffi::DataType::kS8:
      return DType::kI8;
    case ffi::DataType::kPred:
    case ffi::DataType::kU8:
      return DType::kU8;
    case ffi::DataType::kS16:
      return DType::kI16;
    case ffi::DataType::kU16:
      return DType::kU16;
    case ffi::DataType::kS32:
      return DType::kI32;
    case ffi::DataType::kU32:
      return DType::kU32;
    case ffi::DataType::kS64:
      return DType::kI64;
    case ffi::DataType::kU64:
      return DType::kU64;
    default:
      return DTypeOf(type);
  }
}

// An operand or result to which vmap may have added batch axes, before its own. In operands they
// have size 1 if the whole batch shares them (vmap_method="expand_dims").
class Batched {
 public:
  using Dimensions = ffi::AnyBuffer::Dimensions;

  Batched(const ffi::AnyBuffer& buffer, size_t own_axes)
      : buffer_(buffer), dims_(buffer.dimensions()) {
    Require(dims_.size() >= own_axes, "an operand has too few axes");
    leading_ = dims_.size() - own_axes;
    for (size_t i = 0; i < dims_.size(); ++i) {
      (i < leading_ ? items_ : size_) *= dims_[i];
    }
  }

  int64_t axis(size_t i) const { return dims_[leading_ + i]; }
  int64_t items() const { return items_; }
  int64_t size() const { return size_; }  // elements of an item
  ffi::DataType type() const { return buffer_.element_type(); }
  uint8_t* data() const { return static_cast<uint8_t*>(buffer_.untyped_data()); }

  // The address of item `item` of the batch of `result`.
  uint8_t* At(int64_t item, const Batched& result) const {
    Require(leading_ == result.leading_, "an operand has another number of batch axes");
    int64_t index = 0;
    int64_t stride = 1;
    for (size_t i = leading_; i-- > 0;) {
      const int64_t size = result.dims_[i];
      Require(dims_[i] == size || dims_[i] == 1, "an operand has another batch");
      index += dims_[i] == 1 ? 0 : item % size * stride;
      stride *= dims_[i];
      item /= size;
    }
    return data() + index * size_ * static_cast<int64_t>(ffi::ByteWidth(type()));
  }

 private:
  ffi::AnyBuffer buffer_;
  Dimensions dims_;
  size_t leading_ = 0;
  int64_t items_ = 1;
  int64_t size_ = 1;
};

// An int32 operand for all items of a batch as one array: in place, or repeated in `copy`.
inline std::span<const int32_t> Int32s(const Batched& x, const Batched& result,
                                       std::vector<int32_t>& copy) {
  Require(x.type() == ffi::DataType::kS32, "an operand is not int32");
  if (x.items() == result.items()) {
    return {reinterpret_cast<const int32_t*>(x.data()), static_cast<size_t>(x.items() * x.size())};
  }
  copy.resize(static_cast<size_t>(result.items() * x.size()));
  for (int64_t item = 0; item < result.items(); ++item) {
    std::memcpy(copy.data() + item * x.size(), x.At(item, result),
                static_cast<size_t>(x.size()) * sizeof(int32_t));
  }
  return copy;
}

inline IndexPointer IndexPointerOf(ffi::DataType type, const void* data) {
  Require(type == ffi::DataType::kS32 || type == ffi::DataType::kS64,
          "an operand is neither int32 nor int64");
  return type == ffi::DataType::kS64 ? IndexPointer(static_cast<const int64_t*>(data))
                                     : IndexPointer(static_cast<const int32_t*>(data));
}

// Item `item` of an int32 or int64 operand.
inline IndexPointer IndicesAt(const Batched& x, int64_t item, const Batched& result) {
  return IndexPointerOf(x.type(), x.At(item, result));
}

// Like Int32s, for int32 or int64.
inline IndexPointer AllIndices(const Batched& x, const Batched& result,
                               std::vector<int64_t>& copy) {
  if (x.items() == result.items()) {
    return IndexPointerOf(x.type(), x.data());
  }
  copy.resize(static_cast<size_t>(result.items() * x.size()));  // enough for either type
  const auto bytes = static_cast<int64_t>(ffi::ByteWidth(x.type())) * x.size();
  for (int64_t item = 0; item < result.items(); ++item) {
    std::memcpy(reinterpret_cast<uint8_t*>(copy.data()) + item * bytes, x.At(item, result),
                static_cast<size_t>(bytes));
  }
  return IndexPointerOf(x.type(), copy.data());
}

inline std::span<const int32_t> Int32sAt(const Batched& x, int64_t item, const Batched& result) {
  Require(x.type() == ffi::DataType::kS32, "an operand is not int32");
  return {reinterpret_cast<const int32_t*>(x.At(item, result)), static_cast<size_t>(x.size())};
}

// Runs `call` and returns its exception, if any, as the call's error.
template <typename Call>
ffi::Error Run(const Call& call) {
  try {
    call();
    return ffi::Error::Success();
  } catch (const Error& e) {
    return {e.code() == Code::kOutOfMemory ? ffi::ErrorCode::kResourceExhausted
                                           : ffi::ErrorCode::kInvalidArgument,
            e.what()};
  } catch (const std::exception& e) {
    return {ffi::ErrorCode::kInternal, e.what()};
  }
}

}  // namespace riffle::python

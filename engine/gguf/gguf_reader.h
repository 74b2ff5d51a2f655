// Reads the head of a file for gguf.cc, and checks every read against the end of the file.
// Internal.
#pragma once

#include <fmt/format.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "engine/gguf/gguf.h"

namespace riffle::engine {

static_assert(std::endian::native == std::endian::little, "GGUF is read without byte swaps");

inline constexpr int kMaxArrayDepth = 4;

enum class ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};
inline constexpr uint32_t kValueTypes = 13;
// Bytes of a value; 0 if the file states its length.
inline constexpr uint64_t kValueBytes[kValueTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
inline constexpr const char* kValueNames[kValueTypes] = {
    "uint8",   "int8",   "uint16", "int16",  "uint32", "int32",  "float32",
    "boolean", "string", "array",  "uint64", "int64",  "float64"};

inline uint64_t BytesOf(ValueType type) { return kValueBytes[static_cast<uint32_t>(type)]; }

struct Value {
  ValueType type;  // of the value; for an array, of its elements
  bool is_array;
  uint64_t count;                  // 1; for an array, its number of elements
  std::span<const uint8_t> bytes;  // from the first element on
};

template <typename T>
T Load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

// Pre: the Reader has checked the string.
inline std::string_view StringAt(const uint8_t* at) {
  return {reinterpret_cast<const char*>(at + sizeof(uint64_t)), Load<uint64_t>(at)};
}

// Reads the head of a file from its start; never past its end.
class Reader {
 public:
  Reader(std::span<const uint8_t> bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return bytes_.size() - position_; }

  [[noreturn]] void Fail(const std::string& text) const {
    throw BadModel(fmt::format("{}: {}", path_, text));
  }

  std::span<const uint8_t> Skip(uint64_t count, std::string_view what) {
    if (count > remaining()) {
      Fail(fmt::format(
          "{} at byte {} needs {} bytes, but the file ends after {}: it is truncated or corrupt",
          what, position_, count, remaining()));
    }
    const auto skipped = bytes_.subspan(position_, count);
    position_ += count;
    return skipped;
  }

  template <typename T>
  T Take(std::string_view what) {
    return Load<T>(Skip(sizeof(T), what).data());
  }

  std::string_view TakeString(std::string_view what) {
    const auto length = Take<uint64_t>(what);
    const auto text = Skip(length, what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }

  ValueType TakeType(std::string_view what) {
    const auto type = Take<uint32_t>(what);
    if (type >= kValueTypes) Fail(fmt::format("{} is of type {}, unknown to GGUF", what, type));
    return static_cast<ValueType>(type);
  }

  Value TakeValue(std::string_view what) {
    const ValueType type = TakeType(what);
    if (type == ValueType::kArray) return TakeArray(what, 1);
    const uint64_t start = position_;
    SkipValues(type, 1, what, 0);
    return {type, false, 1, bytes_.subspan(start, position_ - start)};
  }

 private:
  Value TakeArray(std::string_view what, int depth) {
    const ValueType type = TakeType(what);
    const auto count = Take<uint64_t>(what);
    const uint64_t start = position_;
    SkipValues(type, count, what, depth);
    return {type, true, count, bytes_.subspan(start, position_ - start)};
  }

  void SkipValues(ValueType type, uint64_t count, std::string_view what, int depth) {
    // Every element takes at least a byte. This bounds the loops below and prevents overflow of the
    // product.
    if (count > remaining()) {
      Fail(fmt::format(
          "{} has {} elements, but only {} bytes follow: the file is truncated or corrupt", what,
          count, remaining()));
    }
    if (depth > kMaxArrayDepth) Fail(fmt::format("{} is nested too deeply", what));
    if (BytesOf(type) != 0) {
      Skip(count * BytesOf(type), what);
      return;
    }
    for (uint64_t i = 0; i < count; ++i) {
      if (type == ValueType::kString) {
        TakeString(what);
      } else {
        TakeArray(what, depth + 1);
      }
    }
  }

  std::span<const uint8_t> bytes_;
  const std::string& path_;
  uint64_t position_ = 0;
};

}  // namespace riffle::engine

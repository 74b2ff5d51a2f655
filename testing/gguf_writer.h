// Writes GGUF files for tests, correct ones and ones whose counts are wrong.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace riffle::testing {

class GgufWriter {
 public:
  // The numbers of value types in a file.
  enum : uint32_t {
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
    kF64
  };

  template <typename T>
  static std::string Raw(T value) {
    std::string bytes(sizeof(T), '\0');
    std::memcpy(bytes.data(), &value, sizeof(T));
    return bytes;
  }
  static std::string Text(std::string_view text) {
    return Raw<uint64_t>(text.size()) + std::string(text);
  }

  // Adds a key with the given type; `value` holds the bytes that follow the type in the file.
  void AddRaw(std::string_view key, uint32_t type, const std::string& value) {
    metadata_ += Text(key) + Raw(type) + value;
    ++keys_;
  }
  template <typename T>
  void Add(std::string_view key, uint32_t type, T value) {
    AddRaw(key, type, Raw(value));
  }
  void AddString(std::string_view key, std::string_view value) {
    AddRaw(key, kString, Text(value));
  }
  template <typename T>
  void AddArray(std::string_view key, uint32_t type, const std::vector<T>& values) {
    std::string raw = Raw(type) + Raw<uint64_t>(values.size());
    for (const T& value : values) raw += Element(value);
    AddRaw(key, kArray, raw);
  }
  void AddTensor(std::string_view name, const std::vector<int64_t>& shape, uint32_t type,
                 uint64_t offset) {
    tensors_ += Text(name) + Raw(static_cast<uint32_t>(shape.size()));
    for (const int64_t length : shape) tensors_ += Raw(length);
    tensors_ += Raw(type) + Raw(offset);
    ++tensor_count_;
  }

  // Make the header contradict the file.
  void set_version(uint32_t version) { version_ = version; }
  void set_keys(uint64_t keys) { keys_ = keys; }
  void set_tensors(uint64_t tensors) { tensor_count_ = tensors; }

  std::vector<uint8_t> Finish(const std::string& data = "", size_t alignment = 32) const {
    std::string file = "GGUF" + Raw(version_) + Raw(tensor_count_) + Raw(keys_);
    file += metadata_ + tensors_;
    if (!data.empty()) {
      file.resize((file.size() + alignment - 1) / alignment * alignment);
      file += data;
    }
    return {file.begin(), file.end()};
  }

 private:
  template <typename T>
  static std::string Element(T value) {
    return Raw(value);
  }
  static std::string Element(const std::string& value) { return Text(value); }

  uint32_t version_ = 3;
  uint64_t keys_ = 0, tensor_count_ = 0;
  std::string metadata_, tensors_;
};

}  // namespace riffle::testing

// Reads GGUF, the file format of ggml and llama.cpp (versions 2 and 3, little endian): named
// metadata, then named tensors. The file is mapped into memory; no tensor is copied.
//
// Files are not trusted. Every count, length, offset and shape is checked against the size of the
// file before it is used, so a truncated or malformed file throws BadModel; tensors share no bytes,
// so memory for them is in proportion to the file. If another process
// shortens the file while it is mapped, reading the lost part raises SIGBUS, here and in the
// tensors' data; `riffle generate` has a handler that then exits with code 1.
//
// Source of the format: ggml's docs/gguf.md; block sizes from ggml's ggml-common.h.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/gguf/tensor_type.h"
#include "engine/printable.h"

namespace riffle::engine {

// A model file that cannot be used. The text names the file and its fault.
class BadModel : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Tensor {
  std::string_view name;
  TensorType type;
  // In ggml's order of axes: shape[0] is contiguous, a weight is [in, out]. A tensor that the model
  // does not use may have no dimensions (a single value) or a dimension of 0.
  std::vector<int64_t> shape;
  const uint8_t* data;  // aligned to general.alignment (32 unless the file says otherwise)
  int64_t bytes;

  int64_t elements() const;
  int64_t row_values() const;  // shape[0]; 1 without dimensions
  int64_t row_bytes() const;   // of row_values() values
};

// All copies share the mapping.
class GgufFile {
 public:
  // Maps `path`. Throws BadModel if it cannot be opened or is not GGUF,
  // Error(kOutOfMemory) if there is no memory to map it.
  static GgufFile Open(const std::string& path);
  // The same for bytes in memory, which must outlive the result. Align them to 32 bytes if the
  // `data` of tensors must be aligned. `name` replaces the path in errors.
  static GgufFile Parse(std::span<const uint8_t> bytes, const std::string& name);

  const std::string& path() const;
  std::span<const uint8_t> bytes() const;  // the whole file
  int64_t version() const;
  // In file order. Tensors of types that TensorType does not list have data == nullptr and bytes ==
  // 0.
  const std::vector<Tensor>& tensors() const;
  // nullptr if there is no tensor of that name.
  const Tensor* Find(std::string_view name) const;
  // Throws BadModel if there is no tensor of that name, or TensorType does not list its type, or
  // its shape differs.
  const Tensor& Get(std::string_view name, std::span<const int64_t> shape) const;

  // Metadata. All of these except Has throw BadModel, naming the key, if it is missing or has
  // another type.
  bool Has(std::string_view key) const;
  // A value of any integer type; it must not be negative.
  int64_t Integer(std::string_view key) const;
  double Float(std::string_view key) const;  // float32 or float64
  bool Bool(std::string_view key) const;
  bool BoolOr(std::string_view key, bool otherwise) const;  // `otherwise` if it is missing
  std::string_view String(std::string_view key) const;
  std::vector<int64_t> Integers(std::string_view key) const;  // an array of any integer type
  std::vector<int64_t> IntegerOrIntegers(std::string_view key) const;  // either, as a list
  std::vector<float> Floats(std::string_view key) const;               // an array of float32
  std::vector<std::string_view> Strings(std::string_view key) const;
  int64_t ArraySize(std::string_view key) const;
  std::vector<std::string_view> Keys() const;

  // Throws BadModel: the path, a colon, and `text`.
  [[noreturn]] void Fail(const std::string& text) const;

 private:
  struct Contents;
  explicit GgufFile(std::shared_ptr<const Contents> contents) : contents_(std::move(contents)) {}

  std::shared_ptr<const Contents> contents_;
};

}  // namespace riffle::engine

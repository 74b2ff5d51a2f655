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

#include "engine/printable.h"

namespace riffle::engine {

// A model file that cannot be used. The text names the file and its fault.
class BadModel : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The numbers are ggml's. A file may contain tensors of types that are not listed; its other
// tensors can be used.
enum class TensorType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,   // 32 values: f16 scale, 16 bytes of nibbles
  kQ4_1 = 3,   // 32 values: f16 scale, f16 minimum, 16 bytes of nibbles
  kQ5_0 = 6,   // 32 values: f16 scale, 4 bytes of high bits, 16 bytes of low nibbles
  kQ5_1 = 7,   // 32 values: f16 scale, f16 minimum, 4 bytes of high bits, 16 of low nibbles
  kQ8_0 = 8,   // 32 values: f16 scale, 32 int8
  kQ2_K = 10,  // 256 values: 16 bytes of 4-bit scales and minima, 64 of pairs of bits, f16, f16
  kQ3_K = 11,  // 256 values: 32 bytes of high bits, 64 of low pairs, 12 of 6-bit scales, f16 scale
  kQ4_K = 12,  // 256 values: f16 scale, f16 minimum, 12 bytes of 6-bit scales, 128 of nibbles
  kQ5_K = 13,  // 256 values: as Q4_K, with 32 bytes of high bits before the nibbles
  kQ6_K = 14,  // 256 values: 128 bytes of low nibbles, 64 of high bits, 16 int8 scales, f16 scale
  kIQ4_NL = 20,  // 32 values: f16 scale, 16 bytes of nibbles, indices of 16 integers
  kBF16 = 30,
};

// The contents of a block of a type; {0, 0} for a type that is not listed above.
struct BlockSize {
  int64_t values;
  int64_t bytes;
};
BlockSize BlockSizeOf(TensorType type);
// "Q4_K"; for a type that is not listed above, ggml's name for it, or "number 99".
std::string NameOf(TensorType type);

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
  // In file order. Tensors of types that are not listed above have data == nullptr and bytes == 0.
  const std::vector<Tensor>& tensors() const;
  // nullptr if there is no tensor of that name.
  const Tensor* Find(std::string_view name) const;
  // Throws BadModel if there is no tensor of that name, or its type is not listed above, or its
  // shape differs.
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

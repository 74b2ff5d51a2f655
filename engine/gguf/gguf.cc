#include "engine/gguf/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>

#include "engine/gguf/file_mapping.h"
#include "engine/gguf/gguf_reader.h"
#include "riffle/error.h"

namespace riffle::engine {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr uint32_t kMaxDimensions = 4;  // ggml's

bool HasZero(const std::vector<int64_t>& shape) {
  return std::find(shape.begin(), shape.end(), 0) != shape.end();
}

std::string ShapeText(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace

struct GgufFile::Contents {
  std::string path;
  std::shared_ptr<const void> mapping;
  std::span<const uint8_t> bytes;
  int64_t version = 0;
  std::map<std::string_view, Value> metadata;  // keys and values are in the mapping
  std::vector<Tensor> tensors;
  std::map<std::string_view, size_t> tensor_of_name;

  [[noreturn]] void Fail(const std::string& text) const {
    throw BadModel(fmt::format("{}: {}", path, text));
  }
  void Read(std::span<const uint8_t> whole);
  void ReadMetadata(Reader& reader, uint64_t count);
  void ReadTensors(Reader& reader, uint64_t count, std::vector<uint64_t>* offsets);
  void PlaceTensors(std::span<const uint8_t> data, uint64_t alignment,
                    const std::vector<uint64_t>& offsets);
  void CheckTensorsDisjoint() const;
  uint64_t Alignment() const;
  const Value& Get(std::string_view key, bool is_array) const;
  void Expect(std::string_view key, const Value& value, ValueType type) const;
  int64_t IntegerAt(std::string_view key, const Value& value, uint64_t index) const;
};

void GgufFile::Contents::Read(std::span<const uint8_t> whole) {
  bytes = whole;
  Reader reader(bytes, path);
  if (bytes.size() < 4 || Load<uint32_t>(bytes.data()) != kMagic) {
    Fail("is not a GGUF file: it does not start with \"GGUF\"");
  }
  reader.Take<uint32_t>("the magic number");
  const auto number = reader.Take<uint32_t>("the version");
  if (number == 0x02000000 || number == 0x03000000) {
    Fail(
        "is a big-endian GGUF file; only little-endian ones can be read (gguf-convert-endian, from "
        "the Python package gguf, converts it)");
  }
  if (number != 2 && number != 3) {
    Fail(fmt::format("is GGUF version {}; versions 2 and 3 can be read", number));
  }
  version = number;
  const auto tensor_count = reader.Take<uint64_t>("the number of tensors");
  const auto metadata_count = reader.Take<uint64_t>("the number of metadata keys");
  ReadMetadata(reader, metadata_count);
  std::vector<uint64_t> offsets;
  ReadTensors(reader, tensor_count, &offsets);

  const uint64_t alignment = Alignment();
  if (tensors.empty()) return;
  const uint64_t padding = -reader.position() % alignment;
  reader.Skip(padding, "the padding before the tensors' data");
  PlaceTensors(bytes.subspan(reader.position()), alignment, offsets);
  CheckTensorsDisjoint();
}

void GgufFile::Contents::ReadMetadata(Reader& reader, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const std::string what = fmt::format("metadata key {} of {}", i + 1, count);
    const std::string_view key = reader.TakeString(what);
    if (key.empty()) Fail(what + " is empty");
    const Value value = reader.TakeValue(fmt::format("metadata \"{}\"", Printable(key)));
    if (!metadata.emplace(key, value).second) {
      Fail(fmt::format("metadata \"{}\" is there twice", Printable(key)));
    }
  }
}

void GgufFile::Contents::ReadTensors(Reader& reader, uint64_t count,
                                     std::vector<uint64_t>* offsets) {
  for (uint64_t i = 0; i < count; ++i) {
    const std::string what = fmt::format("the name of tensor {} of {}", i + 1, count);
    const std::string_view name = reader.TakeString(what);
    const std::string tensor_text = fmt::format("tensor \"{}\"", Printable(name));
    const auto dimensions = reader.Take<uint32_t>(tensor_text);
    if (dimensions > kMaxDimensions) {
      Fail(fmt::format("{} has {} dimensions; up to {} are possible", tensor_text, dimensions,
                       kMaxDimensions));
    }
    Tensor tensor{name, TensorType::kF32, {}, nullptr, 0};
    for (uint32_t d = 0; d < dimensions; ++d) {
      const auto length = reader.Take<int64_t>(tensor_text);
      if (length < 0) Fail(fmt::format("{} has a dimension of {}", tensor_text, length));
      tensor.shape.push_back(length);
    }
    tensor.type = static_cast<TensorType>(reader.Take<uint32_t>(tensor_text));
    offsets->push_back(reader.Take<uint64_t>(tensor_text));
    if (!tensor_of_name.emplace(name, tensors.size()).second) Fail(tensor_text + " is there twice");
    tensors.push_back(std::move(tensor));
  }
}

uint64_t GgufFile::Contents::Alignment() const {
  const std::string_view key = "general.alignment";
  if (!metadata.contains(key)) return kDefaultAlignment;
  const auto alignment = static_cast<uint64_t>(IntegerAt(key, Get(key, false), 0));
  if (!std::has_single_bit(alignment) || alignment < 8 || alignment > kMaxAlignment) {
    Fail(fmt::format("metadata \"{}\" is {}; powers of two from 8 to {} are possible", key,
                     alignment, kMaxAlignment));
  }
  return alignment;
}

void GgufFile::Contents::PlaceTensors(std::span<const uint8_t> data, uint64_t alignment,
                                      const std::vector<uint64_t>& offsets) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    Tensor& tensor = tensors[i];
    const BlockSize block = BlockSizeOf(tensor.type);
    if (block.values == 0) continue;  // Get() throws for this tensor
    const auto fail = [&](const std::string& text) {
      Fail(fmt::format("tensor \"{}\" of type {} and shape {} {}", Printable(tensor.name),
                       NameOf(tensor.type), ShapeText(tensor.shape), text));
    };
    if (tensor.row_values() % block.values != 0) {
      fail(fmt::format("has rows that are no multiple of {}", block.values));
    }
    int64_t size = tensor.row_values() / block.values;
    bool overflow = __builtin_mul_overflow(size, block.bytes, &size);
    int64_t elements = 1;
    for (size_t d = 0; d < tensor.shape.size(); ++d) {
      overflow |= __builtin_mul_overflow(elements, tensor.shape[d], &elements);
      overflow |= d > 0 && __builtin_mul_overflow(size, tensor.shape[d], &size);
    }
    overflow &= !HasZero(tensor.shape);  // an empty tensor is no overflow, even 2^62 x 8 x 0
    const uint64_t offset = offsets[i];
    if (offset % alignment != 0) {
      fail(fmt::format("starts at offset {}, which is no multiple of the alignment {}", offset,
                       alignment));
    }
    if (overflow || offset > data.size() || static_cast<uint64_t>(size) > data.size() - offset) {
      fail(
          fmt::format("starts at offset {} and needs {} bytes, but the data has {}: the file is "
                      "truncated or corrupt",
                      offset, overflow ? "more than 2^63" : std::to_string(size), data.size()));
    }
    tensor.data = data.data() + offset;
    tensor.bytes = size;
  }
}

// Refuses tensors that share bytes: a small file could otherwise name the same data thousands of
// times, and take as much memory for copies of it.
void GgufFile::Contents::CheckTensorsDisjoint() const {
  std::vector<const Tensor*> placed;
  for (const Tensor& tensor : tensors) {
    if (tensor.bytes > 0) placed.push_back(&tensor);
  }
  std::sort(placed.begin(), placed.end(),
            [](const Tensor* a, const Tensor* b) { return a->data < b->data; });
  for (size_t i = 1; i < placed.size(); ++i) {
    const Tensor& before = *placed[i - 1];
    if (placed[i]->data < before.data + before.bytes) {
      Fail(fmt::format("tensor \"{}\" overlaps tensor \"{}\"", Printable(placed[i]->name),
                       Printable(before.name)));
    }
  }
}

const Value& GgufFile::Contents::Get(std::string_view key, bool is_array) const {
  const auto found = metadata.find(key);
  if (found == metadata.end()) Fail(fmt::format("has no metadata \"{}\"", Printable(key)));
  if (found->second.is_array != is_array) {
    Fail(fmt::format("metadata \"{}\" is {}an array", Printable(key), is_array ? "not " : ""));
  }
  return found->second;
}

void GgufFile::Contents::Expect(std::string_view key, const Value& value, ValueType type) const {
  if (value.type == type) return;
  Fail(fmt::format("metadata \"{}\" holds {}, not {}", Printable(key),
                   kValueNames[static_cast<uint32_t>(value.type)],
                   kValueNames[static_cast<uint32_t>(type)]));
}

int64_t GgufFile::Contents::IntegerAt(std::string_view key, const Value& value,
                                      uint64_t index) const {
  const uint8_t* at = value.bytes.data() + index * BytesOf(value.type);
  switch (value.type) {
    case ValueType::kU8:
      return *at;
    case ValueType::kI8:
      return Load<int8_t>(at);
    case ValueType::kU16:
      return Load<uint16_t>(at);
    case ValueType::kI16:
      return Load<int16_t>(at);
    case ValueType::kU32:
      return Load<uint32_t>(at);
    case ValueType::kI32:
      return Load<int32_t>(at);
    case ValueType::kI64:
      return Load<int64_t>(at);
    case ValueType::kU64:
      if (Load<uint64_t>(at) <= INT64_MAX) return Load<int64_t>(at);
      Fail(fmt::format("metadata \"{}\" is {}, too large", Printable(key), Load<uint64_t>(at)));
    default:
      Fail(fmt::format("metadata \"{}\" holds {}, not an integer", Printable(key),
                       kValueNames[static_cast<uint32_t>(value.type)]));
  }
}

int64_t Tensor::elements() const {
  if (HasZero(shape)) return 0;
  int64_t product = 1;
  for (const int64_t length : shape) product *= length;
  return product;
}

int64_t Tensor::row_values() const { return shape.empty() ? 1 : shape[0]; }

int64_t Tensor::row_bytes() const {
  const BlockSize block = BlockSizeOf(type);
  return block.values == 0 ? 0 : row_values() / block.values * block.bytes;
}

GgufFile GgufFile::Open(const std::string& path) {
  auto contents = std::make_shared<Contents>();
  contents->path = path;
  FileMapping mapping = MapFile(path);
  contents->mapping = std::move(mapping.owner);
  contents->Read(mapping.bytes);
  return GgufFile(std::move(contents));
}

GgufFile GgufFile::Parse(std::span<const uint8_t> bytes, const std::string& name) {
  auto contents = std::make_shared<Contents>();
  contents->path = name;
  contents->Read(bytes);
  return GgufFile(std::move(contents));
}

const std::string& GgufFile::path() const { return contents_->path; }
std::span<const uint8_t> GgufFile::bytes() const { return contents_->bytes; }
int64_t GgufFile::version() const { return contents_->version; }
const std::vector<Tensor>& GgufFile::tensors() const { return contents_->tensors; }
void GgufFile::Fail(const std::string& text) const { contents_->Fail(text); }

const Tensor* GgufFile::Find(std::string_view name) const {
  const auto found = contents_->tensor_of_name.find(name);
  return found == contents_->tensor_of_name.end() ? nullptr : &contents_->tensors[found->second];
}

const Tensor& GgufFile::Get(std::string_view name, std::span<const int64_t> shape) const {
  const Tensor* tensor = Find(name);
  if (tensor == nullptr) Fail(fmt::format("has no tensor \"{}\"", Printable(name)));
  if (BlockSizeOf(tensor->type).values == 0) {
    Fail(fmt::format("tensor \"{}\" is of type {}, which is not supported; known are {}",
                     Printable(name), NameOf(tensor->type), TensorTypeNames()));
  }
  if (!std::equal(shape.begin(), shape.end(), tensor->shape.begin(), tensor->shape.end())) {
    Fail(fmt::format("tensor \"{}\" is of shape {}, not {}", Printable(name),
                     ShapeText(tensor->shape), ShapeText(shape)));
  }
  return *tensor;
}

bool GgufFile::Has(std::string_view key) const { return contents_->metadata.contains(key); }

std::vector<std::string_view> GgufFile::Keys() const {
  std::vector<std::string_view> keys;
  for (const auto& [key, value] : contents_->metadata) keys.push_back(key);
  return keys;
}

int64_t GgufFile::Integer(std::string_view key) const {
  const int64_t value = contents_->IntegerAt(key, contents_->Get(key, false), 0);
  if (value < 0) Fail(fmt::format("metadata \"{}\" is {}, negative", Printable(key), value));
  return value;
}

double GgufFile::Float(std::string_view key) const {
  const Value& value = contents_->Get(key, false);
  if (value.type == ValueType::kF64) return Load<double>(value.bytes.data());
  contents_->Expect(key, value, ValueType::kF32);
  return Load<float>(value.bytes.data());
}

bool GgufFile::Bool(std::string_view key) const {
  const Value& value = contents_->Get(key, false);
  contents_->Expect(key, value, ValueType::kBool);
  return value.bytes[0] != 0;
}

bool GgufFile::BoolOr(std::string_view key, bool otherwise) const {
  return Has(key) ? Bool(key) : otherwise;
}

std::string_view GgufFile::String(std::string_view key) const {
  const Value& value = contents_->Get(key, false);
  contents_->Expect(key, value, ValueType::kString);
  return StringAt(value.bytes.data());
}

std::vector<int64_t> GgufFile::Integers(std::string_view key) const {
  const Value& value = contents_->Get(key, true);
  std::vector<int64_t> integers(value.count);
  for (uint64_t i = 0; i < value.count; ++i) integers[i] = contents_->IntegerAt(key, value, i);
  return integers;
}

std::vector<int64_t> GgufFile::IntegerOrIntegers(std::string_view key) const {
  const auto found = contents_->metadata.find(key);
  const bool is_array = found != contents_->metadata.end() && found->second.is_array;
  return is_array ? Integers(key) : std::vector<int64_t>{Integer(key)};
}

int64_t GgufFile::ArraySize(std::string_view key) const {
  return static_cast<int64_t>(contents_->Get(key, true).count);
}

std::vector<float> GgufFile::Floats(std::string_view key) const {
  const Value& value = contents_->Get(key, true);
  contents_->Expect(key, value, ValueType::kF32);
  std::vector<float> floats(value.count);
  if (!floats.empty())
    std::memcpy(floats.data(), value.bytes.data(), floats.size() * sizeof(float));
  return floats;
}

std::vector<std::string_view> GgufFile::Strings(std::string_view key) const {
  const Value& value = contents_->Get(key, true);
  contents_->Expect(key, value, ValueType::kString);
  std::vector<std::string_view> strings(value.count);
  const uint8_t* at = value.bytes.data();
  for (std::string_view& string : strings) {
    string = StringAt(at);
    at += sizeof(uint64_t) + string.size();
  }
  return strings;
}

}  // namespace riffle::engine

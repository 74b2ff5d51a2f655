#include "engine/gguf/tensor_type.h"

#include <fmt/format.h>

namespace riffle::engine {
namespace {

struct TypeInfo {
  TensorType type;
  const char* name;
  BlockSize block;
};
constexpr TypeInfo kTypes[] = {
    {TensorType::kF32, "F32", {1, 4}},       {TensorType::kF16, "F16", {1, 2}},
    {TensorType::kBF16, "BF16", {1, 2}},     {TensorType::kQ4_0, "Q4_0", {32, 18}},
    {TensorType::kQ4_1, "Q4_1", {32, 20}},   {TensorType::kQ5_0, "Q5_0", {32, 22}},
    {TensorType::kQ5_1, "Q5_1", {32, 24}},   {TensorType::kQ8_0, "Q8_0", {32, 34}},
    {TensorType::kQ2_K, "Q2_K", {256, 84}},  {TensorType::kQ3_K, "Q3_K", {256, 110}},
    {TensorType::kQ4_K, "Q4_K", {256, 144}}, {TensorType::kQ5_K, "Q5_K", {256, 176}},
    {TensorType::kQ6_K, "Q6_K", {256, 210}}, {TensorType::kIQ4_NL, "IQ4_NL", {32, 18}}};

// Types of ggml that the engine cannot use, with names for errors.
struct OtherType {
  uint32_t number;
  const char* name;
};
constexpr OtherType kOtherTypes[] = {
    {9, "Q8_1"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"},
    {21, "IQ3_S"}, {22, "IQ2_S"}, {23, "IQ4_XS"},  {24, "I8"},     {25, "I16"},     {26, "I32"},
    {27, "I64"},   {28, "F64"},   {29, "IQ1_M"},   {34, "TQ1_0"},  {35, "TQ2_0"},   {39, "MXFP4"}};

const TypeInfo* Find(TensorType type) {
  for (const TypeInfo& info : kTypes) {
    if (info.type == type) return &info;
  }
  return nullptr;
}

}  // namespace

BlockSize BlockSizeOf(TensorType type) {
  const TypeInfo* const info = Find(type);
  return info == nullptr ? BlockSize{0, 0} : info->block;
}

std::string NameOf(TensorType type) {
  if (const TypeInfo* const info = Find(type)) return info->name;
  for (const OtherType& other : kOtherTypes) {
    if (other.number == static_cast<uint32_t>(type)) return other.name;
  }
  return fmt::format("number {}", static_cast<uint32_t>(type));
}

std::string TensorTypeNames() {
  std::string names;
  for (const TypeInfo& info : kTypes) {
    names += (names.empty() ? "" : ", ") + std::string(info.name);
  }
  return names;
}

}  // namespace riffle::engine

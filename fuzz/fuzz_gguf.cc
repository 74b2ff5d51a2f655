// Reads any bytes as a GGUF file. It must be refused with a BadModel, or can be read to its last
// byte. If it has a tokenizer, any text can be encoded and decoded with it.
#include "engine/gguf/gguf.h"

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"

namespace {

using riffle::engine::BadModel;
using riffle::engine::GgufFile;
using riffle::engine::Tensor;
using riffle::engine::Tokenizer;

void Expect(bool ok) {
  if (!ok) std::abort();
}

template <typename Read>
uint64_t Try(Read read) {
  try {
    return static_cast<uint64_t>(read());
  } catch (const BadModel&) {
    return 0;
  }
}

uint64_t ReadAll(const GgufFile& file) {
  uint64_t sum = 0;
  for (const auto key : file.Keys()) {
    sum += Try([&] { return file.Integer(key); });
    sum += Try([&] { return file.Float(key) > 0; });
    sum += Try([&] { return file.Bool(key); });
    sum += Try([&] { return file.String(key).size(); });
    sum += Try([&] { return file.Integers(key).size(); });
    sum += Try([&] { return file.Floats(key).size(); });
    sum += Try([&] {
      uint64_t bytes = 0;
      for (const auto text : file.Strings(key)) bytes += text.empty() ? 0 : uint8_t(text.back());
      return bytes;
    });
  }
  for (const Tensor& tensor : file.tensors()) {
    for (int64_t i = 0; i < tensor.bytes; ++i) sum += tensor.data[i];
    sum += Try([&] { return file.Get(tensor.name, tensor.shape).elements(); });
  }
  return sum;
}

void UseTokenizer(const Tokenizer& tokenizer, std::string_view text) {
  try {
    const std::vector<int32_t> tokens = tokenizer.Encode(text);
    for (const int32_t token : tokens) Expect(token >= 0 && token < tokenizer.vocab());
    const std::string decoded = tokenizer.Decode(tokens);
    Expect(riffle::engine::FindInvalidUtf8(decoded) == std::string::npos);
  } catch (const riffle::engine::BadText&) {
    Expect(riffle::engine::FindInvalidUtf8(text) != std::string::npos);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A copy in an allocation of its own, so that ASan reports a read past its end.
  const std::vector<uint8_t> bytes(data, data + size);
  try {
    const GgufFile file = GgufFile::Parse(bytes, "fuzz.gguf");
    const volatile uint64_t sum = ReadAll(file);
    (void)sum;
    const Tokenizer tokenizer(file);
    UseTokenizer(tokenizer, "a b <b>\n  \xc3\xa9 \xf0\x9f\xa6\x8a");
    UseTokenizer(tokenizer, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  } catch (const BadModel&) {
  }
  return 0;
}

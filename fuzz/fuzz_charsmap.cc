// Normalization tables as a file may have them: transitions between states, some of which are
// damaged. Either the table is refused with a BadModel, or any text is normalized as by a slow
// reference, to UTF-8 whose size is bounded by that of the text.
#include "engine/tokenizer/charsmap.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/tokenizer/utf8.h"
#include "fuzz/bytes.h"
#include "testing/gguf_writer.h"

namespace riffle::fuzz {
namespace {

using engine::Charsmap;
using engine::GgufFile;
using Writer = riffle::testing::GgufWriter;

constexpr uint32_t kStates = 12;
constexpr std::string_view kSpace = "\u2581";

void Expect(bool ok, const char* what) {
  if (!ok) {
    std::fprintf(stderr, "%s\n", what);
    std::abort();
  }
}

struct Table {
  std::vector<uint32_t> units;
  std::string texts;
};

// State k has the units from 256 k on.
Table TakeTable(Bytes& bytes) {
  constexpr uint8_t kBytes[] = {'a', 'b', ' ', 0xc3, 0xa9, 0xe2, 0x96, 0x81};
  Table table;
  table.units.resize(256 * kStates, 0x80000000);  // entered by no byte
  for (int64_t i = bytes.Between(0, 12); i > 0; --i) {
    const std::string texts[] = {"", " ", "x", "\u00e9", "  y ", std::string(kSpace)};
    table.texts += texts[bytes.Take<uint8_t>() % 6] + std::string(1, '\0');
  }
  table.units[0] = 256u << 10;
  for (int64_t i = bytes.Between(0, 40); i > 0; --i) {
    const uint32_t from = 1 + bytes.Take<uint8_t>() % (kStates - 1);
    const uint32_t to = 1 + bytes.Take<uint8_t>() % (kStates - 1);
    const uint8_t byte = kBytes[bytes.Take<uint8_t>() % std::size(kBytes)];
    const uint8_t text = bytes.Take<uint8_t>();
    const uint32_t unit = 256 * from + byte;
    table.units[unit] = byte | (unit ^ 256 * to) << 10;
    if (text % 4 != 0) {
      table.units[unit] |= 0x100;
      table.units[256 * to] = 0x80000000u | text / 4;
    }
  }
  for (int64_t i = bytes.Between(0, 3); i > 0; --i) {  // damage
    table.units[bytes.Take<uint16_t>() % table.units.size()] = bytes.Take<uint32_t>();
  }
  if (bytes.OneIn(16)) table.units.resize(static_cast<size_t>(bytes.Between(1, 300)));
  if (bytes.OneIn(16) && !table.texts.empty()) table.texts.pop_back();
  if (bytes.OneIn(16)) table.texts += static_cast<char>(bytes.Take<uint8_t>());
  return table;
}

std::string TakeText(Bytes& bytes) {
  const std::string letters[] = {"a", "b", " ", "\u00e9", std::string(kSpace), "c", "\u00c3", "ab"};
  std::string text;
  for (int64_t i = bytes.Between(0, 60); i > 0; --i) {
    text += letters[bytes.Take<uint8_t>() % std::size(letters)];
  }
  return text;
}

std::vector<uint8_t> FileOf(const Table& table) {
  std::string map = Writer::Raw(static_cast<uint32_t>(4 * table.units.size()));
  for (const uint32_t unit : table.units) map += Writer::Raw(unit);
  map += table.texts;
  Writer writer;
  writer.AddArray("tokenizer.ggml.precompiled_charsmap", Writer::kU8,
                  std::vector<uint8_t>(map.begin(), map.end()));
  return writer.Finish();
}

// Removes the longest sequence of the table from the front of `text`; returns its replacement.
std::string TakePiece(const Table& table, std::string& text) {
  const auto offset = [](uint32_t unit) { return unit & 0x200 ? (unit >> 10) << 8 : unit >> 10; };
  size_t length = 0;
  std::string written;
  uint32_t state = offset(table.units.at(0));
  for (size_t i = 0; i < text.size(); ++i) {
    const uint32_t unit = state ^ static_cast<uint8_t>(text[i]);
    if (unit >= table.units.size()) break;
    if ((table.units[unit] & 0x800000ffu) != static_cast<uint8_t>(text[i])) break;
    state = unit ^ offset(table.units[unit]);
    if (table.units[unit] & 0x100) {
      length = i + 1;
      written = &table.texts.at(table.units.at(state) & 0x7fffffffu);
    }
  }
  if (length == 0) {
    const auto first = engine::FirstCharacter(text);
    const bool valid = first.kind == engine::Utf8Character::kValid;
    length = valid ? first.length : 1;
    written = valid ? text.substr(0, length) : "\ufffd";
  }
  text.erase(0, length);
  return written;
}

std::string Reference(const Table& table, std::string text, bool prefix, bool removes) {
  std::string result;
  bool begun = false;
  bool after_space = removes;
  while (!text.empty()) {
    std::string written = TakePiece(table, text);
    if (removes && !begun && written == " ") continue;
    if (!begun && prefix) result += kSpace;
    begun = true;
    while (after_space && !written.empty() && written[0] == ' ') written.erase(0, 1);
    for (const char c : written) result += c == ' ' ? std::string(kSpace) : std::string(1, c);
    if (!written.empty()) after_space = removes && written.back() == ' ';
  }
  while (removes && result.ends_with(kSpace)) result.erase(result.size() - kSpace.size());
  return result;
}

}  // namespace
}  // namespace riffle::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace riffle::fuzz;
  Bytes bytes(data, size);
  const Table table = TakeTable(bytes);
  const std::vector<uint8_t> file = FileOf(table);
  try {
    const auto map = Charsmap::Of(GgufFile::Parse(file, "fuzz.gguf"));
    Expect(map.has_value(), "the table is gone");
    for (int i = 0; i < 4; ++i) {
      const std::string text = TakeText(bytes);
      const bool prefix = i % 2 == 1, removes = i >= 2;
      const std::string normalized = map->Normalize(text, prefix, removes);
      Expect(normalized == Reference(table, text, prefix, removes), "not as the reference has it");
      Expect(riffle::engine::FindInvalidUtf8(normalized) == std::string::npos, "not UTF-8");
      Expect(normalized.size() <= 3 + 3 * 256 * text.size(), "too long");
    }
  } catch (const riffle::engine::BadModel&) {
  }
  return 0;
}

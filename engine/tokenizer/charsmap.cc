#include "engine/tokenizer/charsmap.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/tokenizer/sentence_piece.h"
#include "engine/tokenizer/utf8.h"

namespace riffle::engine {
namespace {

constexpr const char* kKey = "tokenizer.ggml.precompiled_charsmap";
constexpr std::string_view kReplacement = "\uFFFD";
// Unicode's compatibility forms have sequences of 12 bytes and texts of 33 at most.
constexpr int kMaxSequence = 64;
constexpr size_t kMaxText = 256;

// The fields of a unit.
constexpr uint32_t LabelOf(uint32_t unit) { return unit & 0x800000ff; }  // > 255: unit has TextOf
constexpr uint32_t OffsetOf(uint32_t unit) { return (unit >> 10) << ((unit & 0x200) >> 6); }
constexpr bool EndsSequence(uint32_t unit) { return (unit & 0x100) != 0; }
constexpr uint32_t TextOf(uint32_t unit) { return unit & 0x7fffffff; }

uint32_t ReadWord(std::string_view bytes, size_t at) {
  uint32_t word = 0;
  for (size_t i = 0; i < 4; ++i) {
    word |= uint32_t{static_cast<uint8_t>(bytes[at + i])} << (8 * i);
  }
  return word;
}

std::string BytesOf(const GgufFile& file) {
  std::string bytes;
  for (const int64_t value : file.Integers(kKey)) {
    if (value < -128 || value > 255) {
      file.Fail(fmt::format("{} has {}, which is no byte", kKey, value));
    }
    bytes += static_cast<char>(value);
  }
  return bytes;
}

}  // namespace

// Goes through all states that a text can lead to, once each.
class Charsmap::TrieValidator {
 public:
  TrieValidator(const GgufFile& file, const Charsmap& map)
      : file_(file), units_(map.units_), texts_(map.texts_) {}

  void Check() {
    if (texts_.empty() || texts_.back() != '\0' || FindInvalidUtf8(texts_) != std::string::npos) {
      Fail("its texts are not UTF-8 that ends with a zero byte");
    }
    SortByState();
    heights_.assign(first_.size() - 1, kUnknown);
    PushState(OffsetOf(units_[0]));
    while (!path_.empty()) {
      Step& step = path_.back();
      if (step.next < first_[step.state + 1]) {
        VisitUnit(by_state_[step.next++]);
        continue;
      }
      const int height = step.height;
      if (height > kMaxSequence) {
        Fail(fmt::format("it has a sequence of more than {} bytes", kMaxSequence));
      }
      heights_[step.state] = height;
      path_.pop_back();
      if (!path_.empty()) path_.back().height = std::max(path_.back().height, height + 1);
    }
  }

 private:
  // A state on the current path from the root, and how much below it has been visited.
  struct Step {
    size_t state;
    size_t next;  // in by_state_
    int height;   // the longest path below it, so far
  };
  static constexpr int kUnknown = -1;
  static constexpr int kOnPath = -2;

  [[noreturn]] void Fail(const std::string& text) const {
    file_.Fail(fmt::format("{} cannot be used: {}", kKey, text));
  }

  // The units that are entered from each state: by_state_[first_[state]] and on.
  void SortByState() {
    first_.assign((units_.size() + 255) / 256 * 256 + 1, 0);
    const auto each = [&](auto use) {
      for (size_t unit = 0; unit < units_.size(); ++unit) {
        const uint32_t label = LabelOf(units_[unit]);
        if (label < 256) use(unit, unit ^ label);
      }
    };
    each([&](size_t, size_t state) { ++first_[state + 1]; });
    for (size_t i = 1; i < first_.size(); ++i) first_[i] += first_[i - 1];
    by_state_.resize(first_.back());
    std::vector<size_t> next = first_;
    each([&](size_t unit, size_t state) { by_state_[next[state]++] = unit; });
  }

  void PushState(size_t state) {
    if (state >= heights_.size()) return;  // nothing is entered from there
    heights_[state] = kOnPath;
    path_.push_back({state, first_[state], 0});
  }

  void VisitUnit(size_t unit) {
    const size_t state = unit ^ OffsetOf(units_[unit]);
    if (EndsSequence(units_[unit])) CheckText(state);
    const int height = state < heights_.size() ? heights_[state] : 0;
    if (height == kOnPath) Fail("its trie has a circle");
    if (height == kUnknown) {
      PushState(state);
    } else {
      path_.back().height = std::max(path_.back().height, height + 1);
    }
  }

  void CheckText(size_t state) const {
    const size_t text = state < units_.size() ? TextOf(units_[state]) : texts_.size();
    if (text >= texts_.size() || (static_cast<uint8_t>(texts_[text]) & 0xc0) == 0x80) {
      Fail("a sequence leads to no text");
    }
    if (texts_.find('\0', text) - text > kMaxText) {
      Fail(fmt::format("it has a text of more than {} bytes", kMaxText));
    }
  }

  const GgufFile& file_;
  const std::vector<uint32_t>& units_;
  const std::string& texts_;
  std::vector<size_t> first_, by_state_;
  std::vector<int> heights_;  // of each state
  std::vector<Step> path_;
};

std::optional<Charsmap> Charsmap::Of(const GgufFile& file) {
  if (!file.Has(kKey) || file.ArraySize(kKey) == 0) return std::nullopt;
  const std::string bytes = BytesOf(file);
  const size_t size = bytes.size() < 4 ? 0 : ReadWord(bytes, 0);
  if (size == 0 || size % 4 != 0 || size > bytes.size() - 4) {
    file.Fail(
        fmt::format("{} has {} bytes, of which {} are to be a trie", kKey, bytes.size(), size));
  }
  std::vector<uint32_t> units;
  units.reserve(size / 4);
  for (size_t at = 4; at < 4 + size; at += 4) units.push_back(ReadWord(bytes, at));
  Charsmap map(std::move(units), bytes.substr(4 + size));
  TrieValidator(file, map).Check();
  return map;
}

Charsmap::Piece Charsmap::First(std::string_view text) const {
  size_t state = OffsetOf(units_[0]);
  size_t length = 0, found = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    const size_t unit = state ^ byte;
    if (unit >= units_.size() || LabelOf(units_[unit]) != byte) break;
    state = unit ^ OffsetOf(units_[unit]);
    if (EndsSequence(units_[unit])) {
      length = i + 1;
      found = TextOf(units_[state]);
    }
  }
  if (length > 0) {
    const std::string_view texts = texts_;
    return {texts.substr(found, texts.find('\0', found) - found), length};
  }
  const Utf8Character character = FirstCharacter(text);
  if (character.kind != Utf8Character::kValid) return {kReplacement, 1};
  return {text.substr(0, character.length), character.length};
}

std::string Charsmap::Normalize(std::string_view text, bool space_prefix,
                                bool removes_spaces) const {
  const auto drop_space = [&] {
    const Piece piece = First(text);
    if (piece.text != " ") return false;
    text.remove_prefix(piece.length);
    return true;
  };
  while (removes_spaces && !text.empty() && drop_space()) {
  }
  if (text.empty()) return "";
  std::string result(space_prefix ? kEscapedSpace : "");
  bool after_space = removes_spaces;
  while (!text.empty()) {
    const Piece piece = First(text);
    std::string_view written = piece.text;
    while (after_space && written.starts_with(' ')) written.remove_prefix(1);
    if (!written.empty()) after_space = removes_spaces && written.ends_with(' ');
    result += WithEscapedSpaces(written);
    text.remove_prefix(piece.length);
  }
  while (removes_spaces && result.ends_with(kEscapedSpace)) {
    result.resize(result.size() - kEscapedSpace.size());
  }
  return result;
}

}  // namespace riffle::engine

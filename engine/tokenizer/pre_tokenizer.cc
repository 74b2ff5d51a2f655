#include "engine/tokenizer/pre_tokenizer.h"

#include <algorithm>

#include "engine/tokenizer/unicode.h"

namespace riffle::engine {
namespace {

using enum CharacterClass;

struct Name {
  std::string_view name;
  PreTokenizer pre_tokenizer;
};
constexpr Name kNames[] = {
    {"gpt-2", PreTokenizer::kGpt2},    {"gpt2", PreTokenizer::kGpt2},
    {"smollm", PreTokenizer::kSmolLm}, {"llama-bpe", PreTokenizer::kLlama3},
    {"llama3", PreTokenizer::kLlama3}, {"llama-v3", PreTokenizer::kLlama3},
    {"qwen2", PreTokenizer::kQwen2},
};

// The characters of a text, and where each starts.
class Characters {
 public:
  explicit Characters(std::string_view text) {
    for (size_t at = 0; at < text.size();) {
      const Character first = DecodeFirst(text.substr(at));
      codes_.push_back(first.code);
      classes_.push_back(ClassOf(first.code));
      starts_.push_back(at);
      at += first.length;
    }
    starts_.push_back(text.size());
  }

  size_t size() const { return codes_.size(); }
  size_t start(size_t i) const { return starts_[i]; }
  char32_t code(size_t i) const { return codes_[i]; }
  CharacterClass kind(size_t i) const { return classes_[i]; }
  bool Is(size_t i, CharacterClass kind) const { return i < size() && classes_[i] == kind; }
  bool IsNewline(size_t i) const { return i < size() && (codes_[i] == '\r' || codes_[i] == '\n'); }
  // The end of the characters of a class from i on, before `end`.
  size_t RunEnd(size_t i, size_t end, CharacterClass kind) const {
    while (i < end && classes_[i] == kind) ++i;
    return i;
  }

 private:
  std::vector<char32_t> codes_;
  std::vector<CharacterClass> classes_;
  std::vector<size_t> starts_;
};

// The lower case that patterns compare when they ignore case: U+017F, the long s, is an s.
char32_t Lower(char32_t code) {
  return code >= 'A' && code <= 'Z' ? code - 'A' + 'a' : code == 0x17f ? U's' : code;
}

// The end of 's, 't, 're, 've, 'm, 'll or 'd at i; i if there is none.
size_t ContractionEnd(const Characters& text, size_t i, size_t end, bool any_case) {
  if (text.code(i) != '\'' || i + 1 >= end) {
    return i;
  }
  const auto at = [&](size_t j) { return any_case ? Lower(text.code(j)) : text.code(j); };
  const char32_t first = at(i + 1);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') {
    return i + 2;
  }
  const char32_t second = i + 2 < end ? at(i + 2) : U'\0';
  const bool two = (first == 'r' && second == 'e') || (first == 'v' && second == 'e') ||
                   (first == 'l' && second == 'l');
  return two ? i + 3 : i;
}

// The end of \s+(?!\S)|\s+ at i, a space: all spaces but the last, which belongs to what follows,
// unless it is the only one or nothing follows.
size_t SpacesEnd(const Characters& text, size_t i, size_t end) {
  const size_t run = text.RunEnd(i, end, kSpace);
  return run == end || run == i + 1 ? run : run - 1;
}

size_t Gpt2End(const Characters& text, size_t i, size_t end) {
  if (const size_t contraction = ContractionEnd(text, i, end, false); contraction > i) {
    return contraction;
  }
  const size_t first = text.code(i) == ' ' && i + 1 < end ? i + 1 : i;
  if (text.kind(first) != kSpace) {
    return text.RunEnd(first, end, text.kind(first));
  }
  return SpacesEnd(text, i, end);
}

// The end of \s*[\r\n]+ at i, a space; i if the spaces have no newline.
size_t NewlinesEnd(const Characters& text, size_t i, size_t end) {
  const size_t run = text.RunEnd(i, end, kSpace);
  for (size_t last = run; last > i; --last) {
    if (text.IsNewline(last - 1)) return last;
  }
  return i;
}

size_t Llama3End(const Characters& text, size_t i, size_t end, size_t max_numbers) {
  if (const size_t contraction = ContractionEnd(text, i, end, true); contraction > i) {
    return contraction;
  }
  const CharacterClass kind = text.kind(i);
  const bool before_letter =
      kind != kLetter && kind != kNumber && !text.IsNewline(i) && text.Is(i + 1, kLetter);
  if (kind == kLetter || before_letter) {
    return text.RunEnd(i + 1, end, kLetter);
  }
  if (kind == kNumber) {
    return std::min(text.RunEnd(i, end, kNumber), i + max_numbers);
  }
  const bool before_other = text.code(i) == ' ' && text.Is(i + 1, kOther);
  if (kind == kOther || before_other) {
    size_t at = text.RunEnd(i + 1, end, kOther);
    while (at < end && text.IsNewline(at)) ++at;
    return at;
  }
  const size_t newlines = NewlinesEnd(text, i, end);
  return newlines > i ? newlines : SpacesEnd(text, i, end);
}

// The end of the pre-token that starts at i.
size_t PreTokenEnd(PreTokenizer pre_tokenizer, const Characters& text, size_t i) {
  const size_t size = text.size();
  switch (pre_tokenizer) {
    case PreTokenizer::kGpt2:
      return Gpt2End(text, i, size);
    case PreTokenizer::kLlama3:
      return Llama3End(text, i, size, 3);
    case PreTokenizer::kQwen2:
      return Llama3End(text, i, size, 1);
    case PreTokenizer::kSmolLm:
      break;
  }
  return i;
}

}  // namespace

std::optional<PreTokenizer> PreTokenizerOf(std::string_view name) {
  for (const Name& known : kNames) {
    if (known.name == name) return known.pre_tokenizer;
  }
  return std::nullopt;
}

std::string PreTokenizerNames() {
  std::string names;
  for (const Name& known : kNames) {
    names += (names.empty() ? "" : ", ") + std::string(known.name);
  }
  return names;
}

std::vector<size_t> SplitText(PreTokenizer pre_tokenizer, std::string_view text) {
  const Characters characters(text);
  std::vector<size_t> lengths;
  const auto add = [&](size_t first, size_t end) {
    lengths.push_back(characters.start(end) - characters.start(first));
    return end;
  };
  if (pre_tokenizer != PreTokenizer::kSmolLm) {
    for (size_t i = 0; i < characters.size();) {
      i = add(i, PreTokenEnd(pre_tokenizer, characters, i));
    }
    return lengths;
  }
  for (size_t i = 0; i < characters.size();) {
    if (characters.kind(i) == kNumber) {
      i = add(i, i + 1);
      continue;
    }
    size_t end = i;  // of what lies before the next number
    while (end < characters.size() && characters.kind(end) != kNumber) ++end;
    while (i < end) {
      i = add(i, Gpt2End(characters, i, end));
    }
  }
  return lengths;
}

}  // namespace riffle::engine

#include "cli/npy_header.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "cli/failure.h"
#include "engine/printable.h"

namespace riffle::cli {
namespace {

using engine::Quote;

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::string_view kSaveAgain = "save it again with numpy.save";
constexpr size_t kMaxAxes = 64;  // the same limit as NumPy's

// A parser for the header, a Python dictionary with three known keys. It does not parse Python in
// general.
class DictParser {
 public:
  DictParser(std::string_view text, const std::string& path) : text_(text), path_(path) {}

  NpyHeader Parse() {
    Expect('{');
    while (!Accept('}')) {
      Entry();
      if (!Accept(',') && Peek() != '}') {
        Fail("a ',' or '}'");
      }
    }
    SkipSpace();
    if (position_ != text_.size()) {
      Fail("nothing more");
    }
    Require(descr_.has_value(), "descr");
    Require(fortran_order_.has_value(), "fortran_order");
    Require(shape_.has_value(), "shape");
    return {*descr_, *fortran_order_, *shape_, 0};
  }

 private:
  void Entry() {
    const std::string key = String();
    Expect(':');
    if (key == "descr") {
      Once(descr_.has_value(), key);
      if (Peek() == '[') {
        FailInput("{}: holds records of several fields; save one field as an array of its own",
                  path_);
      }
      descr_ = String();
    } else if (key == "fortran_order") {
      Once(fortran_order_.has_value(), key);
      fortran_order_ = Bool();
    } else if (key == "shape") {
      Once(shape_.has_value(), key);
      shape_ = Shape();
    } else {
      FailInput("{}: unknown key {} in the npy header; {}", path_, Quote(key), kSaveAgain);
    }
  }

  void SkipSpace() {
    while (position_ < text_.size() &&
           std::string_view(" \t\r\n").find(text_[position_]) != std::string_view::npos) {
      ++position_;
    }
  }

  // The next character that is not a space; 0 at the end.
  char Peek() {
    SkipSpace();
    return position_ < text_.size() ? text_[position_] : '\0';
  }

  bool Accept(char c) {
    if (Peek() != c || position_ == text_.size()) {
      return false;
    }
    ++position_;
    return true;
  }

  void Expect(char c) {
    if (!Accept(c)) {
      Fail(fmt::format("a '{}'", c));
    }
  }

  std::string String() {
    const char quote = Peek();
    if (quote != '\'' && quote != '"') {
      Fail("a quoted name");
    }
    const size_t end = text_.find(quote, position_ + 1);
    if (end == std::string_view::npos) {
      Fail("a closing quote after");
    }
    const std::string_view inside = text_.substr(position_ + 1, end - position_ - 1);
    position_ = end + 1;
    return std::string(inside);
  }

  bool Bool() {
    SkipSpace();
    for (const bool value : {false, true}) {
      const std::string_view word = value ? "True" : "False";
      if (text_.substr(position_).starts_with(word)) {
        position_ += word.size();
        return value;
      }
    }
    Fail("True or False");
  }

  std::vector<int64_t> Shape() {
    std::vector<int64_t> shape;
    Expect('(');
    while (!Accept(')')) {
      shape.push_back(Dimension());
      if (shape.size() > kMaxAxes) {
        FailInput("{}: more than {} axes in the npy header; {}", path_, kMaxAxes, kSaveAgain);
      }
      if (!Accept(',') && (Peek() != ')' || shape.size() == 1)) {
        Fail("a ',' after a dimension");
      }
    }
    return shape;
  }

  int64_t Dimension() {
    if (Peek() == '-') {
      FailInput("{}: a negative dimension in the shape of the npy header; {}", path_, kSaveAgain);
    }
    const size_t begin = position_;
    int64_t value = 0;
    while (position_ < text_.size() && text_[position_] >= '0' && text_[position_] <= '9') {
      if (__builtin_mul_overflow(value, 10, &value) ||
          __builtin_add_overflow(value, text_[position_] - '0', &value)) {
        FailInput("{}: dimension {} of the npy header does not fit 64 bits; {}", path_,
                  Quote(text_.substr(begin)), kSaveAgain);
      }
      ++position_;
    }
    if (position_ == begin) {
      Fail("a dimension");
    }
    if (position_ < text_.size() && text_[position_] == 'L') {  // Python 2 wrote integers as 32L
      ++position_;
    }
    return value;
  }

  void Once(bool seen, const std::string& key) {
    if (seen) {
      FailInput("{}: the npy header has '{}' twice; {}", path_, key, kSaveAgain);
    }
  }

  void Require(bool seen, std::string_view key) {
    if (!seen) {
      FailInput("{}: the npy header has no '{}'; {}", path_, key, kSaveAgain);
    }
  }

  [[noreturn]] void Fail(std::string_view expected) {
    SkipSpace();
    const std::string_view rest = text_.substr(position_);
    FailInput("{}: malformed npy header: expected {} at {}; {}", path_, expected,
              rest.empty() ? "its end" : Quote(rest), kSaveAgain);
  }

  std::string_view text_;
  const std::string& path_;
  size_t position_ = 0;
  std::optional<std::string> descr_;
  std::optional<bool> fortran_order_;
  std::optional<std::vector<int64_t>> shape_;
};

}  // namespace

NpyHeader ParseNpyHeader(std::span<const uint8_t> file, const std::string& path) {
  constexpr size_t kVersionEnd = kMagic.size() + 2;
  if (file.size() < kMagic.size() ||
      !std::equal(kMagic.begin(), kMagic.end(), file.begin(),
                  [](char a, uint8_t b) { return static_cast<uint8_t>(a) == b; })) {
    FailInput("{}: not an npy file (it does not begin with \\x93NUMPY); write it with numpy.save",
              path);
  }
  const int major = file.size() >= kVersionEnd ? file[kMagic.size()] : 1;
  const size_t length_bytes = major == 1 ? 2 : 4;
  if (file.size() < kVersionEnd + length_bytes) {
    FailInput("{}: truncated: {} bytes are too few for an npy header; {}", path, file.size(),
              kSaveAgain);
  }
  const int minor = file[kMagic.size() + 1];
  if (major < 1 || major > 3 || minor != 0) {
    FailInput("{}: npy format {}.{}, but 1.0, 2.0 and 3.0 are known; {}", path, major, minor,
              kSaveAgain);
  }
  size_t length = 0;
  for (size_t i = 0; i < length_bytes; ++i) {  // little endian
    length |= static_cast<size_t>(file[kVersionEnd + i]) << (8 * i);
  }
  const size_t begin = kVersionEnd + length_bytes;
  if (length > file.size() - begin) {
    FailInput(
        "{}: truncated, or not what it says: the npy header claims {} bytes and {} follow; {}",
        path, length, file.size() - begin, kSaveAgain);
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + begin, length);
  NpyHeader header = DictParser(text, path).Parse();
  header.data_offset = begin + length;
  return header;
}

std::string FormatShape(std::span<const int64_t> shape) {
  return shape.size() == 1 ? fmt::format("({},)", shape[0])
                           : fmt::format("({})", fmt::join(shape, ", "));
}

}  // namespace riffle::cli

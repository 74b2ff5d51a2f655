// Texts that end an answer, looked for while the answer arrives.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace riffle::engine {

// The answer ends before the first stop text that is complete; if two become complete with the same
// byte, before the longer one. How the answer is cut into parts makes no difference.
class StopTexts {
 public:
  // No text may be empty.
  explicit StopTexts(std::vector<std::string> texts = {}) : texts_(std::move(texts)) {}

  // Takes the next part of the answer. Returns the text that can be shown now: everything so far
  // but a suffix that may be the beginning of a stop text. Empty after stopped().
  std::string Push(std::string_view part);
  // Returns what is still held back at the end of the answer, where it can be no stop text.
  std::string Finish();
  bool stopped() const { return stopped_; }

 private:
  size_t StopEndingAt(size_t end) const;
  size_t HeldBack() const;

  std::vector<std::string> texts_;
  std::string pending_;
  bool stopped_ = false;
};

}  // namespace riffle::engine

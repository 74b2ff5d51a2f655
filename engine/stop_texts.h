// Texts that end an answer, found in it as it comes.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace riffle::engine {

// The answer ends before the first of them that is complete; of two that are complete with the same
// byte, before the longer one. How the answer is cut into parts makes no difference.
class StopTexts {
 public:
  // No text may be empty.
  explicit StopTexts(std::vector<std::string> texts = {}) : texts_(std::move(texts)) {}

  // Takes the next part of the answer. What of it, and of what was held back before, can be shown:
  // all but an end that may be the beginning of a stop text. Nothing after stopped().
  std::string Push(std::string_view part);
  // What is still held back, at the end of the answer. It is no stop text.
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

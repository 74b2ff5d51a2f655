#include "engine/stop_texts.h"

#include <algorithm>
#include <utility>

namespace riffle::engine {

// The length of the longest stop text that ends at this offset of pending_; 0 if none does.
size_t StopTexts::StopEndingAt(size_t end) const {
  const std::string_view before = std::string_view(pending_).substr(0, end);
  size_t longest = 0;
  for (const std::string& text : texts_) {
    if (text.size() > longest && before.ends_with(text)) {
      longest = text.size();
    }
  }
  return longest;
}

// The length of the longest suffix of pending_ that is a prefix of a stop text.
size_t StopTexts::HeldBack() const {
  size_t longest = 0;
  for (const std::string& text : texts_) {
    for (size_t size = std::min(text.size() - 1, pending_.size()); size > longest; --size) {
      if (pending_.ends_with(std::string_view(text).substr(0, size))) {
        longest = size;
      }
    }
  }
  return longest;
}

std::string StopTexts::Push(std::string_view part) {
  if (stopped_) {
    return "";
  }
  const size_t before = pending_.size();
  pending_ += part;
  for (size_t end = before + 1; end <= pending_.size(); ++end) {
    if (const size_t length = StopEndingAt(end); length > 0) {
      stopped_ = true;
      pending_.resize(end - length);
      return std::exchange(pending_, "");
    }
  }
  const size_t shown = pending_.size() - HeldBack();
  std::string result = pending_.substr(0, shown);
  pending_.erase(0, shown);
  return result;
}

std::string StopTexts::Finish() { return std::exchange(pending_, ""); }

}  // namespace riffle::engine

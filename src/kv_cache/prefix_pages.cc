#include "kv_cache/prefix_pages.h"

namespace riffle::kv_cache {

PrefixPages::PrefixPages(int64_t pages)
    : end_(static_cast<int32_t>(pages)), nodes_(static_cast<size_t>(pages + 1) * sizeof(Node)) {
  nodes()[end_].before = nodes()[end_].behind = end_;
}

void PrefixPages::Add(std::span<const int32_t> pages, std::span<const BlockKey> keys) {
  HWY_DASSERT(pages.size() == keys.size());
  size_t done = 0;
  try {
    for (; done < pages.size(); ++done) {
      HWY_DASSERT(!HasKey(pages[done]) || KeyOf(pages[done]) == keys[done]);
      if (page_of_.emplace(keys[done], pages[done]).second) {
        nodes()[pages[done]].key = keys[done];
        nodes()[pages[done]].has_key = true;
      }
    }
  } catch (...) {
    // Those that this call has added: they were without a key, so their entries are new. Whether
    // one was is told by a mark that only entries of earlier calls bear.
    for (size_t i = 0; i < done; ++i) {
      if (HasKey(pages[i]) && !nodes()[pages[i]].is_settled) {
        Forget(pages[i]);
      }
    }
    throw;
  }
  for (const int32_t page : pages) {
    nodes()[page].is_settled = nodes()[page].has_key;
  }
}

void PrefixPages::Forget(int32_t page) {
  HWY_DASSERT(HasKey(page));
  page_of_.erase(nodes()[page].key);
  nodes()[page].has_key = nodes()[page].is_settled = false;
}

void PrefixPages::GiveUp(int32_t page) {
  HWY_DASSERT(HasKey(page));
  Node* const all = nodes();
  const int32_t last = all[end_].before;
  all[page].before = last;
  all[page].behind = end_;
  all[last].behind = all[end_].before = page;
  ++given_up_;
}

void PrefixPages::TakeBack(int32_t page) {
  HWY_DASSERT(HasKey(page) && given_up_ > 0);
  Node* const all = nodes();
  all[all[page].before].behind = all[page].behind;
  all[all[page].behind].before = all[page].before;
  --given_up_;
}

int32_t PrefixPages::TakeLongestGivenUp() {
  HWY_DASSERT(given_up_ > 0);
  const int32_t page = nodes()[end_].behind;
  TakeBack(page);
  Forget(page);
  return page;
}

}  // namespace riffle::kv_cache

#include "kv_cache/prefix_pages.h"

namespace riffle::kv_cache {

PrefixPages::PrefixPages(int64_t pages)
    : end_(static_cast<int32_t>(pages)), nodes_(static_cast<size_t>(pages + 1) * sizeof(Node)) {
  nodes()[end_].prev = nodes()[end_].next = end_;
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
    // Forget the keys that this call has added, and no others. Only entries of earlier, completed
    // calls are settled.
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

void PrefixPages::AppendReusable(int32_t page) {
  HWY_DASSERT(HasKey(page));
  Node* const all = nodes();
  const int32_t last = all[end_].prev;
  all[page].prev = last;
  all[page].next = end_;
  all[last].next = all[end_].prev = page;
  ++reusable_;
}

void PrefixPages::RemoveReusable(int32_t page) {
  HWY_DASSERT(HasKey(page) && reusable_ > 0);
  Node* const all = nodes();
  all[all[page].prev].next = all[page].next;
  all[all[page].next].prev = all[page].prev;
  --reusable_;
}

int32_t PrefixPages::TakeOldestReusable() {
  HWY_DASSERT(reusable_ > 0);
  const int32_t page = nodes()[end_].next;
  RemoveReusable(page);
  Forget(page);
  return page;
}

}  // namespace riffle::kv_cache

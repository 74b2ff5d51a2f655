// Which pages are free and how many references each of the others has. No checks, no pages'
// storage.
#pragma once

#include <hwy/base.h>

#include <cstdint>
#include <memory>

#include "kv_cache/prefix_pages.h"
#include "kv_cache/storage.h"

namespace riffle::kv_cache {

class PagePool {
 public:
  // Memory is taken as pages are, so a vast pool costs nothing before it is used. Throws
  // Error(kOutOfMemory).
  explicit PagePool(int64_t pages)
      : pages_(pages),
        refs_(static_cast<size_t>(pages) * sizeof(int64_t)),
        released_(static_cast<size_t>(pages) * sizeof(int32_t)) {
    HWY_DASSERT(pages > 0 && pages <= INT32_MAX);
  }

  // Pages without a reference, reusable ones among them.
  int64_t free() const { return released_count_ + pages_ - untouched_ + reusable(); }
  int64_t shared() const { return shared_; }  // pages of two references or more
  int64_t reusable() const { return prefixes_ == nullptr ? 0 : prefixes_->given_up(); }
  int64_t evicted() const { return evicted_; }
  bool IsShared(int32_t page) const { return refs()[page] > 1; }
  bool HasKey(int32_t page) const { return prefixes_ != nullptr && prefixes_->HasKey(page); }

  // A page of one reference: the one released last, else the lowest that was never taken, else the
  // reusable one that was released longest ago, which loses its key.
  int32_t Take() {
    HWY_DASSERT(free() > 0);
    int32_t page;
    if (released_count_ > 0) {
      page = released()[--released_count_];
    } else if (untouched_ < pages_) {
      page = static_cast<int32_t>(untouched_++);
    } else {
      page = prefixes_->TakeLongestGivenUp();
      ++evicted_;
    }
    HWY_DASSERT(refs()[page] == 0);
    refs()[page] = 1;
    return page;
  }

  // One reference more: of a page that is taken, or reusable.
  void Share(int32_t page) {
    if (refs()[page] == 0) {
      prefixes_->TakeBack(page);
    }
    shared_ += ++refs()[page] == 2;
  }

  // One reference less; without any the page is free, and reusable if it has a key.
  void Release(int32_t page) {
    HWY_DASSERT(refs()[page] > 0);
    const int64_t left = --refs()[page];
    shared_ -= left == 1;
    if (left > 0) {
      return;
    }
    if (HasKey(page)) {
      prefixes_->GiveUp(page);
    } else {
      released()[released_count_++] = page;
    }
  }

  // The contents of a page that is taken change.
  void ForgetKey(int32_t page) {
    HWY_DASSERT(refs()[page] > 0);
    if (HasKey(page)) {
      prefixes_->Forget(page);
    }
  }

  // Null: no page has a key.
  const PrefixPages* prefixes() const { return prefixes_.get(); }
  // Made at the first use. Throws Error(kOutOfMemory), std::bad_alloc.
  PrefixPages& MakePrefixes() {
    if (prefixes_ == nullptr) {
      prefixes_ = std::make_unique<PrefixPages>(pages_);
    }
    return *prefixes_;
  }

 private:
  int64_t* refs() const { return reinterpret_cast<int64_t*>(refs_.data()); }
  int32_t* released() const { return reinterpret_cast<int32_t*>(released_.data()); }

  int64_t pages_;
  int64_t untouched_ = 0;  // pages from here on were never taken
  int64_t released_count_ = 0;
  int64_t shared_ = 0;
  int64_t evicted_ = 0;
  Storage refs_;      // int64 [pages]; 0 = free
  Storage released_;  // int32 [released_count_], the next to take is last
  std::unique_ptr<PrefixPages> prefixes_;
};

}  // namespace riffle::kv_cache

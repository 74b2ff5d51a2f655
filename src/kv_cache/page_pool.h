// Which pages are free, and how many references each of the others has. Checks nothing; the
// contents of pages are elsewhere.
#pragma once

#include <hwy/base.h>

#include <cstdint>
#include <memory>

#include "kv_cache/prefix_pages.h"
#include "kv_cache/storage.h"

namespace riffle::kv_cache {

class PagePool {
 public:
  // Takes memory only for pages that have been taken, so a vast pool costs nothing at first. Throws
  // Error(kOutOfMemory).
  explicit PagePool(int64_t pages)
      : pages_(pages),
        refs_(static_cast<size_t>(pages) * sizeof(int64_t)),
        released_(static_cast<size_t>(pages) * sizeof(int32_t)) {
    HWY_DASSERT(pages > 0 && pages <= INT32_MAX);
  }

  // Pages without a reference, including reusable ones.
  int64_t free() const { return released_count_ + pages_ - untouched_ + reusable(); }
  int64_t shared() const { return shared_; }  // pages of two references or more
  int64_t reusable() const { return prefixes_ == nullptr ? 0 : prefixes_->reusable(); }
  int64_t evicted() const { return evicted_; }
  bool IsShared(int32_t page) const { return refs()[page] > 1; }
  bool HasKey(int32_t page) const { return prefixes_ != nullptr && prefixes_->HasKey(page); }

  // Takes a page and gives it one reference: the page released last, else the lowest that was never
  // taken, else the reusable one that was released longest ago, which loses its key.
  int32_t Take() {
    HWY_DASSERT(free() > 0);
    int32_t page;
    if (released_count_ > 0) {
      page = released()[--released_count_];
    } else if (untouched_ < pages_) {
      page = static_cast<int32_t>(untouched_++);
    } else {
      page = prefixes_->TakeOldestReusable();
      ++evicted_;
    }
    HWY_DASSERT(refs()[page] == 0);
    refs()[page] = 1;
    return page;
  }

  // Adds a reference to a page that is in use or reusable.
  void Share(int32_t page) {
    if (refs()[page] == 0) {
      prefixes_->RemoveReusable(page);
    }
    shared_ += ++refs()[page] == 2;
  }

  // Removes a reference. A page without any is free, and also reusable if it has a key.
  void Release(int32_t page) {
    HWY_DASSERT(refs()[page] > 0);
    const int64_t left = --refs()[page];
    shared_ -= left == 1;
    if (left > 0) {
      return;
    }
    if (HasKey(page)) {
      prefixes_->AppendReusable(page);
    } else {
      released()[released_count_++] = page;
    }
  }

  // Call it before the contents of a page in use change: its key no longer names them.
  void ForgetKey(int32_t page) {
    HWY_DASSERT(refs()[page] > 0);
    if (HasKey(page)) {
      prefixes_->Forget(page);
    }
  }

  // The pages that have keys; null if none ever had one.
  const PrefixPages* prefixes() const { return prefixes_.get(); }
  // Creates `prefixes` at the first call. Throws Error(kOutOfMemory), std::bad_alloc.
  PrefixPages& GetOrCreatePrefixes() {
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
  Storage released_;  // int32 [released_count_], a stack
  std::unique_ptr<PrefixPages> prefixes_;
};

}  // namespace riffle::kv_cache

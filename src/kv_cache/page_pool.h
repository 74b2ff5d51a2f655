// Which pages are free and how many references each of the others has. No checks, no pages'
// storage.
#pragma once

#include <hwy/base.h>

#include <cstdint>

#include "kv_cache/storage.h"

namespace riffle::kv_cache {

class PagePool {
 public:
  // Memory is taken as pages are, so a vast pool costs nothing before it is used.
  // 0 < pages < 2^31. Throws Error(kOutOfMemory).
  explicit PagePool(int64_t pages)
      : pages_(pages),
        refs_(static_cast<size_t>(pages) * sizeof(int64_t)),
        released_(static_cast<size_t>(pages) * sizeof(int32_t)) {
    HWY_DASSERT(0 < pages && pages <= INT32_MAX);
  }

  int64_t free() const { return released_count_ + pages_ - untouched_; }
  int64_t shared() const { return shared_; }  // pages of two references or more
  bool IsShared(int32_t page) const { return refs()[page] > 1; }

  // A page of one reference: the one released last, else the lowest that was never taken.
  // There is one: free() > 0.
  int32_t Take() {
    HWY_DASSERT(free() > 0);
    const int32_t page =
        released_count_ > 0 ? released()[--released_count_] : static_cast<int32_t>(untouched_++);
    refs()[page] = 1;
    return page;
  }

  // One reference more to a page that is taken.
  void Share(int32_t page) {
    HWY_DASSERT(refs()[page] > 0);
    shared_ += ++refs()[page] == 2;
  }

  // One reference less to a page that is taken; without any it is free.
  void Release(int32_t page) {
    HWY_DASSERT(refs()[page] > 0);
    const int64_t left = --refs()[page];
    shared_ -= left == 1;
    if (left == 0) {
      released()[released_count_++] = page;
    }
  }

 private:
  int64_t* refs() const { return reinterpret_cast<int64_t*>(refs_.data()); }
  int32_t* released() const { return reinterpret_cast<int32_t*>(released_.data()); }

  int64_t pages_;
  int64_t untouched_ = 0;  // pages from here on were never taken
  int64_t released_count_ = 0;
  int64_t shared_ = 0;
  Storage refs_;      // int64 [pages]; 0 = free
  Storage released_;  // int32 [released_count_], the next to take is last
};

}  // namespace riffle::kv_cache

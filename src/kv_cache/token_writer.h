// One side of a write: the keys, or the values, of tokens, written into a pool.
#pragma once

#include <hwy/base.h>
#include <hwy/cache_control.h>

#include <algorithm>
#include <cstdint>

#include "core/strided.h"
#include "kv_cache/write_kernels.h"
#include "riffle/write_kv.h"

namespace riffle::kv_cache {

class TokenWriter {
 public:
  // Pre: the arguments have been checked.
  TokenWriter(const WriteKernels& kernels, const HeadsView& in, const PagedKvOut& pages);

  // Writes a token of `in` to a slot of a page. May run beside writes to other slots.
  void Write(int64_t token, int64_t page, int64_t offset) const {
    HWY_DASSERT(token >= 0 && token < tokens_);
    HWY_DASSERT(page >= 0 && page < num_pages_ && offset >= 0 && offset < page_size_);
    TokenRows rows{in_ + token * in_token_, out_ + page * out_page_ + offset * out_token_};
    const int64_t scale = page * scale_page_ + offset * scale_token_;
    if (computed_scales_ != nullptr) {
      rows.computed_scales = computed_scales_ + scale;
    } else if (scales_ != nullptr) {
      rows.scales = scales_ + scale;
    }
    write_(args_, rows);
  }

  // Bytes read or bytes written for one token, whichever is more.
  int64_t token_bytes() const { return token_bytes_; }

  // Whether rows are written by streaming stores; if so, call FlushWrites next on the same thread.
  bool streams() const { return args_.streams; }

 private:
  WriteToken write_;
  WriteArgs args_;
  const uint8_t* in_;
  uint8_t* out_;
  const uint8_t* scales_;
  uint8_t* computed_scales_;
  // In bytes; 0 for an axis of one element, whose stride may be too large to multiply.
  int64_t in_token_;
  int64_t out_page_;
  int64_t out_token_;
  int64_t scale_page_;
  int64_t scale_token_;
  int64_t token_bytes_;
  [[maybe_unused]] int64_t tokens_;  // these three are for assertions only
  [[maybe_unused]] int64_t num_pages_;
  [[maybe_unused]] int64_t page_size_;
};

// Completes a thread's streaming stores, so that threads that synchronise with it see them.
inline void FlushWrites(const TokenWriter& keys, const TokenWriter& values) {
  if (keys.streams() || values.streams()) {
    hwy::FlushStream();
  }
}

// Writes of this many bytes and more are shared among threads, in tasks of kTaskBytes.
inline constexpr int64_t kMinParallelBytes = 256 * 1024;
inline constexpr int64_t kTaskBytes = 64 * 1024;

// Copies of this many bytes of keys, or of values, and more use streaming stores. Caches would not
// hold all of them until they are read, and a plain store first reads a line that is then
// overwritten whole, which takes as long as writing it (docs/lab/attention.md).
inline constexpr int64_t kMinStreamBytes = 2 << 20;

}  // namespace riffle::kv_cache

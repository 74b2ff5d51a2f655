// Memory that calls work in, kept from one call to the next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace riffle::core {

// Uninitialised memory, 64-byte aligned, that only grows until it is released.
class Arena {
 public:
  // At least `bytes` bytes. Growing discards the contents and invalidates earlier pointers. Throws
  // Error(kOutOfMemory).
  uint8_t* Get(size_t bytes);

  uint8_t* data() const { return data_.get(); }  // null: it holds no memory
  size_t capacity() const { return capacity_; }
  void Release() {
    data_.reset();
    capacity_ = 0;
  }
  void ReleaseIfLarger(size_t max_bytes) {  // frees the memory if it is larger
    if (capacity_ > max_bytes) [[unlikely]] {
      Release();
    }
  }

 private:
  struct Free {
    void operator()(uint8_t* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  std::unique_ptr<uint8_t, Free> data_;
  size_t capacity_ = 0;
};

// An arena that is larger than this is freed when its call ends, as riffle/runtime.h promises. Rows
// of today's vocabularies need 2 MiB, the candidates of an LM head up to 64 MiB (prefilter_plan.h).
// Allocating scratch for each call doubles its time: a top-p nucleus of 8e6 columns needs 61 MiB
// and takes 23 ms when they are kept, 46 ms when they are not. With 31 MiB, which malloc keeps by
// itself, both take 10 ms.
inline constexpr size_t kMaxKeptScratch = size_t{128} << 20;

// Arenas of the current thread. A call may come from the destructor of a thread_local or static
// object, after this thread's arenas have been freed: it then makes new ones, which are freed when
// that call ends.
class ThreadScratch {
 public:
  enum Use {
    kShared,      // shared memory of a call that runs on this thread alone
    kTask,        // scratch of the tasks of such a call
    kSampling,    // the best columns of each row
    kLaneDepths,  // the schedule that lane sort planned last
    kUses,
  };

  static Arena& Of(Use use);

  // Frees arenas larger than kMaxKeptScratch; on a thread that is ending, all of them. Only while
  // no call runs on this thread.
  static void EndCall();

  static void Release();
};

}  // namespace riffle::core

// Memory that calls work in, kept from call to call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace riffle::core {

// Uninitialised memory, 64-byte aligned, that only grows until it is released.
class Arena {
 public:
  // At least `bytes` bytes. What an earlier call returned is lost when it has to grow. Throws
  // Error(kOutOfMemory).
  uint8_t* Get(size_t bytes);

  uint8_t* data() const { return data_.get(); }  // null: nothing is held
  size_t capacity() const { return capacity_; }
  void Release() {
    data_.reset();
    capacity_ = 0;
  }
  void CutTo(size_t most) {  // releases what is larger
    if (capacity_ > most) [[unlikely]] {
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

// An arena that is larger when its call ends gives its memory back: riffle/runtime.h says so.
// Rows of today's vocabularies need 2 MiB, the candidates of an LM head up to 64 MiB
// (prefilter_plan.h). To make scratch anew for each call doubles its time: the top-p nucleus of 8e6
// columns works in 61 MiB, in 23 ms where they are kept and in 46 ms where not; with 31 MiB, which
// malloc keeps by itself, there is no difference (10 ms).
inline constexpr size_t kMaxKeptScratch = size_t{128} << 20;

// Arenas of the calling thread. A call may come from the destructor of a thread_local or static
// object, after this thread's arenas have been freed: then they are made afresh, and freed when
// that call ends.
class ThreadScratch {
 public:
  enum Use {
    kShared,      // of a call that runs on this thread alone, as all that follow
    kTask,        // what its tasks work in
    kSampling,    // the best columns of each row
    kLaneDepths,  // the schedule that lane sort planned last
    kUses,
  };

  static Arena& Of(Use use);

  // Frees what is larger than kMaxKeptScratch, and everything on a thread that is ending. Only
  // while no call runs on this thread.
  static void EndCall();

  static void Release();
};

}  // namespace riffle::core

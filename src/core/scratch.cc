#include "core/scratch.h"

#include <hwy/base.h>

#include "core/call_context.h"
#include "core/check.h"

namespace riffle::core {
namespace {

struct Arenas {
  Arena of[ThreadScratch::kUses];
};

// These two have no destructor, so they can be used after the owner is gone. A vector or an Arena
// that was thread_local itself would be used after its destruction.
constinit thread_local Arenas* arenas = nullptr;
constinit thread_local bool thread_ends = false;

void Free() {
  delete arenas;
  arenas = nullptr;
}

struct Owner {
  bool is_made = true;
  ~Owner() {
    Free();
    thread_ends = true;
  }
};

Arenas& Make() {
  arenas = new Arenas;
  if (!thread_ends) {
    thread_local Owner owner;
    [[maybe_unused]] volatile bool made = owner.is_made;  // reading it registers the destructor
  }
  return *arenas;
}

}  // namespace

uint8_t* Arena::Get(size_t bytes) {
  if (bytes > capacity_) {
    Release();
    data_.reset(static_cast<uint8_t*>(::operator new (bytes, std::align_val_t{64}, std::nothrow)));
    Check(data_ != nullptr, Code::kOutOfMemory, "no memory for ", bytes, " bytes of scratch");
    capacity_ = bytes;
  }
  return data_.get();
}

Arena& ThreadScratch::Of(Use use) { return (arenas != nullptr ? *arenas : Make()).of[use]; }

void ThreadScratch::EndCall() {
  HWY_DASSERT(call_context.entries == 0);
  if (arenas == nullptr) {
    return;
  }
  if (thread_ends) [[unlikely]] {
    return Free();
  }
  for (Arena& arena : arenas->of) {
    arena.ReleaseIfLarger(kMaxKeptScratch);
  }
}

void ThreadScratch::Release() { Free(); }

}  // namespace riffle::core

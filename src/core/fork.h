// fork() and what must not be left behind by it: a child has only the thread that forked, so a lock
// that another thread held would never be given back there.
#pragma once

#include <sys/types.h>

#include <mutex>

namespace riffle::core {

// getpid(), which is a system call (0.2 us on a virtual machine, half of a short top-k), kept up to
// date by the handler that runs in a forked child.
pid_t ProcessId();

// A mutex that is free in a forked child, with what it guards in order: fork() waits until nobody
// holds it. All locks of the library are of this class, for one handler of fork() takes them all.
// (Atomics do for the rest: the pool knows by ProcessId() that it is in a child, and what is made
// once is made by whoever comes first and thrown away by the others.)
// To be held briefly, and never while fork() is called.
class ForkSafeMutex {
 public:
  ForkSafeMutex();
  ~ForkSafeMutex();
  ForkSafeMutex(const ForkSafeMutex&) = delete;
  ForkSafeMutex& operator=(const ForkSafeMutex&) = delete;

  void lock() { mutex_.lock(); }
  bool try_lock() { return mutex_.try_lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  friend struct ForkHandler;
  std::mutex mutex_;
  ForkSafeMutex* before_ = nullptr;  // in the list of all
  ForkSafeMutex* behind_ = nullptr;
};

}  // namespace riffle::core

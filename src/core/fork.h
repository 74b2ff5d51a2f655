// Locks and fork(): a child has only the thread that forked, so a lock that another thread held at
// that moment would never be released there.
#pragma once

#include <mutex>

#if defined(_WIN32)
using pid_t = int;
#else
#include <sys/types.h>
#endif

namespace riffle::core {

// The result of getpid(), cached: the system call takes 0.2 us on a virtual machine, half the time
// of a short top-k. A handler updates it in a forked child. Windows has no fork(): a constant
// there.
pid_t ProcessId();

// A mutex that is free in a forked child, with the data it guards consistent: fork() waits until
// nobody holds it. All locks of the library are of this class, because one handler of fork() takes
// them all. Everything else uses atomics: the pool learns from ProcessId() that it is in a child,
// and when several threads create a shared object at once, the first one to finish publishes its
// object and the others discard theirs.
// Hold it briefly, and never call fork() while holding it.
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
  ForkSafeMutex* previous_ = nullptr;  // in the list of all such mutexes
  ForkSafeMutex* next_ = nullptr;
};

}  // namespace riffle::core

// fork() on POSIX systems. Windows has none; its branch is untested, as macOS is.
#include "core/fork.h"

#include <atomic>

#if !defined(_WIN32)
#include <pthread.h>
#include <unistd.h>
#endif

namespace riffle::core {

#if defined(_WIN32)

pid_t ProcessId() { return 1; }
ForkSafeMutex::ForkSafeMutex() = default;
ForkSafeMutex::~ForkSafeMutex() = default;

#else

struct ForkHandler {
  static std::mutex list_mutex;  // locked first, unlocked last
  static ForkSafeMutex* first;
  static std::atomic<pid_t> process_id;  // 0: the handler is not registered

  static void Before() {
    list_mutex.lock();
    for (ForkSafeMutex* mutex = first; mutex != nullptr; mutex = mutex->next_) {
      mutex->mutex_.lock();
    }
  }
  static void InParent() {
    for (ForkSafeMutex* mutex = first; mutex != nullptr; mutex = mutex->next_) {
      mutex->mutex_.unlock();
    }
    list_mutex.unlock();
  }
  static void InChild() {
    process_id.store(getpid(), std::memory_order_relaxed);
    InParent();  // the child's only thread is the one that locked them
  }

  // Runs when the library is loaded; constructors of static objects may make calls before that.
  static bool Register() {
    if (pthread_atfork(Before, InParent, InChild) != 0) {
      return false;
    }
    process_id.store(getpid(), std::memory_order_relaxed);
    return true;
  }
  static const bool registered;
};

constinit std::mutex ForkHandler::list_mutex;
constinit ForkSafeMutex* ForkHandler::first = nullptr;
constinit std::atomic<pid_t> ForkHandler::process_id{0};
const bool ForkHandler::registered = ForkHandler::Register();

pid_t ProcessId() {
  const pid_t id = ForkHandler::process_id.load(std::memory_order_relaxed);
  return id != 0 ? id : getpid();
}

ForkSafeMutex::ForkSafeMutex() {
  const std::lock_guard<std::mutex> lock(ForkHandler::list_mutex);
  next_ = ForkHandler::first;
  if (next_ != nullptr) {
    next_->previous_ = this;
  }
  ForkHandler::first = this;
}

ForkSafeMutex::~ForkSafeMutex() {
  const std::lock_guard<std::mutex> lock(ForkHandler::list_mutex);
  (previous_ != nullptr ? previous_->next_ : ForkHandler::first) = next_;
  if (next_ != nullptr) {
    next_->previous_ = previous_;
  }
}

#endif

}  // namespace riffle::core

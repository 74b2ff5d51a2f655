#include "cli/mapped_files.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "cli/streams.h"

namespace riffle::cli {
namespace {

constexpr int kSlots = 4;  // enough: the command maps one file
constexpr size_t kMaxName = 1024;

// What the signal handler reads: it must not allocate or lock.
struct Slot {
  std::atomic<uintptr_t> begin{0};  // 0: the slot is free
  std::atomic<uintptr_t> end{0};
  char name[kMaxName] = {};
};
Slot slots[kSlots];

void Write(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
    if (written <= 0) {
      return;
    }
    text.remove_prefix(static_cast<size_t>(written));
  }
}

void OnBusError(int signal, siginfo_t* info, void*) {
  if (info->si_code != BUS_ADRERR) {
    ::signal(signal, SIG_DFL);  // returning repeats the instruction, which now ends the command
    return;
  }
  // Several threads may get the signal at once: the first prints the error and ends the command.
  static std::atomic_flag said;
  while (said.test_and_set()) {
    ::pause();
  }
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  std::string_view name = "a file that is mapped into memory";
  for (const Slot& slot : slots) {
    if (slot.begin <= address && address < slot.end) {
      name = slot.name;
    }
  }
  Write("riffle: error: ");
  PrintEscaped(name, Write);
  Write(": became shorter while it was read\n");
  ::_exit(1);
}

}  // namespace

void CatchShrinkingFiles() {
  struct sigaction action = {};
  action.sa_sigaction = OnBusError;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, nullptr);
}

MappedFile::MappedFile(const std::string& path, const void* data, size_t bytes) : slot_(-1) {
  for (int i = 0; i < kSlots && slot_ < 0; ++i) {
    if (slots[i].begin == 0) {
      slot_ = i;
    }
  }
  if (slot_ < 0) {
    return;  // no free slot: errors will not name this file
  }
  Slot& slot = slots[slot_];
  const size_t length = std::min(path.size(), kMaxName - 1);
  std::memcpy(slot.name, path.data(), length);
  slot.name[length] = '\0';
  slot.end = reinterpret_cast<uintptr_t>(data) + bytes;
  slot.begin = reinterpret_cast<uintptr_t>(data);
}

MappedFile::~MappedFile() {
  if (slot_ >= 0) {
    slots[slot_].begin = 0;
    slots[slot_].end = 0;
  }
}

}  // namespace riffle::cli

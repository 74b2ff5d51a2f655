// How many CPUs this process may use: by its affinity on Linux and Windows, else all there are.
// Windows and others are untested.
#include <thread>

#include "core/workers.h"

#if defined(__linux__)
#include <sched.h>
#elif defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <bit>
#endif

namespace riffle::core {
namespace {

// Returns 0 if the system does not say.
int CpusOfAffinity() {
#if defined(__linux__)
  cpu_set_t set;
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 0;
#elif defined(_WIN32)
  DWORD_PTR process = 0;
  DWORD_PTR system = 0;
  // Counts only the process's own group, which has at most 64 CPUs.
  return GetProcessAffinityMask(GetCurrentProcess(), &process, &system) != 0
             ? std::popcount(static_cast<unsigned long long>(process))
             : 0;
#else
  return 0;
#endif
}

}  // namespace

int AvailableCpus() {
  if (const int count = CpusOfAffinity(); count > 0) {
    return count;
  }
  const unsigned count = std::thread::hardware_concurrency();
  return count == 0 ? 1 : static_cast<int>(count);
}

}  // namespace riffle::core

// A parallel region for SetParallelRegion that has threads of its own, as an OpenMP runtime has.
#pragma once

#include <thread>
#include <vector>

namespace riffle::test {

// Runs body(data) on `threads` threads, the caller among them, and returns when all have returned.
inline void ThreadsOfTheTest(void (*body)(void*), void* data, unsigned threads, unsigned) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(body, data);
  body(data);
  for (std::thread& other : others) other.join();
}

}  // namespace riffle::test

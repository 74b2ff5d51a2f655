// Times calls that are compared with each other. They are measured in turn in one run, so that a
// change of the machine's speed affects all of them alike.
#pragma once

#include <functional>
#include <vector>

namespace riffle::cli {

struct Timing {
  double median = 0;  // seconds
  double min = 0;     // seconds
  int repetitions = 0;
};

// Calls over the same memory. Each finds the caches as the previous call left them: a matrix that
// fits in a cache is warm for all calls, the roofline included.
struct Group {
  std::vector<std::function<void()>> calls;
  std::function<void()> prepare = [] {};  // before each visit, untimed
};

// Visits the groups in rounds. A visit runs the group's calls once untimed, to bring their memory
// into the caches, then several times timed, in turn. Ends when every call has been timed for about
// `min_seconds` and at least kMinRepetitions times. Calls `progress` with the fraction that is
// done.
std::vector<std::vector<Timing>> Measure(const std::vector<Group>& groups, double min_seconds,
                                         const std::function<void(double)>& progress);

constexpr int kMinRepetitions = 9;

}  // namespace riffle::cli

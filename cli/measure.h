// Times of calls that are compared with each other: measured in turn in one run, so that a change
// of the machine's speed meets all of them alike.
#pragma once

#include <functional>
#include <vector>

namespace riffle::cli {

struct Timing {
  double median = 0;  // seconds
  double min = 0;     // seconds
  int repetitions = 0;
};

// Calls over the same memory. They follow one another, so each finds the memory in the caches as
// the last one left it: a matrix that fits is warm for all of them, the roofline included.
struct Group {
  std::vector<std::function<void()>> calls;
  std::function<void()> prepare = [] {};  // before each visit, untimed
};

// Visits the groups in rounds. A visit runs the group's calls once untimed, which brings its memory
// into the caches, then several times timed, in turn. Ends when every call was timed for about
// `min_seconds` and at least kMinRepetitions times. `progress` hears the share that is done.
std::vector<std::vector<Timing>> Measure(const std::vector<Group>& groups, double min_seconds,
                                         const std::function<void(double)>& progress);

constexpr int kMinRepetitions = 9;

}  // namespace riffle::cli

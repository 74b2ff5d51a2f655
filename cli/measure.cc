#include "cli/measure.h"

#include <algorithm>
#include <chrono>

namespace riffle::cli {
namespace {

// Timed calls per visit: enough that the first ones, which still warm the caches, carry little
// weight.
constexpr int kTimedPerVisit = 5;
constexpr double kVisitSeconds = 0.005;

double Seconds(const std::function<void()>& call) {
  const auto begin = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// The measured times of one call.
struct Samples {
  std::vector<double> seconds;
  double total = 0;

  void Add(double value) {
    seconds.push_back(value);
    total += value;
  }

  double Done(double min_seconds) const {
    const double time = total < min_seconds ? total / min_seconds : 1;
    return std::min(time, static_cast<double>(seconds.size()) / kMinRepetitions);
  }

  Timing Result() {
    const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
    std::nth_element(seconds.begin(), middle, seconds.end());
    return {*middle, *std::min_element(seconds.begin(), seconds.end()),
            static_cast<int>(seconds.size())};
  }
};

void Visit(const Group& group, std::vector<Samples>& samples) {
  group.prepare();
  for (const auto& call : group.calls) {
    call();
  }
  double total = 0;
  for (int repeat = 0; repeat < kTimedPerVisit || total < kVisitSeconds; ++repeat) {
    for (size_t i = 0; i < group.calls.size(); ++i) {
      const double seconds = Seconds(group.calls[i]);
      samples[i].Add(seconds);
      total += seconds;
    }
  }
}

// The fraction of a group's measurements that is done.
double Done(const std::vector<Samples>& samples, double min_seconds) {
  double done = 1;
  for (const Samples& call : samples) {
    done = std::min(done, call.Done(min_seconds));
  }
  return done;
}

}  // namespace

std::vector<std::vector<Timing>> Measure(const std::vector<Group>& groups, double min_seconds,
                                         const std::function<void(double)>& progress) {
  std::vector<std::vector<Samples>> samples;
  samples.reserve(groups.size());
  for (const Group& group : groups) {
    samples.emplace_back(group.calls.size());
  }
  for (double done = 0; done < 1;) {
    progress(done);
    done = 1;
    for (size_t g = 0; g < groups.size(); ++g) {
      if (Done(samples[g], min_seconds) < 1) {
        Visit(groups[g], samples[g]);
      }
      done = std::min(done, Done(samples[g], min_seconds));
    }
  }
  std::vector<std::vector<Timing>> timings(groups.size());
  for (size_t g = 0; g < groups.size(); ++g) {
    for (Samples& call : samples[g]) {
      timings[g].push_back(call.Result());
    }
  }
  return timings;
}

}  // namespace riffle::cli

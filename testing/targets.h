// The SIMD targets on which a test's cases run.
#pragma once

#include <string>
#include <vector>

#include "riffle/runtime.h"

namespace riffle::test {

// Does a sanitizer watch this program? Everything takes ten to thirty times as long then.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// The targets of one case in a sweep of hundreds: all that this machine has, the best first. Under
// sanitizers one of them, drawn anew for each case: the sweep reaches every target there too.
std::vector<std::string> SweepTargets();

// Calls f(target) with each target chosen in turn, then chooses the best one again.
template <typename F>
void OnEveryTarget(const F& f) {
  for (const std::string& target : Targets()) {
    SetTarget(target);
    f(target);
  }
  SetTarget("");
}

}  // namespace riffle::test

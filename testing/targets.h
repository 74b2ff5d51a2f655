// The SIMD targets on which a test's cases run.
#pragma once

#include <string>
#include <vector>

#include "riffle/runtime.h"

namespace riffle::test {

// Whether a sanitizer watches this program; everything then takes ten to thirty times as long.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// The targets for one case in a sweep of hundreds: all of this machine, best first. Under
// sanitizers only one, drawn anew for each case, so that the sweep still reaches every target.
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

// The SIMD targets on which a test's cases run.
#pragma once

#include <string>
#include <vector>

#include "riffle/runtime.h"

namespace riffle::test {

// Whether everything takes ten to a hundred times as long, so that sweeps try fewer cases: a
// sanitizer watches this program, or an emulator runs it.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(RIFFLE_EMULATED)
inline constexpr bool kSlow = true;
#else
inline constexpr bool kSlow = false;
#endif

// The targets for one case in a sweep of hundreds: all of this machine, best first. Where
// programs are slow only one, drawn anew for each case, so that the sweep still reaches every
// target.
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

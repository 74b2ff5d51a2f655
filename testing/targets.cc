#include "testing/targets.h"

#include "testing/rng.h"

namespace riffle::test {

std::vector<std::string> SweepTargets() {
  std::vector<std::string> targets = Targets();
  if constexpr (kSlow) {
    static Rng draws(1);
    targets = {draws.Pick(targets)};
  }
  return targets;
}

}  // namespace riffle::test

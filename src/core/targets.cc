#include "core/targets.h"

#include <hwy/highway.h>

#include <cstdlib>

#include "core/check.h"
#include "riffle/runtime.h"

namespace riffle {
namespace {

// The generated targets that the machine has, best first; the answer of the hardware, not of an
// earlier SetTarget.
const std::vector<int64_t>& AllTargets() {
  static const std::vector<int64_t> targets = hwy::SupportedAndGeneratedTargets();
  return targets;
}

// `argument` is what the caller knows the name by.
void Use(std::string_view argument, std::string_view name) {
  const std::vector<int64_t>& all = AllTargets();
  int64_t mask = 0;  // no mock: what the machine has
  if (!name.empty()) {
    std::string known;
    for (const int64_t target : all) {
      const char* target_name = hwy::TargetName(target);
      known += std::string(known.empty() ? "" : ", ") + target_name;
      if (name == target_name) {
        mask = target;
      }
    }
    core::Check(mask != 0, Code::kBadOption, argument, " = '", name,
                "' is not one of this machine's targets: ", known);
  }
  hwy::SetSupportedTargetsForTest(mask);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

bool UseEnvironment() {
  const char* name = std::getenv("RIFFLE_TARGET");
  Use("RIFFLE_TARGET", name != nullptr ? name : "");
  return true;
}

}  // namespace

void core::EnsureTarget() { [[maybe_unused]] static const bool applied = UseEnvironment(); }

std::string_view Version() { return RIFFLE_LIBRARY_VERSION; }

std::vector<std::string> Targets() {
  std::vector<std::string> names;
  for (const int64_t target : AllTargets()) {
    names.emplace_back(hwy::TargetName(target));
  }
  return names;
}

std::string Target() {
  core::EnsureTarget();
  return hwy::TargetName(hwy::SupportedAndGeneratedTargets().front());
}

void SetTarget(std::string_view name) {
  core::EnsureTarget();
  Use("target", name);
}

}  // namespace riffle

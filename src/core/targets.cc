#include "core/targets.h"

#include <hwy/highway.h>

#include <atomic>
#include <cstdlib>

#include "core/arm_features.h"
#include "core/call_context.h"
#include "core/check.h"
#include "core/entry_point.h"
#include "core/printable.h"
#include "riffle/runtime.h"

namespace riffle {
namespace {

// The targets that were compiled in and that this machine supports, one bit each, the best one
// lowest. hwy::SupportedTargets also updates Highway's own dispatch; that is restored, because it
// belongs to the whole process.
int64_t Detect() {
  hwy::ChosenTarget& of_highway = hwy::GetChosenTarget();
  const bool was_initialized = of_highway.IsInitialized();
  const int64_t supported = hwy::SupportedTargets();
  if (was_initialized) {
    of_highway.Update(supported);
  } else {
    of_highway.DeInit();
  }
  // Kernels of NEON_BF16 multiply matrices of int8.
  const int64_t unusable = core::HasInt8Matrices() ? 0 : HWY_NEON_BF16;
  return supported & HWY_TARGETS & ~unusable;
}

// Detected without a lock, which would stay locked in a child that is forked meanwhile. Several
// threads may detect at once: all of them find the same answer.
int64_t Available() {
  constinit static std::atomic<int64_t> available{0};
  int64_t targets = available.load(std::memory_order_relaxed);
  if (targets == 0) {
    targets = Detect();
    available.store(targets, std::memory_order_relaxed);
  }
  return targets;
}

constexpr int64_t Best(int64_t targets) { return targets & -targets; }

// The chosen target and the slower ones; 0: none chosen yet.
constinit std::atomic<int64_t> chosen{0};

// `argument`: what error texts call `name`.
int64_t TargetsFrom(std::string_view argument, std::string_view name) {
  const int64_t all = Available();
  if (name.empty()) {
    return all;
  }
  std::string known;
  for (int64_t left = all; left != 0; left &= left - 1) {
    const char* target_name = hwy::TargetName(Best(left));
    if (name == target_name) {
      return left;
    }
    known += std::string(known.empty() ? "" : ", ") + target_name;
  }
  core::Fail(Code::kBadOption, argument, " = ", core::Quote(name),
             " is not one of this machine's targets: ", known);
}

int64_t Chosen() {
  int64_t targets = chosen.load(std::memory_order_relaxed);
  if (targets == 0) [[unlikely]] {
    const char* name = std::getenv("RIFFLE_TARGET");
    const int64_t from = TargetsFrom("RIFFLE_TARGET", name != nullptr ? name : "");
    // Fails if SetTarget was called meanwhile; `targets` then becomes what that chose.
    if (chosen.compare_exchange_strong(targets, from, std::memory_order_relaxed)) {
      targets = from;
    }
  }
  return targets;
}

}  // namespace

void core::EnsureTarget() {
  const int64_t targets = Chosen();
  if (core::call_context.entries > 0 && core::call_context.targets == 0) {
    core::call_context.targets = targets;
  }
}

int64_t TargetMask() try {
  return core::call_context.targets != 0 ? core::call_context.targets : Chosen();
} catch (...) {
  core::RethrowAsError();
}

std::string_view Version() { return RIFFLE_LIBRARY_VERSION; }

std::vector<std::string> Targets() try {
  const core::EntryPoint entry;
  std::vector<std::string> names;
  for (int64_t left = Available(); left != 0; left &= left - 1) {
    names.emplace_back(hwy::TargetName(Best(left)));
  }
  return names;
} catch (...) {
  core::RethrowAsError();
}

std::string Target() try {
  const core::EntryPoint entry;
  return hwy::TargetName(Best(Chosen()));
} catch (...) {
  core::RethrowAsError();
}

void SetTarget(std::string_view name) try {
  const core::EntryPoint entry;
  Chosen();  // reports a wrong RIFFLE_TARGET
  chosen.store(TargetsFrom("target", name), std::memory_order_relaxed);
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle

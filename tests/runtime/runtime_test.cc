// Targets and the environment variables, each in a process of its own.
#include "riffle/runtime.h"

#include <gtest/gtest.h>
#include <hwy/highway.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "lm_head/prefilter/prefilter_kernels.h"
#include "riffle/error.h"
#include "riffle/linear_topk.h"
#include "testing/paths.h"
#include "testing/text.h"
#include "topk/topk_kernels.h"

namespace riffle::test {
namespace {

// The line that runtime_probe prints with `environment`; it prints two, which must be equal.
std::string Probe(const std::string& environment) {
  const std::string command =
      "env -u RIFFLE_TARGET -u RIFFLE_NUM_THREADS " + environment + " '" + kRuntimeProbe + "'";
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return "popen failed";
  std::string text;
  std::array<char, 512> part;
  while (fgets(part.data(), static_cast<int>(part.size()), pipe) != nullptr) text += part.data();
  const int status = pclose(pipe);
  const std::string line = text.substr(0, text.find('\n') + 1);
  if (status != 0 || line.empty() || text != line + line) {
    return Concat("status ", status, ", output: ", text);
  }
  return line;
}

bool Says(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// The target for which the kernels that calls run were compiled.
std::string KernelTarget() { return hwy::TargetName(topk::Kernels(DType::kF32).target); }

// AVX3_DL is compiled for the prefilter alone; other kernels run the next lower target there.
std::string KernelsOf(const std::string& target) { return target == "AVX3_DL" ? "AVX3" : target; }

TEST(Targets, AreNamedBestFirst) {
  const std::vector<std::string> targets = Targets();
  ASSERT_FALSE(targets.empty());
  EXPECT_EQ(Target(), targets.front());
  std::vector<std::string> sorted = targets;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(std::unique(sorted.begin(), sorted.end()), sorted.end()) << "a target is there twice";
}

TEST(Targets, SettingOneRunsItsKernels) {
  for (const std::string& target : Targets()) {
    SetTarget(target);
    EXPECT_EQ(Target(), target);
    EXPECT_EQ(KernelTarget(), KernelsOf(target));
    EXPECT_EQ(Targets().size(), Targets().size());
  }
  SetTarget("");
  EXPECT_EQ(Target(), Targets().front());
  EXPECT_EQ(KernelTarget(), KernelsOf(Targets().front()));
}

// Int8 dot products came with AVX3_DL, which every Zen 4 has; SSE4 and the like have none. On ARM
// they pay for rows that do not read W in place.
TEST(Targets, ThoseWithInt8DotProductsPrefilter) {
  const std::vector<std::string> targets = Targets();
  const auto available = [&targets](const char* name) {
    return std::find(targets.begin(), targets.end(), name) != targets.end();
  };
  if (!HWY_IS_ASAN && !HWY_IS_TSAN && available("AVX3_ZEN4")) {
    EXPECT_TRUE(available("AVX3_DL"));
  }
  for (const std::string& target : targets) {
    SetTarget(target);
    const bool wide = target == "AVX3_DL" || target == "AVX3_ZEN4" || target == "AVX3_SPR";
    constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
    const int64_t min_rows = wide ? 1 : target == "NEON_BF16" ? lm_head::kInplaceRows + 1 : kNever;
    EXPECT_EQ(lm_head::GetPrefilterKernels().min_rows, min_rows) << target;
  }
  SetTarget("");
}

// Highway's own choice of a target belongs to all of its users in the process; Riffle leaves it
// alone.
TEST(Targets, AreApartFromHighways) {
  const std::string best = Targets().front();
  EXPECT_FALSE(hwy::GetChosenTarget().IsInitialized()) << "nobody dispatches by Highway here";
  hwy::SetSupportedTargetsForTest(HWY_STATIC_TARGET);
  hwy::GetChosenTarget().Update(HWY_STATIC_TARGET);
  for (const std::string& target : Targets()) {
    SetTarget(target);
    EXPECT_EQ(KernelTarget(), KernelsOf(target));
    EXPECT_EQ(hwy::SupportedTargets(), HWY_STATIC_TARGET);
    EXPECT_TRUE(hwy::GetChosenTarget().IsInitialized());
  }
  SetTarget("");
  EXPECT_EQ(Target(), best);
  hwy::SetSupportedTargetsForTest(0);
}

// A running call keeps the target with which it began, on all of its threads.
TEST(Targets, ChangeForLaterCallsOnly) {
  std::atomic<bool> stop{false};
  std::thread changing([&] {
    for (size_t i = 0; !stop; ++i) SetTarget(Targets()[i % Targets().size()]);
  });
  const std::vector<float> x(64 * 300, 0.25f), weight(3000 * 300, 0.5f);
  std::vector<float> y(64 * 3000);
  ThreadPool pool(3);
  for (int i = 0; i < 200; ++i) {
    // How operands are packed depends on the target.
    Linear({x.data(), DType::kF32, 64, 300, 300},
           {weight.data(), WeightFormat::kF32, 3000, 300, 300}, {y.data(), 3000}, {.pool = &pool});
    ASSERT_EQ(std::count(y.begin(), y.end(), 37.5f), 64 * 3000);
  }
  stop = true;
  changing.join();
  SetTarget("");
}

TEST(Targets, UnknownOnesAreRefused) {
  for (const char* name : {"AVX9", "avx2", "AVX2 ", " "}) {
    try {
      SetTarget(name);
      ADD_FAILURE() << "accepted '" << name << "'";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kBadOption);
      EXPECT_TRUE(Says(error.what(), name)) << error.what();
      EXPECT_TRUE(Says(error.what(), Targets().front())) << error.what();
    }
    EXPECT_EQ(Target(), Targets().front());
  }
}

TEST(Environment, TargetIsTheOneThatRuns) {
  for (const std::string& target : Targets()) {
    const std::string said = Probe("RIFFLE_TARGET=" + target);
    EXPECT_TRUE(Says(said, "right=1 target=" + target + " ")) << said;
    EXPECT_TRUE(Says(said, Concat("kernel=", KernelsOf(target), " "))) << said;
  }
  for (const char* none : {"", "RIFFLE_TARGET="}) {
    const std::string said = Probe(none);
    EXPECT_TRUE(Says(said, "right=1 target=" + Targets().front() + " ")) << said;
  }
}

TEST(Environment, UnknownTargetIsAnError) {
  const std::string said = Probe("RIFFLE_TARGET=VAX");
  EXPECT_TRUE(Says(said, Concat("code=", static_cast<int>(Code::kBadOption)))) << said;
  EXPECT_TRUE(Says(said, "VAX")) << said;
  EXPECT_TRUE(Says(said, "RIFFLE_TARGET")) << said;
  EXPECT_TRUE(Says(said, Targets().front())) << said;
}

TEST(Environment, NumThreads) {
  for (const int threads : {1, 2, 5, 40}) {
    const std::string said = Probe(Concat("RIFFLE_NUM_THREADS=", threads));
    EXPECT_TRUE(Says(said, "right=1 ")) << said;
    EXPECT_TRUE(Says(said, Concat("threads=", threads, "\n"))) << said;
  }
  for (const char* bad : {"0", "-1", "1025", "two", "2x", "99999999999999999999", "1.5"}) {
    const std::string said = Probe(Concat("RIFFLE_NUM_THREADS=", bad));
    EXPECT_TRUE(Says(said, Concat("code=", static_cast<int>(Code::kBadOption)))) << said;
    EXPECT_TRUE(Says(said, "RIFFLE_NUM_THREADS")) << said;
    EXPECT_TRUE(Says(said, bad)) << said;
    EXPECT_TRUE(Says(said, "1024")) << said;
  }
}

// The default pool has a thread for each CPU that the process may use.
TEST(Environment, CpusTheProcessMayUse) {
  cpu_set_t all;
  ASSERT_EQ(sched_getaffinity(0, sizeof(all), &all), 0);
  for (const char* environment : {"", "RIFFLE_NUM_THREADS="}) {
    EXPECT_TRUE(Says(Probe(environment), Concat("threads=", CPU_COUNT(&all), "\n")));
  }
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; CPU_COUNT(&one) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);  // children inherit it
  const std::string said = Probe("");
  sched_setaffinity(0, sizeof(all), &all);
  EXPECT_TRUE(Says(said, "threads=1\n")) << said;
}

TEST(Version, IsThreeNumbers) {
  int major = -1;
  int minor = -1;
  int patch = -1;
  char rest = 0;
  const std::string version(Version());
  EXPECT_EQ(std::sscanf(version.c_str(), "%d.%d.%d%c", &major, &minor, &patch, &rest), 3)
      << version;
}

}  // namespace
}  // namespace riffle::test

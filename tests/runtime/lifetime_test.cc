// Calls at the beginning and the end of the life of a thread, a plugin or the process, each in a
// process of its own.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <string>

#include "testing/paths.h"
#include "testing/text.h"

namespace riffle::test {
namespace {

struct Outcome {
  int status;
  std::string text;
  int right = 0;
};

Outcome Run(const std::string& arguments) {
  Outcome outcome;
  const std::string command =
      std::string("timeout 60 '") + kLifetimeProbe + "' " + arguments + " 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return {-1, "popen failed"};
  std::array<char, 512> part;
  while (fgets(part.data(), static_cast<int>(part.size()), pipe) != nullptr) {
    outcome.text += part.data();
    outcome.right += outcome.text.ends_with(": right\n");
  }
  outcome.status = pclose(pipe);
  return outcome;
}

void ExpectRight(const std::string& arguments, int lines) {
  const Outcome outcome = Run(arguments);
  EXPECT_EQ(outcome.status, 0) << arguments << '\n' << outcome.text;
  EXPECT_EQ(outcome.right, lines) << arguments << '\n' << outcome.text;
}

// The probe calls in a thread and in its thread_local destructor, in both of the main thread, and
// then in a static destructor.
TEST(Lifetime, CallsFromDestructors) {
  for (const char* mode : {"sample", "inline", "lane_sort"}) {
    ExpectRight(mode, 7);
  }
}

TEST(Lifetime, ExitDuringCalls) {
  for (int i = 0; i < 5; ++i) {
    ExpectRight("'exit during calls'", 1);
    ExpectRight("'exit from a task'", 1);
  }
}

#ifdef RIFFLE_LIFETIME_PLUGINS
std::string Plugins() { return Concat(" '", kLifetimePluginA, "' '", kLifetimePluginB, "'"); }

TEST(Lifetime, TwoCopiesOfTheLibrary) { ExpectRight("'two copies'" + Plugins(), 2); }

TEST(Lifetime, PluginsAreUnloaded) { ExpectRight("unload" + Plugins(), 7); }
#endif

}  // namespace
}  // namespace riffle::test

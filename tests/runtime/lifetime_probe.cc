// lifetime_test runs this program once for each case: calls at the beginning or the end of the life
// of a thread or of the process.
#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "riffle/riffle.h"

namespace {

using riffle::DType;

const char* mode = "";

void Say(const char* what, bool right) {
  std::printf("%s: %s\n", what, right ? "right" : "WRONG");
  std::fflush(stdout);
}

std::vector<float> Numbers(size_t count) {
  std::vector<float> x(count);
  for (size_t i = 0; i < count; ++i) x[i] = static_cast<float>(i * 7919 % count);
  return x;
}

bool IsMode(const char* name) { return std::strcmp(mode, name) == 0; }

void Call(const char* where) {
  bool right = true;
  if (IsMode("sample")) {
    std::vector<float> x(1000, 1.0f);
    x[249] = x[999] = 50;
    std::vector<int32_t> tokens(4);
    riffle::Sample({x.data(), DType::kF32, 4, 250, 250}, tokens);
    right = tokens[0] == 249 && tokens[3] == 249;
  } else if (IsMode("inline")) {  // called inside of a task, when the pool is busy
    const std::vector<float> x = Numbers(200000);
    std::vector<float> values(32);
    std::vector<int32_t> indices(32);
    riffle::ParallelFor(4, [&](int64_t i) {
      riffle::TopK({x.data(), DType::kF32, 1, 200000, 200000}, 8,
                   {values.data() + 8 * i, 8, indices.data() + 8 * i, 8});
    });
    for (size_t i = 0; i < 32; ++i) right &= values[i] == static_cast<float>(199999 - i % 8);
  } else {
    const std::vector<float> x = Numbers(4 * 20000);
    std::vector<float> values(4 * 8);
    std::vector<int32_t> indices(4 * 8);
    riffle::TopKOptions options;
    options.algorithm = riffle::Algorithm::kLaneSort;
    riffle::TopK({x.data(), DType::kF32, 1, 80000, 80000}, 8, {values.data(), 8, indices.data(), 8},
                 options);
    for (size_t i = 0; i < 8; ++i) right &= values[i] == static_cast<float>(79999 - i);
  }
  Say(where, right);
}

// Constructed before any object of the library, and therefore destroyed after all of them.
struct Static {
  ~Static() {
    if (mode[0] != '\0') Call("static destructor");
  }
};
const Static object;

struct Local {
  bool used = false;
  ~Local() {
    if (used) {
      Call("thread_local destructor");
      Call("thread_local destructor, again");
    }
  }
};
thread_local Local local;

void Use() {
  local.used = true;
  Call("thread");
}

// Calls exit() while other threads are in calls that nobody waits for.
void ExitDuringCalls() {
  mode = "";
  for (int i = 0; i < 3; ++i) {
    std::thread([] {
      const std::vector<float> x = Numbers(64 * 5000);
      std::vector<float> values(64 * 8);
      std::vector<int32_t> indices(64 * 8);
      for (;;) {
        riffle::TopK({x.data(), DType::kF32, 64, 5000, 5000}, 8,
                     {values.data(), 8, indices.data(), 8});
      }
    }).detach();
  }
  usleep(20000);
  Say("exit", true);
}

// A task that ends the process.
void ExitFromTask() {
  mode = "";
  Say("exit", true);
  riffle::ParallelFor(100, [](int64_t i) {
    static std::atomic<bool> first{true};
    if (i == 50 && first.exchange(false)) std::exit(0);
    usleep(100);
  });
}

using Function = int (*)(const char*);

// Two copies of the library, each in a plugin of its own.
void TwoCopies(char** paths) {
  mode = "";
  Function best[2], set_target[2], is_target[2];
  for (int i = 0; i < 2; ++i) {
    void* plugin = dlopen(paths[i], RTLD_NOW | RTLD_LOCAL);
    if (plugin == nullptr) return Say(dlerror(), false);
    best[i] = reinterpret_cast<Function>(dlsym(plugin, "PluginBest"));
    set_target[i] = reinterpret_cast<Function>(dlsym(plugin, "PluginSetTarget"));
    is_target[i] = reinterpret_cast<Function>(dlsym(plugin, "PluginIsTarget"));
  }
  Say("two copies", best[0] != best[1]);
  const std::vector<std::string> targets = riffle::Targets();
  const std::string own = riffle::Target();
  for (const std::string& first : targets) {
    for (const std::string& second : targets) {
      set_target[0](first.c_str());
      set_target[1](second.c_str());
      const bool right = is_target[0](first.c_str()) != 0 && is_target[1](second.c_str()) != 0 &&
                         best[0]("") != 0 && best[1]("") != 0 && riffle::Target() == own;
      if (!right) Say((first + " and " + second).c_str(), false);
    }
  }
  Say("targets", true);
}

// Unloading a plugin ends its threads.
void Unload(char** paths) {
  mode = "";
  for (int i = 0; i < 3; ++i) {
    void* plugin = dlopen(paths[0], RTLD_NOW | RTLD_LOCAL);
    if (plugin == nullptr) return Say(dlerror(), false);
    Say("call", reinterpret_cast<Function>(dlsym(plugin, "PluginBest"))("") != 0);
    dlclose(plugin);
    usleep(50000);  // a worker that still lived would wake up in unmapped code
    Say("unloaded", dlopen(paths[0], RTLD_NOW | RTLD_NOLOAD) == nullptr);
  }
  if (fork() == 0) _exit(0);  // the handlers of fork() must be gone too
  Say("fork", true);
}

}  // namespace

int main(int, char** arguments) {
  mode = arguments[1];
  if (IsMode("exit during calls")) {
    ExitDuringCalls();
  } else if (IsMode("exit from a task")) {
    ExitFromTask();
  } else if (IsMode("two copies")) {
    TwoCopies(arguments + 2);
  } else if (IsMode("unload")) {
    Unload(arguments + 2);
  } else {
    std::thread(Use).join();
    Use();
  }
  return 0;
}

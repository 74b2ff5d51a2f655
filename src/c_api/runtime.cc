// SIMD targets and threads for C.
#include "riffle/runtime.h"

#include <string>

#include "c_api/convert.h"

namespace riffle::c_api {
namespace {

// The name that riffle_target returned last on this thread. Highway's names are short.
constinit thread_local char target_name[64] = "";

}  // namespace
}  // namespace riffle::c_api

using riffle::c_api::Guarded;
using riffle::c_api::NotNull;

const char* riffle_target() {
  char(&name)[64] = riffle::c_api::target_name;
  const riffle_status status = Guarded([&] {
    const std::string target = riffle::Target();
    riffle::core::Check(target.size() < sizeof(name), riffle::Code::kOutOfMemory,
                        "the target's name is too long: ", target);
    std::memcpy(name, target.c_str(), target.size() + 1);
  });
  return status == RIFFLE_OK ? name : nullptr;
}

riffle_status riffle_set_target(const char* name) {
  return Guarded([&] { riffle::SetTarget(name == nullptr ? "" : name); });
}

int32_t riffle_num_threads() {
  int32_t threads = 0;
  Guarded([&] { threads = riffle::NumThreads(); });
  return threads;
}

riffle_status riffle_set_num_threads(int32_t threads) {
  return Guarded([&] { riffle::SetNumThreads(threads); });
}

riffle_status riffle_set_parallel_region(riffle_parallel_region region) {
  return Guarded([&] { riffle::SetParallelRegion(region); });
}

riffle_status riffle_thread_pool_create(int32_t threads, riffle_thread_pool** pool) {
  return Guarded([&] {
    NotNull("pool", pool);
    *pool = new riffle_thread_pool{riffle::ThreadPool(threads)};
  });
}

void riffle_thread_pool_destroy(riffle_thread_pool* pool) { delete pool; }

riffle_status riffle_release_scratch(riffle_thread_pool* pool) {
  return Guarded([&] { riffle::ReleaseScratch({riffle::c_api::ToPool(pool)}); });
}

// Run by runtime_test with environment variables set: says which target and how many threads a call
// gets, or the error it throws.
#include <hwy/targets.h>

#include <cstdio>
#include <vector>

#include "riffle/error.h"
#include "riffle/topk.h"
#include "topk/topk_kernels.h"

namespace {

bool SmallCallIsRight() {
  const std::vector<float> x = {1, 5, 3};
  float value = 0;
  int32_t index = -1;
  riffle::TopK({x.data(), riffle::DType::kF32, 1, 3, 3}, 1, {&value, 1, &index, 1});
  return index == 1 && value == 5;
}

// What the kernels that calls are dispatched to were compiled for.
const char* KernelTarget() {
  return hwy::TargetName(riffle::topk::Kernels(riffle::DType::kF32).target);
}

}  // namespace

int main() {
  for (int attempt = 0; attempt < 2; ++attempt) {  // an error must come again, not a half set-up
    try {
      const bool right = SmallCallIsRight();
      std::printf("right=%d target=%s kernel=%s threads=%d\n", right ? 1 : 0,
                  riffle::Target().c_str(), KernelTarget(), riffle::NumThreads());
    } catch (const riffle::Error& error) {
      std::printf("code=%d %s\n", static_cast<int>(error.code()), error.what());
    }
  }
  return 0;
}

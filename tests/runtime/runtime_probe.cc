// runtime_test runs this program with environment variables. It prints which target and how many
// threads a call gets, or the error that the call throws.
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

// The target for which the kernels that calls run were compiled.
const char* KernelTarget() {
  return hwy::TargetName(riffle::topk::Kernels(riffle::DType::kF32).target);
}

}  // namespace

int main() {
  // The second call must fail like the first, not use what is half set up.
  for (int attempt = 0; attempt < 2; ++attempt) {
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

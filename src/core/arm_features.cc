// Linux and macOS (untested). Elsewhere the answer is no, unless the compiler was told otherwise.
#include "core/arm_features.h"

#include <cstddef>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace riffle::core {

bool HasInt8Matrices() {
#if defined(__ARM_FEATURE_MATMUL_INT8)  // the compiler was told so: the whole program needs it
  return true;
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kI8mm = 1UL << 13;  // HWCAP2_I8MM of Linux 5.10
  return (getauxval(AT_HWCAP2) & kI8mm) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
  int has = 0;
  size_t bytes = sizeof(has);
  return sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &bytes, nullptr, 0) == 0 && has != 0;
#else
  return false;
#endif
}

}  // namespace riffle::core

// The floating-point environment that every task of a call runs under: rounding to nearest,
// subnormals not flushed to zero, no traps. Results are functions of the input, so they may not
// depend on what the caller, or whoever started a worker, has set.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || (defined(__i386__) && defined(__SSE__))
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace riffle::core {

#if defined(__x86_64__) || (defined(__i386__) && defined(__SSE__))

// MXCSR governs SSE and AVX; the x87 control word governs long double, in which lane sort's
// schedule is computed. Both are always read, but written only if they differ: writing MXCSR drains
// the pipeline. The status flags, the low six bits of MXCSR, are not part of the environment.
class FloatEnvironment {
 public:
  FloatEnvironment() : mxcsr_(_mm_getcsr()) {
    asm volatile("fnstcw %0" : "=m"(control_word_));
    if ((mxcsr_ & ~kStatus) != kStandard || (control_word_ & kControl) != kStandardControl)
        [[unlikely]] {
      Set(kStandard | (mxcsr_ & kStatus), kX87Default);
      changed_ = true;
    }
  }
  ~FloatEnvironment() {
    if (changed_) [[unlikely]] {
      Set(mxcsr_, control_word_);
    }
  }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  static constexpr uint32_t kStatus = 0x3f;
  static constexpr uint32_t kStandard = 0x1f80;         // exceptions masked, rounding to nearest
  static constexpr uint16_t kControl = 0x0f3f;          // rounding, precision, exception masks
  static constexpr uint16_t kStandardControl = 0x033f;  // rounding to nearest, 64 bits, all masked
  static constexpr uint16_t kX87Default = 0x037f;

  static void Set(uint32_t mxcsr, uint16_t control_word) {
    _mm_setcsr(mxcsr);
    asm volatile("fldcw %0" : : "m"(control_word));
  }

  uint32_t mxcsr_;
  uint16_t control_word_;
  bool changed_ = false;
};

#elif defined(__aarch64__)

class FloatEnvironment {
 public:
  FloatEnvironment() {
    asm volatile("mrs %0, fpcr" : "=r"(fpcr_));
    if (fpcr_ != 0) [[unlikely]] {  // 0: rounding to nearest, subnormals kept, no traps
      Set(0);
    }
  }
  ~FloatEnvironment() {
    if (fpcr_ != 0) [[unlikely]] {
      Set(fpcr_);
    }
  }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  static void Set(uint64_t fpcr) { asm volatile("msr fpcr, %0" : : "r"(fpcr)); }

  uint64_t fpcr_;
};

#else

class FloatEnvironment {
 public:
  FloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatEnvironment() { std::fesetenv(&saved_); }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  std::fenv_t saved_;
};

#endif

}  // namespace riffle::core

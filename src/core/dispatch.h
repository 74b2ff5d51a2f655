// Kernels for the SIMD target that Riffle has chosen. Included after hwy/foreach_target.h.
#pragma once

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

#include "riffle/runtime.h"

namespace riffle::core {

// The function for TargetMask() in a table that HWY_EXPORT made:
//   (*ForTarget(HWY_DISPATCH_TABLE(Function)))(arguments);
// Replaces HWY_DYNAMIC_DISPATCH, whose target is shared by all users of Highway in the process. The
// first entry of a table is the function that Highway calls before it has chosen a target.
//
// static: files are compiled for different targets (riffle_use_vnni in cmake/RiffleHighway.cmake),
// so each must search its own. A file without the chosen target runs the next lower one it has.
template <typename Function, size_t kSize>
static Function* ForTarget(Function* const (&table)[kSize]) {
  if constexpr (kSize == 1) {  // compiled for one target alone
    return table[0];
  } else {
    const int64_t known = HWY_CHOSEN_TARGET_SHIFT(TargetMask()) | HWY_CHOSEN_TARGET_MASK_SCALAR;
    return table[hwy::Num0BitsBelowLS1Bit_Nonzero64(
        static_cast<uint64_t>(known & HWY_CHOSEN_TARGET_MASK_TARGETS))];
  }
}

}  // namespace riffle::core

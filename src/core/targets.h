// Which SIMD target kernels run on.
#pragma once

namespace riffle::core {

// Applies RIFFLE_TARGET once. Every door calls it before it dispatches. Throws Error(kBadOption)
// when the variable names no target of this machine.
void EnsureTarget();

}  // namespace riffle::core

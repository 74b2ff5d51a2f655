// Which SIMD target kernels run on.
#pragma once

namespace riffle::core {

// Applies RIFFLE_TARGET once, and makes the call that runs on this thread stay on the target that
// is chosen now. Every entry point calls it before it dispatches. Throws Error(kBadOption) when the
// variable names no target of this machine.
void EnsureTarget();

}  // namespace riffle::core

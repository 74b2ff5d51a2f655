// Which SIMD target kernels run on.
#pragma once

namespace riffle::core {

// Applies RIFFLE_TARGET once, and fixes the target chosen now for the rest of the call that runs on
// this thread. Every entry point calls it before it dispatches. Throws Error(kBadOption) when the
// variable names no target of this machine.
void EnsureTarget();

}  // namespace riffle::core

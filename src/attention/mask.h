// Scans a mask before kernels run for the blocks that hide, show or change keys.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "attention/mask_args.h"
#include "core/lease.h"
#include "riffle/attention.h"

namespace riffle::attention {

// How many codes a mask has, for sequences of up to `longest` keys.
size_t MaskCodeCount(const AttentionMask& mask, int64_t longest);

// The mask with its codes, which the lease's threads find and write to `codes`.
MaskArgs FindMaskCodes(const AttentionMask& mask, int64_t longest, std::span<uint8_t> codes,
                       core::Lease& lease);

}  // namespace riffle::attention

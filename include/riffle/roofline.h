// Rooflines: what no call over the same bytes, or with the same arithmetic, can beat on this
// machine. Every time that Riffle publishes stands beside the one measured in the same run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "riffle/attention.h"
#include "riffle/export.h"
#include "riffle/runtime.h"
#include "riffle/types.h"

namespace riffle {

// Reads every byte of [data, data + bytes) once, in order, `threads` contiguous parts at a time,
// and returns the largest byte: the fastest useful pass there is over that memory, so the time it
// takes is the roofline of everything that must read it. Any alignment.
RIFFLE_API uint8_t ReadMax(const void* data, size_t bytes, const CallOptions& options = {});

// The roofline of decode: reads the key and value bytes of every sequence of `batch` once, in the
// order and with the prefetching, the split over threads and the pages of PagedAttention's decode,
// and returns the largest byte.
RIFFLE_API uint8_t ReadPages(const PagedKv& keys, const PagedKv& values, const PagedBatch& batch,
                             const CallOptions& options = {});

// The roofline of prefill: FLOP/s of independent dot-product instructions on registers, all
// threads, measured now for about `seconds`. kBF16: pairs of bf16 where the target has them, else
// f32 FMA.
RIFFLE_API double DotPeak(DType dtype, double seconds = 0.02, const CallOptions& options = {});

}  // namespace riffle

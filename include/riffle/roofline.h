// Rooflines: times that no call over the same bytes, or with the same arithmetic, can beat on this
// machine. Riffle publishes every time beside a roofline measured in the same run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "riffle/attention.h"
#include "riffle/export.h"
#include "riffle/runtime.h"
#include "riffle/types.h"

namespace riffle {

// Reads every byte of [data, data + bytes) once, in order, one contiguous chunk per thread, and
// returns the largest byte. No useful pass over that memory is faster, so its time is the roofline
// of everything that must read the memory. Any alignment.
RIFFLE_API uint8_t ReadMax(const void* data, size_t bytes, const CallOptions& options = {});

// The roofline of decode: reads the bytes of the keys and values of every sequence of `batch` once,
// and returns the largest byte. The order, the prefetching, the division among threads and the
// pages are those of PagedAttention in decode.
RIFFLE_API uint8_t ReadPages(const PagedKv& keys, const PagedKv& values, const PagedBatch& batch,
                             const CallOptions& options = {});

// The roofline of prefill: FLOP/s of independent dot-product instructions on registers, on all
// threads, measured by this call in about `seconds`. kBF16: pairs of bf16 on targets that have
// them, otherwise f32 FMA.
RIFFLE_API double DotPeak(DType dtype, double seconds = 0.02, const CallOptions& options = {});

}  // namespace riffle

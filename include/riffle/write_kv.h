// Writing tokens' keys and values into pages, wherever an engine has placed them: copied, rounded
// or quantised.
//
//   std::vector<int64_t> slots = {page * page_size + offset, ...};  // one a token
//   WriteKv(keys, values, slots, key_pages, value_pages);
//
// How an element x of f32, f16 or bf16 is written. All conversions round to the nearest, ties to
// even, keep subnormals, and give the same bits on every SIMD target.
//   f32, f16, bf16, e5m2  as IEEE 754 (and PyTorch) convert: what overflows is infinite, NaN is NaN
//   e4m3                  what overflows saturates to +-448, infinities too; NaN is NaN
//   i8                    saturates to -128..127; NaN is 0
// With scales, x / (scale / divisor) is written, two divisions in f32; a scale of 0 gives zeros.
//
// Block formats are written from f32 with the bits that the `gguf` Python package's quantize()
// gives (Q8_0, Q4_0, Q4_1, Q5_0, Q5_1; version 0.19) and, for IQ4_NL, that ggml's
// quantize_row_iq4_nl_ref() gives when its multiplications and additions are not contracted. Where
// these references leave a result to the machine, it is defined here: a NaN or an infinity in a
// block makes its scale NaN or infinite and its codes those of 0; if the reciprocal of a tiny scale
// overflows, the codes are those of 0 too.
#pragma once

#include <cstdint>

#include "riffle/attention.h"
#include "riffle/export.h"
#include "riffle/indices.h"
#include "riffle/runtime.h"
#include "riffle/types.h"

namespace riffle {

// A pool of keys, or of values, to write to, with the members of PagedKv, to which it converts.
struct PagedKvOut {
  void* data = nullptr;
  DType dtype = DType::kF32;  // f32, f16, bf16, e4m3, e5m2 or i8; u8 for a block format
  int64_t num_pages = 0;
  int64_t page_size = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;  // for a block format a multiple of 32
  int64_t page_stride = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
  KvScales scales = {};  // optional for e4m3 and e5m2 (no data: all 1), required for i8
  KvFormat format = KvFormat::kPlain;

  // Null: elements are divided by the scales at scales.data, which is only read. Otherwise a
  // scale is made for each row that is written, or for each group of it, and stored here, in the
  // dtype and strides that `scales` names; scales.data is not read and may be null or the same
  // address. No two rows or groups may share a scale. The scale is amax / 448 (e4m3), amax / 57344
  // (e5m2) or amax / 127 (i8), times the divisor, where amax is the largest magnitude. It is
  // rounded to its dtype (e8m0: up to a power of two), and elements are divided by the rounded
  // scale; if rounding made it smaller, quotients saturate at +-57344 in e5m2 too. A NaN in a row
  // makes its scale NaN, an infinity makes it infinite (NaN in e8m0).
  void* computed_scales = nullptr;

  // The pool as PagedAttention reads it.
  operator PagedKv() const {  // NOLINT(google-explicit-constructor): the same pool, read
    PagedKv kv{data,        dtype,        num_pages,   page_size, kv_heads, head_dim,
               page_stride, token_stride, head_stride, scales,    format};
    kv.scales.data = computed_scales != nullptr ? computed_scales : scales.data;
    return kv;
  }
};

// Writes token t to slots[t] = page * page_size + offset of both pools; -1: the token is skipped.
// If slots are equal, the last token wins, on any number of threads.
//   keys         [tokens, kv_heads, head_dim of key_pages] f32|f16|bf16, any alignment and strides
//   values       [tokens, kv_heads, head_dim of value_pages], likewise
//   slots        [tokens] int32 or int64
//   key_pages, value_pages  the same num_pages, page_size and kv_heads; head_dim, dtype, format,
//                scales and strides may differ. head_dim may be any number from 1 on, but must
//                be a multiple of 32 for a block format
// Everything is checked first, so that nothing is written on error: Error of kBadShape, kBadDType,
// kBadOption (group, divisor, scales where there must be none), kBadPage (a slot outside the pool),
// kOverlap (pools that share bytes with each other, with themselves or with an input),
// kOutOfMemory. The pool's threads take part in large writes; a few tokens are written by the
// calling thread alone. Allocates nothing once the pool's scratch has grown.
RIFFLE_API void WriteKv(const HeadsView& keys, const HeadsView& values, const IndexSpan& slots,
                        const PagedKvOut& key_pages, const PagedKvOut& value_pages,
                        const CallOptions& options = {});

}  // namespace riffle

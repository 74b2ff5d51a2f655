// Masks as kernels read them.
#pragma once

#include <cstdint>

#include "riffle/types.h"

namespace riffle::attention {

// What a row of a mask does to a block of keys. Bit g: some key of group g (16 keys) is hidden, or
// has something added to its logit. Bit 4 + g: some key of group g is seen. The bits of several
// rows are joined by `or`.
inline constexpr uint8_t kMaskAlters = 0x0f;
inline constexpr uint8_t kMaskShows = 0xf0;

// The codes of this many neighbouring tokens, from a multiple of it on, are also kept joined: a
// work item asks for the codes of 64 tokens at once, for each of its blocks.
inline constexpr int64_t kJoinedTokens = 8;

// AttentionMask in bytes, with the code of each block of each of its rows.
struct MaskArgs {
  const uint8_t* data = nullptr;  // null: no mask
  DType dtype = DType::kF32;
  int64_t token_stride = 0;  // 0 if one row serves all tokens
  int64_t head_stride = 0;   // 0 if one row serves all heads
  int64_t key_stride = 0;
  bool by_head = false;  // heads have rows of their own
  const uint8_t* codes = nullptr;
  int64_t code_token_stride = 0;  // as above
  int64_t code_head_stride = 0;
  const uint8_t* joined_codes = nullptr;  // of kJoinedTokens tokens, strides as of `codes`; or null

  // The codes of a row's blocks.
  const uint8_t* Codes(int64_t token, int64_t head) const {
    return codes + token * code_token_stride + head * code_head_stride;
  }
  // The joined codes of tokens [n * kJoinedTokens, (n + 1) * kJoinedTokens).
  const uint8_t* JoinedCodes(int64_t n, int64_t head) const {
    return joined_codes + n * code_token_stride + head * code_head_stride;
  }
  const uint8_t* Row(int64_t token, int64_t head) const {
    return data + token * token_stride + head * head_stride;
  }
};

}  // namespace riffle::attention

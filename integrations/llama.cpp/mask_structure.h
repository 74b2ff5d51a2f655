// What a mask of llama.cpp means, found once for all layers of a graph: a purely causal mask needs
// no mask but an option, and tokens of different sequences in one cache become sequences.
#pragma once

#include <cstdint>
#include <vector>

namespace riffle::llama {

// f16 [streams, tokens, keys]: 0 or -inf, or any value that is added. Strides in elements, keys
// are contiguous.
struct MaskView {
  const uint16_t* data = nullptr;
  int64_t streams = 0;
  int64_t tokens = 0;  // of a stream
  int64_t keys = 0;
  int64_t token_stride = 0;
  int64_t stream_stride = 0;
};

// Divides queries into sequences. Queries are numbered stream * tokens + token of the stream.
struct MaskStructure {
  // Token i of a stream sees the first kv_len - tokens + 1 + i keys of its sequence, with nothing
  // added: the mask says what `causal` says. One sequence a stream.
  bool causal = false;
  // Every token sees the first kv_len keys of its sequence, with nothing added.
  bool full = false;
  std::vector<int32_t> first_token;  // [sequences + 1], from 0 to all tokens
  std::vector<int32_t> kv_len;       // [sequences]; keys behind it are hidden from all its tokens
};

// Without `causal` and `full` the mask is needed. Adjacent tokens that see mostly the same blocks
// of keys share a sequence, so that these keys are read once; any other token is a sequence by
// itself, so that only its own keys are read.
void FindMaskStructure(const MaskView& mask, MaskStructure& structure);

}  // namespace riffle::llama

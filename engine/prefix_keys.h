// Keys for the contents of KV pages, by which a KvCache finds them again (riffle::BlockKey).
//
// A page's key is a hash of its tokens and of all tokens before them, so equal keys mean equal
// prefixes, and therefore equal keys and values in attention. It is the first half of a 256-bit
// chain value: Threefry-4x64 with 72 rounds (the cipher of Skein without its tweak) in the
// construction of Matyas, Meyer and Oseas, h' = E_h(tokens) ^ tokens. Finding two prefixes with the
// same key takes about 2^64 trials.
//
// Sources: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011); Ferguson et al.,
// "The Skein hash function family" (2010).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "riffle/kv_cache.h"

namespace riffle::engine {

class PrefixKeys {
 public:
  // Adds the keys of the full pages of `tokens`, which continue the tokens of earlier calls. If it
  // throws std::bad_alloc, nothing has changed.
  void Extend(std::span<const int32_t> tokens, int64_t page_size);

  std::span<const BlockKey> keys() const { return keys_; }

 private:
  std::array<uint64_t, 4> chain_ = {};  // the chain value after the last key
  std::vector<BlockKey> keys_;
};

}  // namespace riffle::engine

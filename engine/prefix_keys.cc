#include "engine/prefix_keys.h"

#include <Random123/threefry.h>

#include <algorithm>

namespace riffle::engine {
namespace {

using Chain = std::array<uint64_t, 4>;
constexpr size_t kTokensPerWord = 2;

// The chain value after up to 8 more tokens. Zeros may fill the rest without ambiguity, as pages
// have the same size in all chains of a cache.
Chain Next(const Chain& chain, std::span<const int32_t> tokens) {
  using Cipher = r123::Threefry4x64_R<72>;
  Cipher::ctr_type block = {{0, 0, 0, 0}};
  for (size_t i = 0; i < tokens.size(); ++i) {
    const uint64_t token = static_cast<uint32_t>(tokens[i]);
    block[i / kTokensPerWord] |= token << (32 * (i % kTokensPerWord));
  }
  const Cipher::key_type key = {{chain[0], chain[1], chain[2], chain[3]}};
  const Cipher::ctr_type made = Cipher()(block, key);
  Chain next;
  for (size_t i = 0; i < next.size(); ++i) {
    next[i] = made[i] ^ block[i];
  }
  return next;
}

}  // namespace

void PrefixKeys::Extend(std::span<const int32_t> tokens, int64_t page_size) {
  constexpr size_t kTokensPerBlock = kTokensPerWord * std::tuple_size_v<Chain>;
  const auto page = static_cast<size_t>(page_size);
  const size_t pages = tokens.size() / page;
  if (pages > keys_.capacity()) {
    keys_.reserve(std::max(pages, 2 * keys_.capacity()));
  }
  while (keys_.size() < pages) {
    const auto contents = tokens.subspan(keys_.size() * page, page);
    for (size_t at = 0; at < page; at += kTokensPerBlock) {
      chain_ = Next(chain_, contents.subspan(at, std::min(kTokensPerBlock, page - at)));
    }
    keys_.push_back({{chain_[0], chain_[1]}});
  }
}

}  // namespace riffle::engine

#include "mask_structure.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace riffle::llama {
namespace {

constexpr uint16_t kHidden = 0xfc00;     // -inf
constexpr uint16_t kMagnitude = 0x7fff;  // all bits but the sign
constexpr int64_t kBlock = 64;           // keys that PagedAttention skips as one

// One row of the mask.
struct Row {
  int64_t end = 0;        // one past the last key that is seen
  bool prefix = true;     // keys [0, end) are all seen, with nothing added
  uint64_t* blocks = {};  // bit b of the list: a key of block b is seen
};

// Elements of a block: how many are 0, and how many are -inf. Without branches, for the compiler.
struct Counts {
  int zeros = 0;
  int hidden = 0;
};

Counts Count(const uint16_t* x, int64_t n) {
  uint16_t zeros = 0;
  uint16_t hidden = 0;
  for (int64_t i = 0; i < n; ++i) {
    zeros = static_cast<uint16_t>(zeros + ((x[i] & kMagnitude) == 0));
    hidden = static_cast<uint16_t>(hidden + (x[i] == kHidden));
  }
  return {zeros, hidden};
}

void ReadRow(const uint16_t* x, int64_t keys, Row& row) {
  bool open = true;  // no key before this block is hidden
  for (int64_t begin = 0; begin < keys; begin += kBlock) {
    const int64_t n = std::min(kBlock, keys - begin);
    const Counts counts = Count(x + begin, n);
    if (counts.hidden == n) {
      open = false;
      continue;
    }
    row.blocks[begin / kBlock / 64] |= uint64_t{1} << (begin / kBlock % 64);
    int64_t last = n;
    while (x[begin + last - 1] == kHidden) {
      --last;
    }
    row.end = begin + last;
    // Seen keys of a prefix are zeros that come before all others.
    row.prefix &= open && counts.zeros == last && counts.hidden == n - last;
    open = counts.zeros == n;
  }
}

// Whether sequences that see these blocks read less together than alone, by a clear margin.
bool MostlyTheSame(const uint64_t* a, const uint64_t* b, int64_t words) {
  int64_t both = 0;
  int64_t any = 0;
  for (int64_t i = 0; i < words; ++i) {
    both += std::popcount(a[i] & b[i]);
    any += std::popcount(a[i] | b[i]);
  }
  return 2 * both >= any;
}

}  // namespace

void FindMaskStructure(const MaskView& mask, MaskStructure& structure) {
  const int64_t words = (mask.keys + kBlock * 64 - 1) / (kBlock * 64);
  std::vector<uint64_t> bits(static_cast<size_t>(2 * words));
  structure.causal = mask.tokens > 1;
  structure.full = true;
  structure.first_token.assign(1, 0);
  structure.kv_len.clear();
  std::vector<int64_t> stream_end;  // keys that the last token of each stream sees
  uint64_t* previous = bits.data();
  uint64_t* current = bits.data() + words;
  for (int64_t stream = 0; stream < mask.streams; ++stream) {
    int64_t last_end = 0;
    for (int64_t token = 0; token < mask.tokens; ++token) {
      std::fill_n(current, words, 0);
      Row row;
      row.blocks = current;
      ReadRow(mask.data + stream * mask.stream_stride + token * mask.token_stride, mask.keys, row);
      const auto end = static_cast<int32_t>(row.end);
      structure.causal &= row.prefix && (token == 0 ? end >= 1 : end == last_end + 1);
      structure.full &= row.prefix && (token == 0 || end == last_end);
      last_end = end;
      if (token > 0 && MostlyTheSame(previous, current, words)) {
        structure.kv_len.back() = std::max(structure.kv_len.back(), end);
      } else {
        if (!structure.kv_len.empty()) {
          structure.first_token.push_back(static_cast<int32_t>(stream * mask.tokens + token));
        }
        structure.kv_len.push_back(end);
      }
      std::swap(previous, current);
    }
    stream_end.push_back(last_end);
  }
  structure.first_token.push_back(static_cast<int32_t>(mask.streams * mask.tokens));
  if (structure.causal || structure.full) {
    structure.first_token.clear();
    structure.kv_len.clear();
    for (int64_t stream = 0; stream < mask.streams; ++stream) {
      structure.first_token.push_back(static_cast<int32_t>(stream * mask.tokens));
      structure.kv_len.push_back(static_cast<int32_t>(stream_end[static_cast<size_t>(stream)]));
    }
    structure.first_token.push_back(static_cast<int32_t>(mask.streams * mask.tokens));
  }
}

}  // namespace riffle::llama

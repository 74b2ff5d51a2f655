// Finds the rows of keys and values, and prefetches them in time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "attention/attention_args.h"

namespace riffle::attention {

// Rows are handled 16 at a time: one page of the usual size, a quarter of a block.
inline constexpr int kGroupKeys = 16;
inline constexpr int kGroupsPerBlock = kBlock / kGroupKeys;

// Replaces rows that no query sees, so that nothing outside of the visible range is read: zeros in
// every code, and scales of 0.
alignas(64) inline constexpr uint8_t kZeroRow[kMaxHeadDim * 4] = {};

struct KvRows {
  const uint8_t* row[kGroupKeys];
};

inline KvRows ZeroRows() {
  KvRows rows;
  std::fill_n(rows.row, kGroupKeys, kZeroRow);
  return rows;
}

// The rows of a tile; rows of zeros at first.
struct TileRows {
  TileRows() {
    std::fill_n(keys, kGroupsPerBlock, ZeroRows());
    std::fill_n(values, kGroupsPerBlock, ZeroRows());
  }
  KvRows keys[kGroupsPerBlock];
  KvRows values[kGroupsPerBlock];
};

// Prefetches into L2. GCC drops calls of a function that only prefetches, as if it had no effect;
// the empty asm statement counts as an effect.
inline void PrefetchLine(const uint8_t* line) {
  __builtin_prefetch(line, 0, 2);
  __asm__ volatile("" : : "r"(line));
}

inline void PrefetchRows(const KvRows& rows, size_t bytes) {
  for (const uint8_t* row : rows.row) {
    if (row == kZeroRow) {
      continue;
    }
    for (size_t i = 0; i < bytes; i += 64) {
      PrefetchLine(row + i);
    }
  }
}

// The page that holds a position. Pages of a power of two, the usual ones, need no division.
inline int PageOf(const AttentionArgs& args, int position) {
  return args.page_shift >= 0 ? position >> args.page_shift : position / args.page_size;
}

// Rows [begin, begin + 16) of KV head `head` of sequence `seq` where one page holds them all and
// all are in `keys`, as most groups are: row i at data + i * stride. Else data is null.
struct RowRun {
  const uint8_t* data;
  int64_t stride;
};
inline RowRun FindRun(const AttentionArgs& args, const KvBytes& kv, int seq, int head, int begin,
                      KeyRange keys) {
  const int page = PageOf(args, begin);
  const int token = begin - page * args.page_size;
  if (begin < keys.begin || begin + kGroupKeys > keys.end || args.page_size - token < kGroupKeys) {
    return {nullptr, 0};
  }
  const int64_t number = args.page_numbers[args.page_begin[seq] + page];
  return {kv.data + head * kv.head_stride + number * kv.page_stride + token * kv.token_stride,
          kv.token_stride};
}

// *rows = rows [begin, begin + 16) of KV head `head` of sequence `seq`; those outside `keys` are
// zeros. Written in place rather than returned: the vector loads of a copy waited for the stores of
// single pointers, a tenth of a decode over Q4_0.
inline void FindRows(const AttentionArgs& args, const KvBytes& kv, int seq, int head, int begin,
                     KeyRange keys, KvRows* rows) {
  if (const RowRun run = FindRun(args, kv, seq, head, begin, keys); run.data != nullptr) {
    const uint8_t* data = run.data;
    for (const uint8_t*& row : rows->row) {
      row = data;
      data += run.stride;
    }
    return;
  }
  if (begin >= keys.end) {
    std::fill_n(rows->row, kGroupKeys, kZeroRow);
    return;
  }
  const int32_t* pages = args.page_numbers + args.page_begin[seq];
  const uint8_t* base = kv.data + head * kv.head_stride;
  const int from = std::max(begin, keys.begin);
  const int to = std::min(begin + kGroupKeys, keys.end);
  int i = 0;
  for (; i < from - begin && i < kGroupKeys; ++i) {
    rows->row[i] = kZeroRow;
  }
  int page = PageOf(args, from);
  int token = from - page * args.page_size;
  while (i < to - begin) {
    const uint8_t* data = base + pages[page] * kv.page_stride + token * kv.token_stride;
    const int stop = i + std::min(args.page_size - token, to - begin - i);
    for (; i < stop; ++i, data += kv.token_stride) {
      rows->row[i] = data;
    }
    token = 0;
    ++page;
  }
  for (; i < kGroupKeys; ++i) {
    rows->row[i] = kZeroRow;
  }
}

// Keys that any query of a work item sees.
inline KeyRange WorkItemKeys(const AttentionArgs& args, const WorkItem& item) {
  const int first = args.kv_lens[item.seq] - args.q_len(item.seq);
  KeyRange keys{args.VisibleKeys(item.seq, first + item.query_begin).begin,
                args.VisibleKeys(item.seq, first + item.query_end - 1).end};
  keys.begin = std::max(keys.begin, item.split_begin * kKvSplit);
  keys.end = std::min(keys.end, item.split_end * kKvSplit);
  return keys;
}

// What the mask does to a block of keys, in the bits of mask_args.h, for queries
// [query_begin, query_end) of a sequence and the query heads of KV head `head`; kMaskShows without
// a mask.
inline uint8_t MaskCodeOf(const AttentionArgs& args, int seq, int query_begin, int query_end,
                          int head, int block) {
  if (args.mask.data == nullptr) {
    return kMaskShows;
  }
  const MaskArgs& mask = args.mask;
  const int group = args.shape.group;
  const int heads = mask.by_head ? group : 1;
  const int64_t first = args.first_token(seq) + query_begin;
  const int64_t end = first + (mask.code_token_stride != 0 ? query_end - query_begin : 1);
  // Computed here, since in the loop g++ 12 with both sanitizers reads `block` from memory that
  // nothing has written.
  const int index = block / kBlock;
  uint8_t code = 0;
  for (int64_t token = first; token < end && code != (kMaskShows | kMaskAlters);) {
    const bool joined =
        mask.joined_codes != nullptr && token % kJoinedTokens == 0 && token + kJoinedTokens <= end;
    for (int i = 0; i < heads; ++i) {
      const int64_t of_head = int64_t{head} * group + i;
      const uint8_t* codes =
          joined ? mask.JoinedCodes(token / kJoinedTokens, of_head) : mask.Codes(token, of_head);
      code |= codes[index];
    }
    token += joined ? kJoinedTokens : 1;
  }
  return code;
}

// Whether no row of a work item sees any key of a block of a KV head.
inline bool IsHidden(const AttentionArgs& args, const WorkItem& item, int head, int block) {
  const uint8_t code = MaskCodeOf(args, item.seq, item.query_begin, item.query_end, head, block);
  return (code & kMaskShows) == 0;
}

// Walks the tiles (block of keys, KV head) of a chunk in the order in which kernels take them: all
// heads of a block before the next block, so that memory is read in page order. Hidden tiles are
// left out. One cursor runs ahead and brings tiles into L2, across the ends of KV splits and
// sequences. On Zen 4 with 33 GB/s of streaming reads, decode read 14 GB/s without it, 17 with
// prefetches into L1, and 25 to 27 into L2.
class TileCursor {
 public:
  TileCursor(const AttentionArgs& args, const WorkItem* begin, const WorkItem* end)
      : args_(args), item_(begin), end_(end) {
    BeginItem();
    if (AtHidden()) {
      Next();
    }
  }

  // Prefetches the scales of group `group` of the tile's keys and values, unless they come with
  // their rows.
  void PrefetchScales(int group) const {
    PrefetchScales(group, args_.keys);
    PrefetchScales(group, args_.values);
  }

  // Prefetches group `index` of the tile's keys, or group `index` - kGroupsPerBlock of its values.
  void Prefetch(int index) const {
    if (done()) {
      return;
    }
    const bool of_keys = index < kGroupsPerBlock;
    const KvPages& kv = of_keys ? args_.keys : args_.values;
    PrefetchScales(index % kGroupsPerBlock, kv);
    if (of_keys || !args_.values_in_keys) {
      KvRows rows;
      FindIn(kv, index % kGroupsPerBlock, &rows);
      PrefetchRows(rows, kv.row_bytes);
    }
  }

  void Next() {
    do {
      Step();
    } while (AtHidden());
  }

  bool done() const { return item_ == end_; }
  const WorkItem& item() const { return *item_; }
  int head() const { return head_; }
  int block() const { return block_; }
  KeyRange keys() const { return keys_; }

 private:
  void Step() {
    if (item_ == end_) {
      return;
    }
    if (++head_ < item_->head_end) {
      return;
    }
    head_ = item_->head_begin;
    block_ += kBlock;
    if (block_ >= keys_.end) {
      ++item_;
      BeginItem();
    }
  }

  bool AtHidden() const { return !done() && IsHidden(args_, *item_, head_, block_); }

  void BeginItem() {
    for (; item_ != end_; ++item_) {
      keys_ = WorkItemKeys(args_, *item_);
      if (!keys_.empty()) {
        head_ = item_->head_begin;
        block_ = keys_.begin / kBlock * kBlock;
        return;
      }
    }
  }

  // Scales of neighbouring tokens mostly share a cache line. Those of blocks come with their rows.
  void PrefetchScales(int group, const KvPages& kv) const {
    if (kv.scales_per_row > 0 && !IsBlocks(kv.code)) {
      KvRows scales;
      FindIn(kv.scales, group, &scales);
      for (int i = 0; i < kGroupKeys; i += 4) {
        PrefetchLine(scales.row[i]);
      }
    }
  }

  void FindIn(const KvBytes& kv, int group, KvRows* rows) const {
    // Past the last tile: zero rows.
    const KeyRange keys = done() ? KeyRange{0, 0} : keys_;
    FindRows(args_, kv, done() ? 0 : item_->seq, head_, block_ + group * kGroupKeys, keys, rows);
  }

  const AttentionArgs& args_;
  const WorkItem* item_;
  const WorkItem* end_;
  KeyRange keys_{0, 0};
  int head_ = 0;
  int block_ = 0;
};

// How many tiles the cursor runs ahead: one, or as many as fit 128 KiB (four of 64 keys of bf16 at
// head_dim 128).
inline int TilesAhead(const AttentionArgs& args) {
  const size_t tile = kBlock * args.kv_row_bytes();
  return static_cast<int>(std::max<size_t>(1, (128 << 10) / tile));
}

}  // namespace riffle::attention

#include "attention/mask.h"

#include <algorithm>
#include <cstring>

#include "attention/attention_plan.h"
#include "attention/kv_rows.h"
#include "core/strided.h"

namespace riffle::attention {
namespace {

int64_t Blocks(int64_t longest) { return (longest + kBlock - 1) / kBlock; }

// Elements as bits: x == kHides hides its key; (x & kMagnitude) == 0 changes nothing.
template <DType kDType>
struct Bits;
template <>
struct Bits<DType::kF32> {
  using Word = uint32_t;
  static constexpr Word kHides = 0xff800000, kMagnitude = 0x7fffffff;
};
template <>
struct Bits<DType::kF16> {
  using Word = uint16_t;
  static constexpr Word kHides = 0xfc00, kMagnitude = 0x7fff;
};
template <>
struct Bits<DType::kBF16> {
  using Word = uint16_t;
  static constexpr Word kHides = 0xff80, kMagnitude = 0x7fff;
};

// The code of a group whose n elements lie `stride` bytes apart, as bits 0 and 4.
template <DType kDType>
uint8_t GroupCode(const uint8_t* row, int64_t stride, int64_t n) {
  if constexpr (kDType == DType::kU8) {
    bool hides = false;
    bool shows = false;
    for (int64_t i = 0; i < n; ++i) {
      hides |= row[i * stride] == 0;
      shows |= row[i * stride] != 0;
    }
    return static_cast<uint8_t>(hides | shows << 4);
  } else {
    using Word = typename Bits<kDType>::Word;
    Word hides = 0;  // without branches, so that the compiler vectorises the loop
    Word shows = 0;
    Word adds = 0;
    for (int64_t i = 0; i < n; ++i) {
      Word x;
      std::memcpy(&x, row + i * stride, sizeof(x));
      const bool hidden = x == Bits<kDType>::kHides;
      const bool zero = (x & Bits<kDType>::kMagnitude) == 0;
      hides |= static_cast<Word>(hidden);
      shows |= static_cast<Word>(zero);
      adds |= static_cast<Word>(!hidden & !zero);
    }
    return static_cast<uint8_t>((hides | adds) | (shows | adds) << 4);
  }
}

// The same for a whole group of neighbouring bools.
uint8_t GroupCodeOf16Bools(const uint8_t* row) {
  constexpr uint64_t kOnes = 0x0101010101010101;
  uint64_t x[2];
  std::memcpy(x, row, sizeof(x));
  const auto zeros = [](uint64_t bytes) { return (bytes - kOnes) & ~bytes & kOnes << 7; };
  const bool hides = (zeros(x[0]) | zeros(x[1])) != 0;
  const bool shows = (x[0] | x[1]) != 0;
  return static_cast<uint8_t>(hides | shows << 4);
}

template <DType kDType>
void ScanRow(const MaskArgs& mask, const uint8_t* row, int64_t keys, uint8_t* codes) {
  constexpr auto kSize = static_cast<int64_t>(SizeOf(kDType));
  std::fill_n(codes, Blocks(keys), uint8_t{0});
  for (int64_t key = 0; key < keys; key += kGroupKeys) {
    const int64_t n = std::min<int64_t>(kGroupKeys, keys - key);
    const uint8_t* from = row + key * mask.key_stride;
    uint8_t code = 0;
    if (kDType == DType::kU8 && mask.key_stride == kSize && n == kGroupKeys) {
      code = GroupCodeOf16Bools(from);
    } else {  // kSize: a stride that the compiler knows
      code = mask.key_stride == kSize ? GroupCode<kDType>(from, kSize, n)
                                      : GroupCode<kDType>(from, mask.key_stride, n);
    }
    codes[key / kBlock] |= static_cast<uint8_t>(code << key % kBlock / kGroupKeys);
  }
}

// The codes of rows [begin, end), where row = token * heads + head.
template <DType kDType>
void ScanRows(const MaskArgs& mask, int64_t heads, int64_t begin, int64_t end, int64_t keys,
              uint8_t* codes) {
  int64_t token = begin / heads;
  int64_t head = begin % heads;
  for (int64_t row = begin; row < end; ++row, codes += Blocks(keys)) {
    ScanRow<kDType>(mask, mask.Row(token, head), keys, codes);
    if (++head == heads) {
      head = 0;
      ++token;
    }
  }
}

auto ChooseRowScanner(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return &ScanRows<DType::kF16>;
    case DType::kBF16:
      return &ScanRows<DType::kBF16>;
    case DType::kU8:
      return &ScanRows<DType::kU8>;
    default:
      return &ScanRows<DType::kF32>;
  }
}

// to[0, blocks) = the codes of kJoinedTokens rows `stride` bytes apart, joined.
void JoinCodes(const uint8_t* rows, int64_t stride, int64_t blocks, uint8_t* to) {
  std::copy_n(rows, blocks, to);
  for (int64_t row = 1; row < kJoinedTokens; ++row) {
    for (int64_t block = 0; block < blocks; ++block) {
      to[block] |= rows[row * stride + block];
    }
  }
}

// Joined codes pay where work items have many tokens. Fewer rows are shared among threads one by
// one.
bool HasJoinedCodes(const AttentionMask& mask) { return mask.tokens >= 4 * kJoinedTokens; }

// Rows of codes: those of tokens, then joined ones.
int64_t CodeRows(const AttentionMask& mask) {
  const int64_t joined = HasJoinedCodes(mask) ? mask.tokens / kJoinedTokens : 0;
  return core::SaturatingMul(mask.tokens + joined, mask.heads);
}

// About how many elements a task of FindMaskCodes reads. A row takes at least as long as 32.
constexpr int64_t kTaskElements = 1 << 16;
constexpr int64_t kMinRowElements = 32;

}  // namespace

size_t MaskCodeCount(const AttentionMask& mask, int64_t longest) {
  return mask.data == nullptr
             ? 0
             : static_cast<size_t>(core::SaturatingMul(CodeRows(mask), Blocks(longest)));
}

MaskArgs FindMaskCodes(const AttentionMask& mask, int64_t longest, std::span<uint8_t> codes,
                       core::Lease& lease) {
  MaskArgs args;
  if (mask.data == nullptr) {
    return args;
  }
  const auto element = static_cast<int64_t>(SizeOf(mask.dtype));
  const int64_t blocks = Blocks(longest);
  args.data = static_cast<const uint8_t*>(mask.data);
  args.dtype = mask.dtype;
  args.token_stride = mask.tokens > 1 ? core::SaturatingMul(mask.token_stride, element) : 0;
  args.head_stride = mask.heads > 1 ? core::SaturatingMul(mask.head_stride, element) : 0;
  args.key_stride = core::SaturatingMul(mask.key_stride, element);
  args.by_head = mask.heads > 1;
  args.codes = codes.data();
  args.code_token_stride = mask.tokens > 1 ? mask.heads * blocks : 0;
  args.code_head_stride = mask.heads > 1 ? blocks : 0;
  const auto find = ChooseRowScanner(mask.dtype);
  const int64_t row_elements = std::max(longest, kMinRowElements);
  if (!HasJoinedCodes(mask)) {
    const int64_t rows = mask.tokens * mask.heads;
    const int64_t rows_of_task = std::max<int64_t>(1, kTaskElements / row_elements);
    lease.Run((rows + rows_of_task - 1) / rows_of_task, [&](int64_t task, uint8_t*) {
      const int64_t begin = task * rows_of_task;
      find(args, mask.heads, begin, std::min(rows, begin + rows_of_task), longest,
           codes.data() + begin * blocks);
    });
    return args;
  }
  args.joined_codes = codes.data() + mask.tokens * mask.heads * blocks;
  // A step is the tokens whose codes are joined, of all heads.
  const int64_t steps = (mask.tokens + kJoinedTokens - 1) / kJoinedTokens;
  const int64_t rows_of_step = kJoinedTokens * mask.heads;
  const int64_t steps_of_task = std::max<int64_t>(1, kTaskElements / (rows_of_step * row_elements));
  lease.Run((steps + steps_of_task - 1) / steps_of_task, [&](int64_t task, uint8_t*) {
    const int64_t end = std::min(steps, (task + 1) * steps_of_task);
    for (int64_t step = task * steps_of_task; step < end; ++step) {
      const int64_t token = step * kJoinedTokens;
      const int64_t last = std::min(mask.tokens, token + kJoinedTokens);
      uint8_t* rows = codes.data() + token * mask.heads * blocks;
      find(args, mask.heads, token * mask.heads, last * mask.heads, longest, rows);
      if (last - token < kJoinedTokens) {
        continue;
      }
      for (int64_t head = 0; head < mask.heads; ++head) {
        const int64_t joined_row = (mask.tokens + step) * mask.heads + head;
        JoinCodes(rows + head * blocks, mask.heads * blocks, blocks,
                  codes.data() + joined_row * blocks);
      }
    }
  });
  return args;
}

}  // namespace riffle::attention

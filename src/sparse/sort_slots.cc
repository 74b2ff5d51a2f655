#include "sparse/sort_slots.h"

#include <algorithm>
#include <utility>

namespace riffle::sparse {
namespace {

constexpr int kDigitBits = 11;
constexpr uint32_t kDigits = 1u << kDigitBits;

// One pass of a radix sort, from `from` to `to`.
void SortDigit(const int32_t* from, int64_t count, int shift, int32_t* to) {
  uint32_t start[kDigits] = {};
  const auto digit = [&](int32_t slot) {
    return static_cast<uint32_t>(slot) >> shift & (kDigits - 1);
  };
  for (int64_t i = 0; i < count; ++i) {
    ++start[digit(from[i])];
  }
  uint32_t sum = 0;
  for (uint32_t& at : start) {
    const uint32_t here = at;
    at = sum;
    sum += here;
  }
  for (int64_t i = 0; i < count; ++i) {
    to[start[digit(from[i])]++] = from[i];
  }
}

}  // namespace

int64_t SortSlots(std::span<const int32_t> slots, int64_t limit, int32_t* to, int32_t* other) {
  int64_t count = 0;
  int32_t last = 0;
  int32_t max_slot = 0;
  bool sorted = true;
  for (const int32_t& at : slots) {
    const int32_t slot = *const_cast<const volatile int32_t*>(&at);  // read once: it may change
    if (slot < 0 || slot >= limit) {
      continue;
    }
    sorted = sorted && slot >= last;
    max_slot = std::max(max_slot, slot);
    last = slot;
    to[count++] = slot;
  }
  if (sorted) {
    return count;
  }
  if (count < 256) {  // std::sort is faster than clearing the counters of a digit
    std::sort(to, to + count);
    return count;
  }
  int32_t* from = to;
  int32_t* free = other;
  for (int shift = 0; shift < 31 && static_cast<uint32_t>(max_slot) >> shift != 0;
       shift += kDigitBits) {
    SortDigit(from, count, shift, free);
    std::swap(from, free);
  }
  if (from != to) {
    std::copy_n(from, count, to);
  }
  return count;
}

}  // namespace riffle::sparse

// Any call of WriteKv on small pools: a refused call must write nothing; an accepted one must write
// the rows of its slots and no other byte, and the rows must decode to about the elements given.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "fuzz/bytes.h"
#include "riffle/error.h"
#include "riffle/runtime.h"
#include "riffle/write_kv.h"
#include "testing/write_kv_reference.h"

namespace {

using riffle::DType;
using riffle::HeadsView;
using riffle::IndexSpan;
using riffle::KvFormat;
using riffle::PagedKv;
using riffle::PagedKvOut;
using riffle::fuzz::Bytes;

void Expect(bool ok) {
  if (!ok) std::abort();
}

// Usually `good`; now and then a small number, or one too large for any memory. Nothing in between:
// it could be valid for a larger pool than this one.
int64_t PerturbOccasionally(Bytes& bytes, int64_t good) {
  if (!bytes.OneIn(64)) return good;
  static constexpr int64_t kHuge[] = {INT64_MIN, INT64_MAX, INT64_MAX / 2, int64_t{INT32_MAX} + 1};
  return bytes.OneIn(2) ? kHuge[bytes.Take<uint8_t>() % 4] : bytes.Between(-2, 70);
}

// Large strides become the largest: others may fit an address, and then WriteKv cannot know that
// the pool is too small for them.
int64_t PerturbStrideOccasionally(Bytes& bytes, int64_t good) {
  const int64_t stride = PerturbOccasionally(bytes, good);
  return stride > INT32_MAX ? INT64_MAX : stride;
}

// Keys or values: what is written, and a pool with room for any layout of its axes.
struct Side {
  static constexpr size_t kRoom = 1 << 15;
  static constexpr int64_t kMargin = 1 << 10;  // for strides below zero

  Side(Bytes& bytes, int64_t tokens, int64_t pages, int64_t page_size, int64_t heads)
      : pool(kRoom, 0xa5), scale_memory(kRoom, 0xa5) {
    static constexpr DType kElements[] = {DType::kF32,  DType::kF16,  DType::kBF16,
                                          DType::kE4M3, DType::kE5M2, DType::kI8};
    const int kind = bytes.Take<uint8_t>() % 12;
    view.format = static_cast<KvFormat>(kind < 6 ? 0 : kind - 5);
    view.dtype = kind < 6 ? kElements[kind] : DType::kU8;
    if (bytes.OneIn(64)) view.dtype = static_cast<DType>(bytes.Take<uint8_t>() % 15);
    view.num_pages = pages;
    view.page_size = page_size;
    view.kv_heads = heads;
    view.head_dim = kind < 6 ? bytes.Between(1, 70) : 32 * bytes.Between(1, 3);
    in = {input.data(),  static_cast<DType>(bytes.Take<uint8_t>() % 3),
          tokens,        heads,
          view.head_dim, heads * view.head_dim,
          view.head_dim};
    in.dtype = bytes.OneIn(64) ? static_cast<DType>(bytes.Take<uint8_t>() % 15) : in.dtype;
    ChooseLayout(bytes);
    if (kind >= 3 && kind < 6) ScaleUp(bytes);
    in.tokens = PerturbOccasionally(bytes, in.tokens);
    in.head_dim = PerturbOccasionally(bytes, in.head_dim);
    view.head_dim = PerturbOccasionally(bytes, view.head_dim);
    view.num_pages = std::min(PerturbOccasionally(bytes, view.num_pages), pages);
    view.page_stride = PerturbStrideOccasionally(bytes, view.page_stride);
    view.head_stride = PerturbStrideOccasionally(bytes, view.head_stride);
    view.scales.token_stride = PerturbStrideOccasionally(bytes, view.scales.token_stride);
    view.scales.group = PerturbOccasionally(bytes, view.scales.group);
    input = bytes.Rest();
    input.resize(static_cast<size_t>(tokens * heads * 96 * 8), 0x3c);
    in.data = input.data();
  }

  // Three layouts with gaps, all within kRoom.
  void ChooseLayout(Bytes& bytes) {
    const int64_t row = view.format == KvFormat::kPlain
                            ? view.head_dim
                            : view.head_dim / 32 * riffle::BlockBytes(view.format);
    const int64_t gap = bytes.Take<uint8_t>() % 3;
    Strides(bytes, row + gap, gap, view.page_stride, view.token_stride, view.head_stride);
    view.data = pool.data() + kMargin + bytes.Take<uint8_t>() % 4;
  }

  void Strides(Bytes& bytes, int64_t row, int64_t gap, int64_t& page, int64_t& token,
               int64_t& head) const {
    const bool tokens_first = bytes.OneIn(2);
    int64_t& inner = tokens_first ? token : head;
    int64_t& outer = tokens_first ? head : token;
    inner = row;
    outer = row * (tokens_first ? view.page_size : view.kv_heads) + gap;
    page = outer * (tokens_first ? view.kv_heads : view.page_size) + gap;
  }

  void ScaleUp(Bytes& bytes) {
    static constexpr DType kScales[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kE8M0};
    static constexpr int64_t kGroups[] = {0, 32, 64, 128};
    view.scales.dtype = kScales[bytes.Take<uint8_t>() % 4];
    view.scales.group = kGroups[bytes.Take<uint8_t>() % 4];
    view.scales.divisor = bytes.OneIn(8) ? bytes.Take<float>() : 1.0f;
    const bool compute = bytes.OneIn(2);
    if (!compute && bytes.OneIn(3)) {
      view.scales.data = scale_memory.data() + kMargin;  // one for all
      return;
    }
    view.scales.group_stride = 1;
    Strides(bytes, 3, 0, view.scales.page_stride, view.scales.token_stride,
            view.scales.head_stride);
    (compute ? view.computed_scales = scale_memory.data() + kMargin : nullptr);
    (compute ? nullptr : view.scales.data = scale_memory.data() + kMargin);
  }

  std::vector<uint8_t> input, pool, scale_memory;
  HeadsView in;
  PagedKvOut view;
};

// A written row must decode to its elements to within half a step of the format.
void CheckRow(const Side& side, int64_t token, int64_t page, int64_t offset) {
  const PagedKv kv = side.view;
  for (int64_t h = 0; h < kv.kv_heads; ++h) {
    std::vector<float> x;
    for (int64_t i = 0; i < kv.head_dim; ++i) {
      const int64_t at = token * side.in.token_stride + h * side.in.head_stride + i;
      uint32_t code = 0;
      std::memcpy(&code,
                  static_cast<const uint8_t*>(side.in.data) +
                      at * static_cast<int64_t>(SizeOf(side.in.dtype)),
                  SizeOf(side.in.dtype));
      x.push_back(static_cast<float>(riffle::test::DecodeCode(side.in.dtype, code)));
    }
    if (side.view.format != KvFormat::kPlain || side.view.computed_scales != nullptr) {
      const float most = std::fabs(*std::max_element(
          x.begin(), x.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); }));
      const bool ordinary =
          std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); });
      if (!ordinary || most > 1e4f || most < 1e-2f || side.view.scales.divisor != 1.0f) continue;
      const std::vector<double> got = riffle::test::DecodeRow(kv, page, offset, h);
      for (size_t i = 0; i < x.size(); ++i) {
        Expect(std::fabs(got[i] - x[i]) <= 0.27 * most);
      }
    } else if (side.view.scales.data == nullptr) {
      const std::vector<double> got = riffle::test::DecodeRow(kv, page, offset, h);
      for (size_t i = 0; i < x.size(); ++i) {
        const double expected = riffle::test::DecodeCode(
            kv.dtype, riffle::test::NearestCode(kv.dtype, static_cast<double>(x[i])));
        Expect(got[i] == expected || (std::isnan(got[i]) && std::isnan(expected)));
      }
    }
  }
}

// Every byte of a row of `kv` is marked as one that may change.
void Mark(const PagedKvOut& kv, int64_t page, int64_t offset, std::vector<bool>* may_change,
          const uint8_t* base) {
  const auto element = static_cast<int64_t>(SizeOf(kv.dtype));
  for (int64_t h = 0; h < kv.kv_heads; ++h) {
    const int64_t at = page * kv.page_stride + offset * kv.token_stride + h * kv.head_stride;
    const int64_t begin = static_cast<const uint8_t*>(kv.data) - base + at * element;
    for (int64_t i = 0; i < RowBytes(kv); ++i) {
      (*may_change)[static_cast<size_t>(begin + i)] = true;
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  static const std::vector<std::string> kTargets = riffle::Targets();
  riffle::SetTarget(kTargets[bytes.Take<uint8_t>() % kTargets.size()]);
  const int64_t tokens = bytes.Between(0, 9), pages = bytes.Between(0, 4);
  const int64_t page_size = bytes.Between(1, 5), heads = bytes.Between(1, 3);
  std::vector<int64_t> slots;
  for (int64_t t = 0; t < tokens; ++t) {
    slots.push_back(
        PerturbOccasionally(bytes, bytes.Between(-1, std::max<int64_t>(pages * page_size - 1, 0))));
  }
  const std::vector<int32_t> narrow(slots.begin(), slots.end());
  const bool is_narrow = bytes.OneIn(2);
  if (is_narrow) slots.assign(narrow.begin(), narrow.end());
  Side keys(bytes, tokens, pages, page_size, heads);
  Side values(bytes, tokens, pages, page_size, heads);
  try {
    riffle::WriteKv(keys.in, values.in, is_narrow ? IndexSpan(narrow) : IndexSpan(slots), keys.view,
                    values.view);
  } catch (const riffle::Error&) {
    for (const Side* side : {&keys, &values}) {
      for (const uint8_t byte : side->pool) Expect(byte == 0xa5);
      for (const uint8_t byte : side->scale_memory) Expect(byte == 0xa5);
    }
    return 0;
  }
  for (const Side* side : {&keys, &values}) {
    std::vector<bool> may_change(Side::kRoom);
    std::map<int64_t, int64_t> last;
    for (int64_t t = 0; t < keys.in.tokens; ++t) {
      if (slots[static_cast<size_t>(t)] >= 0) last[slots[static_cast<size_t>(t)]] = t;
    }
    for (const auto& [slot, token] : last) {
      const int64_t size_of_page = side->view.page_size;
      CheckRow(*side, token, slot / size_of_page, slot % size_of_page);
      Mark(side->view, slot / size_of_page, slot % size_of_page, &may_change, side->pool.data());
    }
    for (size_t i = 0; i < Side::kRoom; ++i) Expect(may_change[i] || side->pool[i] == 0xa5);
  }
  return 0;
}

// WriteKv against a scalar reference, byte for byte: formats, sources, layouts, scales, slots and
// threads, on every SIMD target, with every byte beside what is written unchanged.
#include <gtest/gtest.h>

#include <vector>

#include "riffle/runtime.h"
#include "riffle/write_kv.h"
#include "testing/text.h"
#include "testing/write_kv_case.h"

namespace riffle::test {
namespace {

constexpr DType kSources[] = {DType::kF32, DType::kF16, DType::kBF16};
constexpr Layout kLayouts[] = {Layout::kHND, Layout::kNHD, Layout::kJAX};
constexpr DType kElements[] = {DType::kF32,  DType::kF16,  DType::kBF16,
                               DType::kE4M3, DType::kE5M2, DType::kI8};
constexpr KvFormat kBlockFormats[] = {KvFormat::kQ8_0, KvFormat::kQ4_0, KvFormat::kQ4_1,
                                      KvFormat::kQ5_0, KvFormat::kQ5_1, KvFormat::kIQ4NL};

// Every way to code the rows of a pool.
std::vector<SideSpec> Sides() {
  std::vector<SideSpec> sides;
  for (const DType dtype : kElements) {
    SideSpec side;
    side.dtype = dtype;
    if (dtype != DType::kI8) {
      sides.push_back(side);
    }
    if (SizeOf(dtype) > 1) {
      continue;
    }
    for (const DType scale_dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kE8M0}) {
      side.scale_dtype = scale_dtype;
      for (const ScaleKind kind :
           {ScaleKind::kTensor, ScaleKind::kPerHead, ScaleKind::kPerRow, ScaleKind::kGrouped}) {
        side.scales = kind;
        for (const bool compute : {false, true}) {
          if (compute && (kind == ScaleKind::kTensor || kind == ScaleKind::kPerHead)) {
            continue;
          }
          side.compute = compute;
          side.divisor = sides.size() % 3 == 0 ? 127.5f : 1.0f;
          side.group = 32 << sides.size() % 3;
          sides.push_back(side);
        }
      }
    }
  }
  for (const KvFormat format : kBlockFormats) {
    SideSpec side;
    side.format = format;
    sides.push_back(side);
  }
  return sides;
}

// head_dims with tails of every kind of vector, and with groups that end early.
int64_t HeadDim(const SideSpec& side, size_t i) {
  constexpr int64_t kDims[] = {64, 1, 40, 128, 7, 100, 33, 320};
  constexpr int64_t kBlockDims[] = {64, 32, 96, 128};
  return side.format == KvFormat::kPlain ? kDims[i % 8] : kBlockDims[i % 4];
}

TEST(WriteKv, EveryFormatFromEverySourceInEveryLayout) {
  const std::vector<SideSpec> sides = Sides();
  ASSERT_GT(sides.size(), 70u);
  for (const std::string& target : Targets()) {
    SetTarget(target);
    size_t i = 0;
    for (const SideSpec& side : sides) {
      for (const DType source : kSources) {
        WriteSpec spec;
        spec.in_dtype = source;
        spec.layout = kLayouts[i % 3];
        spec.keys = side;
        spec.keys.head_dim = HeadDim(side, i);
        spec.values = sides[(7 * i + 3) % sides.size()];
        spec.values.head_dim = HeadDim(spec.values, i / 2);
        spec.gap = static_cast<int64_t>(i % 2) * 5;
        spec.shift = static_cast<int>(i % 4);
        spec.int64_slots = i % 5 == 0;
        spec.seed = ++i;
        ASSERT_EQ(WriteCase(spec).Run(), "")
            << target << " from " << Name(source) << " layout " << static_cast<int>(spec.layout)
            << " keys " << Describe(spec.keys) << " values " << Describe(spec.values);
      }
    }
  }
  SetTarget("");
}

// Large enough for threads, with equal slots far apart in the list: the last token's stay.
TEST(WriteKv, LaterOfEqualSlotsWinsOnAnyNumberOfThreads) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (const int64_t pages : {1, 3, 700}) {  // mostly equal, many equal, few equal
      WriteSpec spec;
      spec.tokens = 3000;
      spec.pages = pages;
      spec.page_size = 16;
      spec.kv_heads = 2;
      spec.keys.head_dim = 96;
      spec.keys.format = KvFormat::kQ8_0;
      spec.values.head_dim = 80;
      spec.values.dtype = DType::kI8;
      spec.values.scales = ScaleKind::kPerRow;
      spec.values.compute = true;
      spec.int64_slots = threads == 2;
      spec.seed = static_cast<uint64_t>(pages + threads);
      EXPECT_EQ(WriteCase(spec).Run(&pool), "") << threads << " threads, " << pages << " pages";
    }
  }
}

TEST(WriteKv, ManyTokensInAscendingSlots) {
  ThreadPool pool(3);
  WriteSpec spec;
  spec.tokens = 2000;
  spec.pages = 600;
  spec.keys.dtype = spec.values.dtype = DType::kBF16;
  for (int64_t t = 0; t < spec.tokens; ++t) {
    spec.slots.push_back(t % 13 == 5 ? -1 : t);
  }
  EXPECT_EQ(WriteCase(spec).Run(&pool), "");
  spec.slots[1999] = 3;  // one of them once more
  EXPECT_EQ(WriteCase(spec).Run(&pool), "");
}

// Large copies go past the caches where their rows are whole lines: with one of these shifts, as
// memory is aligned to 16 bytes.
TEST(WriteKv, LargeCopies) {
  int threads = 1;
  for (const std::string& target : Targets()) {
    SetTarget(target);
    for (const int shift : {0, 16, 32, 48}) {
      ThreadPool pool(threads);
      WriteSpec spec;
      spec.in_dtype = spec.keys.dtype = spec.values.dtype = DType::kBF16;
      spec.keys.head_dim = spec.values.head_dim = 128;
      spec.layout = kLayouts[threads];
      spec.tokens = 1100;
      spec.pages = 100;
      spec.page_size = 16;
      spec.kv_heads = 8;
      spec.shift = shift;
      EXPECT_EQ(WriteCase(spec).Run(&pool), "") << target << ", shift " << shift;
    }
    threads = 3 - threads;
  }
  SetTarget("");
}

// More tokens than fit on the stack, too few bytes for threads.
TEST(WriteKv, ManySmallTokens) {
  WriteSpec spec;
  spec.tokens = 500;
  spec.kv_heads = 1;
  spec.keys.head_dim = spec.values.head_dim = 3;
  EXPECT_EQ(WriteCase(spec).Run(), "");
}

TEST(WriteKv, NoTokensAndNothingButSkips) {
  WriteSpec spec;
  spec.tokens = 0;
  EXPECT_EQ(WriteCase(spec).Run(), "");
  spec.tokens = 3;
  spec.slots = {-1, -1, -1};
  EXPECT_EQ(WriteCase(spec).Run(), "");
  // A pool without pages has no slot.
  WriteCase none(spec);
  PagedKvOut keys = none.key_pages(), values = none.value_pages();
  keys.num_pages = values.num_pages = 0;
  keys.data = values.data = nullptr;
  WriteKv(none.keys(), none.values(), spec.slots, keys, values);
  WriteKv({nullptr, DType::kF32, 0, 3, 64}, {nullptr, DType::kBF16, 0, 3, 64}, {}, keys, values);
  // Nor does it have rows whose strides could be too large.
  keys.token_stride = keys.head_stride = values.token_stride = values.head_stride = INT64_MAX;
  WriteKv(none.keys(), none.values(), spec.slots, keys, values);
}

TEST(WriteKv, StridesOfScalesThatAreNotThereMayBeAnything) {
  WriteSpec spec;
  WriteCase write(spec);
  PagedKvOut keys = write.key_pages();
  keys.scales.page_stride = keys.scales.token_stride = keys.scales.head_stride = INT64_MIN;
  keys.scales.group_stride = INT64_MAX;
  keys.scales.dtype = static_cast<DType>(200);
  WriteKv(write.keys(), write.values(), std::vector<int32_t>(7, -1), keys, write.value_pages());
  EXPECT_EQ(write.Difference(), "");
}

// Pages that hold a token's heads side by side are written as one row.
TEST(WriteKv, ContiguousHeads) {
  for (const DType dtype : kElements) {
    if (dtype == DType::kI8) continue;
    std::vector<float> in(2 * 3 * 40);
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 97) - 40;
    const HeadsView view{in.data(), DType::kF32, 2, 3, 40, 120, 40};
    std::vector<uint8_t> pools[2];
    for (const int64_t head_stride : {40, 41}) {
      std::vector<uint8_t>& pool = pools[head_stride - 40];
      pool.resize(2 * 4 * 200 * SizeOf(dtype));
      const PagedKvOut pages{pool.data(), dtype, 2, 4, 3, 40, 800, 200, head_stride};
      std::vector<uint8_t> other(pool.size());
      PagedKvOut values = pages;
      values.data = other.data();
      WriteKv(view, view, std::vector<int32_t>{6, 1}, pages, values);
      EXPECT_EQ(pool, other);
    }
    for (const int64_t slot : {6, 1}) {
      for (int64_t i = 0; i < 120; ++i) {
        for (size_t byte = 0; byte < SizeOf(dtype); ++byte) {
          const auto at = [&](int64_t stride) {
            const int64_t element = slot * 200 + i / 40 * stride + i % 40;
            return static_cast<size_t>(element) * SizeOf(dtype) + byte;
          };
          ASSERT_EQ(pools[0][at(40)], pools[1][at(41)]) << Name(dtype);
        }
      }
    }
  }
}

}  // namespace
}  // namespace riffle::test

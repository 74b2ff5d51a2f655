// What WriteKv refuses: everything before the first byte is written.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "riffle/write_kv.h"
#include "testing/kv_cache_check.h"
#include "testing/text.h"
#include "testing/write_kv_case.h"

namespace riffle::test {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

// A good call, that tests spoil.
class WriteKvErrors : public testing::Test {
 protected:
  static WriteSpec Spec() {
    WriteSpec spec;
    spec.keys.dtype = DType::kE4M3;
    spec.keys.scales = ScaleKind::kGrouped;
    spec.keys.compute = true;
    spec.values.format = KvFormat::kQ4_0;
    return spec;
  }

  void Refused(Code code, const std::string& text, const std::function<void()>& spoil) {
    keys = call.keys();
    values = call.values();
    key_pages = call.key_pages();
    value_pages = call.value_pages();
    slots = {0, 1, 2, 3, 4, 5, 6};
    spoil();
    ExpectError(code, {text}, [&] { WriteKv(keys, values, slots, key_pages, value_pages); });
    EXPECT_EQ(call.Difference(), "") << "something was written: " << text;
  }

  WriteCase call{Spec()};  // compares with what there was before any call
  HeadsView keys, values;
  PagedKvOut key_pages, value_pages;
  std::vector<int64_t> slots;
};

TEST_F(WriteKvErrors, SlotsOutsideOfThePool) {
  for (const int64_t slot : {int64_t{20}, int64_t{-2}, kMax, -kMax - 1}) {
    Refused(Code::kBadPage,
            Concat("slots[6] = ", slot, " is neither -1 nor in the pool of 5 pages"),
            [&] { slots[6] = slot; });
  }
  Refused(Code::kBadShape, "the number of slots = 6 but keys.tokens = 7",
          [&] { slots.pop_back(); });
  // Into a pool that is so large that its slots cannot be counted.
  Refused(Code::kBadShape, "do not fit an address", [&] {
    key_pages.page_size = value_pages.page_size = kMax;
    slots[0] = kMax - 1;
  });
}

TEST_F(WriteKvErrors, Shapes) {
  Refused(Code::kBadShape, "keys.heads = 2 but key_pages.kv_heads = 3", [&] { keys.heads = 2; });
  Refused(Code::kBadShape, "values.head_dim = 32 but value_pages.head_dim = 64",
          [&] { values.head_dim = 32; });
  Refused(Code::kBadShape, "values.tokens = 6 but keys.tokens = 7", [&] { values.tokens = 6; });
  Refused(Code::kBadShape, "keys.tokens = -1", [&] { keys.tokens = -1; });
  Refused(Code::kBadShape, "keys.data is null", [&] { keys.data = nullptr; });
  Refused(Code::kBadShape, "value_pages.data is null", [&] { value_pages.data = nullptr; });
  Refused(Code::kBadShape, "value_pages.num_pages = 4 but key_pages.num_pages = 5",
          [&] { value_pages.num_pages = 4; });
  Refused(Code::kBadShape, "value_pages.page_size = 3", [&] { value_pages.page_size = 3; });
  Refused(Code::kBadShape, "key_pages.page_size = 0", [&] { key_pages.page_size = 0; });
  Refused(Code::kBadShape, "key_pages.kv_heads = 0", [&] { key_pages.kv_heads = keys.heads = 0; });
  Refused(Code::kBadShape, "key_pages.head_dim = 0",
          [&] { key_pages.head_dim = keys.head_dim = 0; });
  Refused(Code::kBadShape, "value_pages.head_dim = 48 is not a multiple of 32, the block of q4_0",
          [&] { value_pages.head_dim = values.head_dim = 48; });
  for (const int64_t stride : {kMax, -kMax - 1}) {
    Refused(Code::kBadShape, "strides of keys", [&] { keys.token_stride = stride; });
    Refused(Code::kBadShape, "strides of values", [&] { values.head_stride = stride; });
    Refused(Code::kBadShape, "strides of key_pages", [&] { key_pages.page_stride = stride; });
    Refused(Code::kBadShape, "strides of value_pages", [&] { value_pages.token_stride = stride; });
    Refused(Code::kBadShape, "strides of key_pages.scales",
            [&] { key_pages.scales.head_stride = stride; });
    Refused(Code::kBadShape, "strides of key_pages.scales",
            [&] { key_pages.scales.group_stride = stride; });
  }
}

TEST_F(WriteKvErrors, Formats) {
  Refused(Code::kBadDType, "keys has dtype float8_e4m3fn", [&] { keys.dtype = DType::kE4M3; });
  Refused(Code::kBadDType, "values has dtype float64", [&] { values.dtype = DType::kF64; });
  Refused(Code::kBadDType, "key_pages are float64", [&] { key_pages.dtype = DType::kF64; });
  Refused(Code::kBadDType, "key_pages are uint8", [&] { key_pages.dtype = DType::kU8; });
  Refused(Code::kBadDType, "value_pages of format q4_0 are float16, not uint8",
          [&] { value_pages.dtype = DType::kF16; });
  Refused(Code::kBadDType, "the unknown format 9",
          [&] { value_pages.format = static_cast<KvFormat>(9); });
  Refused(Code::kBadOption, "key_pages are bfloat16, which has no scales", [&] {
    key_pages.dtype = DType::kBF16;
    key_pages.page_stride *= 2;
  });
  Refused(Code::kBadOption, "value_pages of format q4_0 have scales in their blocks",
          [&] { value_pages.scales.data = keys.data; });
  Refused(Code::kBadOption, "int8 and have no scales", [&] {
    key_pages.dtype = DType::kI8;
    key_pages.computed_scales = nullptr;
  });
  Refused(Code::kBadDType, "key_pages.scales are int32",
          [&] { key_pages.scales.dtype = DType::kI32; });
  Refused(Code::kBadOption, "key_pages.scales.group = 48", [&] { key_pages.scales.group = 48; });
  for (const float divisor : {0.0f, -1.0f, INFINITY, NAN}) {
    Refused(Code::kBadOption, "key_pages.scales.divisor",
            [&] { key_pages.scales.divisor = divisor; });
  }
}

TEST_F(WriteKvErrors, Overlaps) {
  Refused(Code::kOverlap, "key_pages shares memory with keys", [&] { keys.data = key_pages.data; });
  Refused(Code::kOverlap, "value_pages shares memory with values",
          [&] { values.data = value_pages.data; });
  Refused(Code::kOverlap, "key_pages.scales shares memory with values",
          [&] { values.data = key_pages.computed_scales; });
  Refused(Code::kOverlap, "key_pages overlaps itself", [&] { key_pages.head_stride = 0; });
  Refused(Code::kOverlap, "key_pages overlaps itself", [&] { key_pages.token_stride = 63; });
  Refused(Code::kOverlap, "value_pages overlaps itself", [&] { value_pages.page_stride = 35; });
  Refused(Code::kOverlap, "key_pages.scales overlaps itself",
          [&] { key_pages.scales.head_stride = 0; });
  Refused(Code::kOverlap, "key_pages.scales overlaps itself",
          [&] { key_pages.scales.group_stride = 0; });
  Refused(Code::kOverlap, "key_pages shares memory with value_pages", [&] {
    value_pages = key_pages;
    value_pages.data = static_cast<uint8_t*>(key_pages.data) + 63;
    value_pages.computed_scales = key_pages.data;
  });
  Refused(Code::kOverlap, "key_pages shares memory with key_pages.scales",
          [&] { key_pages.computed_scales = static_cast<uint8_t*>(key_pages.data) + 64; });
  // Slots within the pool that they name.
  key_pages = call.key_pages();
  value_pages = call.value_pages();
  const IndexSpan within(static_cast<const int32_t*>(value_pages.data), 7);
  ExpectError(Code::kOverlap, "value_pages shares memory with slots",
              [&] { WriteKv(call.keys(), call.values(), within, key_pages, value_pages); });
  EXPECT_EQ(call.Difference(), "");
}

// A combined pool: a page's values, and the scales of both, follow its keys. Accepted, and the
// checks take no longer for a large pool than for a small one.
TEST_F(WriteKvErrors, InterleavedPoolsAreAccepted) {
  constexpr int64_t kPages = 200000, kPage = 16 * 32 + 16 * 4 + 16 * 32 + 16 * 4;
  std::vector<uint8_t> pool(static_cast<size_t>(kPages * kPage));
  PagedKvOut side;
  side.dtype = DType::kI8;
  side.num_pages = kPages;
  side.page_size = 16;
  side.kv_heads = 1;
  side.head_dim = side.token_stride = side.head_stride = 32;
  side.page_stride = kPage;
  side.scales.page_stride = kPage / 4;
  side.scales.token_stride = 1;
  PagedKvOut other = side;
  side.data = pool.data();
  side.computed_scales = pool.data() + 16 * 32;
  other.data = pool.data() + 16 * 36;
  other.computed_scales = pool.data() + 16 * 36 + 16 * 32;
  const std::vector<float> in(32, 2.0f);
  const HeadsView view{in.data(), DType::kF32, 1, 1, 32, 0, 0};
  const std::vector<int32_t> last = {16 * kPages - 1};
  for (int i = 0; i < 20000; ++i) {  // at a step a page this would take hours
    WriteKv(view, view, last, side, other);
  }
  EXPECT_EQ(pool[static_cast<size_t>(kPages * kPage - 16 * 4 - 1)], 127);
  other.data = pool.data() + 16 * 36 - 1;
  ExpectError(Code::kOverlap, "value_pages shares memory with key_pages.scales",
              [&] { WriteKv(view, view, last, side, other); });
}

}  // namespace
}  // namespace riffle::test

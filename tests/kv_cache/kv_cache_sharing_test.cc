// Pages that several sequences of a KvCache share: when they are copied, and which pages copies
// need.
#include <gtest/gtest.h>

#include <vector>

#include "riffle/kv_cache.h"
#include "testing/kv_cache_check.h"
#include "testing/reference.h"

namespace riffle::test {
namespace {

TEST(KvCacheSharing, ForkSharesAndExtendCopiesTheLastPage) {
  KvCache cache(Small(/*pages=*/4, /*page_size=*/4));
  const KvCacheOptions& options = cache.options();
  const int64_t a = cache.Create();
  cache.Extend(a, 6);
  const Filled six(options, 6, 1), two(options, 2, 2), one(options, 1, 3);
  cache.Write(0, a, 0, six.view, six.view);
  const int64_t b = cache.Fork(a);
  EXPECT_EQ(cache.pages_used(), 2);
  EXPECT_EQ(cache.pages_shared(), 2);

  cache.Extend(b, 1);  // fits into the last page, which is shared
  EXPECT_EQ(cache.pages_used(), 3);
  EXPECT_EQ(cache.pages_shared(), 1);
  cache.Write(0, b, 5, two.view, two.view);
  EXPECT_EQ(KeyAt(cache, a, 5), 1);
  EXPECT_EQ(KeyAt(cache, b, 4), 1);
  EXPECT_EQ(KeyAt(cache, b, 5), 2);
  EXPECT_EQ(KeyAt(cache, b, 6), 2);

  cache.Write(0, a, 0, one.view, one.view);  // a full page that is shared
  EXPECT_EQ(KeyAt(cache, a, 0), 3);
  EXPECT_EQ(KeyAt(cache, b, 0), 1);
  EXPECT_EQ(KeyAt(cache, a, 1), 1);
  EXPECT_EQ(cache.pages_free(), 0);
  EXPECT_EQ(cache.pages_shared(), 0);
}

TEST(KvCacheSharing, ExtendCountsTheCopyAmongItsPages) {
  KvCache cache(Small(/*pages=*/2, /*page_size=*/4));
  const int64_t a = cache.Create();
  cache.Extend(a, 3);
  const int64_t b = cache.Fork(a);
  ExpectError(Code::kOutOfPages, "takes 1 pages and one for a copy of its shared last page",
              [&] { cache.Extend(b, 2); });
  EXPECT_EQ(cache.pages_shared(), 1);
  EXPECT_EQ(cache.Length(b), 3);
  cache.Extend(b, 1);  // there is a page for the copy, but for nothing else
  cache.Extend(a, 1);  // by now nobody shares a's last page
  EXPECT_EQ(cache.pages_free(), 0);
  EXPECT_EQ(cache.pages_shared(), 0);
}

TEST(KvCacheSharing, ExtendCopiesAPageThatIsPartlyUsedAfterTruncate) {
  KvCache cache(Small(/*pages=*/3, /*page_size=*/4));
  const Filled eight(cache.options(), 8, 1), one(cache.options(), 1, 2);
  const int64_t a = cache.Create();
  cache.Extend(a, 8);
  cache.Write(0, a, 0, eight.view, eight.view);
  const int64_t b = cache.Fork(a);
  cache.Truncate(b, 2);
  cache.Extend(b, 1);
  cache.Write(0, b, 2, one.view, one.view);
  EXPECT_EQ(KeyAt(cache, a, 2), 1);
  EXPECT_EQ(KeyAt(cache, b, 1), 1);
  EXPECT_EQ(KeyAt(cache, b, 2), 2);
}

TEST(KvCacheSharing, WriteIntoSharedPagesIsRefusedBeforeAnythingIsWritten) {
  KvCache cache(Small(/*pages=*/3, /*page_size=*/2));
  const Filled four(cache.options(), 4, 1), again(cache.options(), 4, 2);
  const int64_t a = cache.Create();
  cache.Extend(a, 4);
  cache.Write(0, a, 0, four.view, four.view);
  const int64_t b = cache.Fork(a);
  const KvBatch before = cache.Batch(std::vector<int64_t>{a, b});
  ExpectError(Code::kOutOfPages, "copies 2 shared pages but 1 of 3 are free",
              [&] { cache.Write(0, b, 0, again.view, again.view); });
  EXPECT_EQ(cache.Batch(std::vector<int64_t>{a, b}).page_table, before.page_table);
  for (int64_t p = 0; p < 4; ++p) {
    EXPECT_EQ(KeyAt(cache, a, p), 1);
    EXPECT_EQ(KeyAt(cache, b, p), 1);
  }
  cache.Free(a);
  cache.Write(0, b, 0, again.view, again.view);
  EXPECT_EQ(KeyAt(cache, b, 3), 2);
}

TEST(KvCacheSharing, ACopyTakesAllLayersAlong) {
  KvCacheOptions options = Small(/*pages=*/4, /*page_size=*/4);
  options.layers = 3;
  KvCache cache(options);
  const int64_t a = cache.Create();
  cache.Extend(a, 3);
  for (int64_t layer = 0; layer < 3; ++layer) {
    const Filled keys(options, 3, static_cast<float>(10 + layer));
    const Filled values(options, 3, static_cast<float>(20 + layer));
    cache.Write(layer, a, 0, keys.view, values.view);
  }
  const int64_t b = cache.Fork(a);
  const Filled one(options, 1, 99);
  cache.Write(1, b, 1, one.view, one.view);
  const KvBatch batch = cache.Batch(std::vector<int64_t>{a, b});
  for (int64_t layer = 0; layer < 3; ++layer) {
    for (size_t s = 0; s < 2; ++s) {
      for (int64_t t = 0; t < 3; ++t) {
        const bool written = s == 1 && layer == 1 && t == 1;
        const int64_t page = batch.page_table[s];
        for (int64_t h = 0; h < 2; ++h) {
          EXPECT_EQ(Decode(DType::kF32, Element(cache.Keys(layer), page, t, h, 7)),
                    written ? 99.0 : 10.0 + static_cast<double>(layer));
          EXPECT_EQ(Decode(DType::kF32, Element(cache.Values(layer), page, t, h, 7)),
                    written ? 99.0 : 20.0 + static_cast<double>(layer));
        }
      }
    }
  }
}

}  // namespace
}  // namespace riffle::test

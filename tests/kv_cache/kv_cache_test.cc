// The edges of KvCache: limits, refusals, layout, and reading beside writing. Shared pages are in
// kv_cache_sharing_test.cc, histories in kv_cache_model_test.cc, rounding in
// kv_cache_rounding_test.cc.
#include "riffle/kv_cache.h"

#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <thread>
#include <vector>

#include "riffle/runtime.h"
#include "testing/kv_cache_check.h"
#include "testing/reference.h"

namespace riffle::test {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

TEST(KvCache, RefusesImpossiblePools) {
  const auto with = [](auto member, int64_t value) {
    KvCacheOptions options = Small();
    options.*member = value;
    return [options] { KvCache cache(options); };
  };
  ExpectError(Code::kBadShape, "layers = 0", with(&KvCacheOptions::layers, 0));
  ExpectError(Code::kBadShape, "kv_heads = -1", with(&KvCacheOptions::kv_heads, -1));
  ExpectError(Code::kBadShape, "head_dim = 0", with(&KvCacheOptions::head_dim, 0));
  ExpectError(Code::kBadShape, "pages = 0", with(&KvCacheOptions::pages, 0));
  ExpectError(Code::kBadShape, "pages = 2147483648", with(&KvCacheOptions::pages, 1ll << 31));
  ExpectError(Code::kBadShape, "page_size = -5", with(&KvCacheOptions::page_size, -5));
  // Sizes that overflow, alone and as a product, and one that only no machine has.
  ExpectError(Code::kOutOfMemory, "x 8 elements of 4 bytes",
              with(&KvCacheOptions::page_size, kMax));
  ExpectError(Code::kOutOfMemory, "elements", with(&KvCacheOptions::head_dim, kMax / 4));
  ExpectError(Code::kOutOfMemory, "elements", with(&KvCacheOptions::layers, int64_t{1} << 54));
  ExpectError(Code::kOutOfMemory, "no 9223372036854773760 bytes",
              with(&KvCacheOptions::layers, kMax / 2048));
  ExpectError(Code::kOutOfMemory, "no 2251799813685248 bytes",
              with(&KvCacheOptions::layers, int64_t{1} << 40));
}

TEST(KvCache, AVastPoolCostsNothingUntouched) {
  KvCacheOptions options = Small(std::numeric_limits<int32_t>::max(), 1);
  options.kv_heads = options.head_dim = 1;
  options.dtype = DType::kBF16;
  KvCache cache(options);  // 8 GB of storage, 24 GB of bookkeeping if it were touched
  const int64_t seq = cache.Create();
  cache.Extend(seq, 1000);
  EXPECT_EQ(cache.pages_free(), options.pages - 1000);
  ExpectError(Code::kOutOfPages, "tokens = 2147482648", [&] { cache.Extend(seq, 2147482648); });
}

TEST(KvCache, LengthsStayBelowTwoToThe31) {
  KvCacheOptions options = Small(1 << 20, 4096);  // room for 2^32 tokens
  options.kv_heads = options.head_dim = 1;
  options.dtype = DType::kBF16;
  KvCache cache(options);
  const int64_t seq = cache.Create();
  cache.Extend(seq, 10);
  ExpectError(Code::kBadRange, "longer than 2147483647",
              [&] { cache.Extend(seq, (int64_t{1} << 31) - 10); });
  cache.Extend(seq, (int64_t{1} << 31) - 11);
  EXPECT_EQ(cache.Length(seq), 2147483647);
  EXPECT_EQ(cache.Batch(std::vector<int64_t>{seq}).kv_lens[0], 2147483647);
}

TEST(KvCache, StorageIsAlignedAndLaidOutAsStated) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int64_t pages : {1, 3, 3000}) {
      KvCacheOptions options;
      options.layers = 3;
      options.kv_heads = 3;
      options.head_dim = 32;
      options.page_size = 5;
      options.pages = pages;
      options.dtype = dtype;
      const KvCache cache(options);
      for (int64_t layer = 0; layer < options.layers; ++layer) {
        for (const PagedKv& kv : {cache.Keys(layer), cache.Values(layer)}) {
          EXPECT_EQ(reinterpret_cast<uintptr_t>(kv.data) % 64, 0u);
          EXPECT_EQ(kv.dtype, dtype);
          EXPECT_EQ(kv.num_pages, pages);
          EXPECT_EQ(kv.page_size, 5);
          EXPECT_EQ(kv.kv_heads, 3);
          EXPECT_EQ(kv.head_dim, 32);
          EXPECT_EQ(kv.token_stride, 32);
          EXPECT_EQ(kv.head_stride, 5 * 32);
          EXPECT_GE(kv.page_stride, 3 * 5 * 32);
          // Zero, and in reach, to the last byte.
          EXPECT_EQ(Decode(dtype, Element(kv, pages - 1, 4, 2, 31)), 0.0);
        }
      }
      EXPECT_GE(cache.bytes(), 3 * pages * 2 * 3 * 5 * 32 * static_cast<int64_t>(SizeOf(dtype)));
      ExpectError(Code::kBadRange, "layer = 3 is not in 0..2", [&] { (void)cache.Keys(3); });
      ExpectError(Code::kBadRange, "layer = -1", [&] { (void)cache.Values(-1); });
    }
  }
}

TEST(KvCache, RefusesIdsThatAreNoSequence) {
  KvCache cache(Small());
  const Filled one(cache.options(), 1, 1);
  const int64_t seq = cache.Create();
  EXPECT_GT(seq, 0);
  cache.Free(seq);
  ExpectError(Code::kBadSequence, "has been freed", [&] { cache.Free(seq); });
  ExpectError(Code::kBadSequence, "has been freed", [&] { (void)cache.Fork(seq); });
  ExpectError(Code::kBadSequence, "seq = 7 is no sequence", [&] { cache.Extend(7, 1); });
  ExpectError(Code::kBadSequence, "seq = 0", [&] { cache.Truncate(0, 0); });
  ExpectError(Code::kBadSequence, "seq = -1", [&] { (void)cache.Length(-1); });
  ExpectError(Code::kBadSequence, "freed", [&] { cache.Write(0, seq, 0, one.view, one.view); });
  ExpectError(Code::kBadSequence, "freed", [&] {
    (void)cache.Batch(std::vector<int64_t>{cache.Create(), seq});
  });
}

TEST(KvCache, EmptySequencesAndEmptyCalls) {
  KvCache cache(Small());
  const KvBatch none = cache.Batch({});
  EXPECT_TRUE(none.kv_lens.empty());
  EXPECT_EQ(none.max_pages, 0);
  const int64_t seq = cache.Create();
  const int64_t fork = cache.Fork(seq);
  cache.Extend(fork, 0);
  cache.Write(0, fork, 0, Filled(cache.options(), 0, 1).view, Filled(cache.options(), 0, 1).view);
  cache.Truncate(seq, 0);
  EXPECT_EQ(cache.Length(fork), 0);
  EXPECT_EQ(cache.pages_free(), 4);
  cache.Extend(fork, 5);
  EXPECT_EQ(cache.Length(seq), 0);
  const KvBatch batch = cache.Batch(std::vector<int64_t>{seq, fork, fork});
  EXPECT_EQ(batch.kv_lens, (std::vector<int32_t>{0, 5, 5}));
  EXPECT_EQ(batch.max_pages, 2);
  EXPECT_EQ(batch.page_table, (std::vector<int32_t>{-1, -1, 0, 1, 0, 1}));
  cache.Free(seq);
  cache.Free(fork);
  EXPECT_EQ(cache.pages_free(), 4);
  EXPECT_EQ(cache.sequences(), 0);
}

TEST(KvCache, ReusesTheMemoryOfABatch) {
  KvCache cache(Small());
  const std::vector<int64_t> both = {cache.Create(), cache.Create()};
  cache.Extend(both[0], 16);
  KvBatch batch;
  cache.Batch(both, batch);
  const int32_t* const before = batch.page_table.data();
  cache.Batch(both, batch);
  EXPECT_EQ(batch.page_table.data(), before);
  cache.Batch(std::span(both).last(1), batch);
  EXPECT_EQ(batch.kv_lens, std::vector<int32_t>{0});
  EXPECT_TRUE(batch.page_table.empty());
}

TEST(KvCache, ExtendIsAllOrNothing) {
  KvCache cache(Small(/*pages=*/4, /*page_size=*/4));
  const int64_t a = cache.Create();
  cache.Extend(a, 6);
  ExpectError(Code::kOutOfPages, "takes 3 pages but 2 of 4 are free", [&] { cache.Extend(a, 11); });
  ExpectError(Code::kOutOfPages, "are free", [&] { cache.Extend(a, kMax); });
  ExpectError(Code::kBadRange, "tokens = -1 is negative", [&] { cache.Extend(a, -1); });
  EXPECT_EQ(cache.Length(a), 6);
  EXPECT_EQ(cache.pages_free(), 2);
  cache.Extend(a, 10);
  EXPECT_EQ(cache.pages_free(), 0);
  cache.Extend(a, 0);
  ExpectError(Code::kOutOfPages, "takes 1 pages", [&] { cache.Extend(a, 1); });
}

TEST(KvCache, HugeTokensWithPagesOfOne) {
  KvCache cache(Small(/*pages=*/3, /*page_size=*/1));
  const int64_t a = cache.Create();
  ExpectError(Code::kOutOfPages, "9223372036854775807", [&] { cache.Extend(a, kMax); });
  cache.Extend(a, 3);
  const int64_t b = cache.Fork(a);  // full pages are shared, nothing to copy for what comes behind
  cache.Truncate(b, 2);
  EXPECT_EQ(cache.pages_shared(), 2);
  EXPECT_EQ(cache.pages_free(), 0);
  cache.Truncate(a, 2);
  EXPECT_EQ(cache.pages_free(), 1);
  cache.Extend(b, 1);
  EXPECT_EQ(cache.pages_free(), 0);
}

TEST(KvCache, RefusesBadInputs) {
  KvCacheOptions options = Small();
  options.dtype = DType::kBF16;
  KvCache cache(options);
  const int64_t seq = cache.Create();
  cache.Extend(seq, 3);
  const Filled good(options, 2, 1);
  const auto write = [&](int64_t position, const HeadsView& keys, const HeadsView& values) {
    return [&cache, seq, position, keys, values] { cache.Write(0, seq, position, keys, values); };
  };
  ExpectError(Code::kBadRange, "position = 2 with 2 tokens is not in the length 3",
              write(2, good.view, good.view));
  ExpectError(Code::kBadRange, "position = -1", write(-1, good.view, good.view));
  ExpectError(Code::kBadRange, "position = 9223372036854775807", write(kMax, good.view, good.view));
  HeadsView bad = good.view;
  bad.tokens = kMax;
  ExpectError(Code::kBadRange, "with 9223372036854775807 tokens", write(0, bad, bad));
  bad.tokens = -1;
  ExpectError(Code::kBadShape, "keys has -1 tokens", write(0, bad, bad));
  bad = good.view;
  bad.tokens = 1;
  ExpectError(Code::kBadShape, "values is [1, 2, 8] instead of [2, 2, 8]",
              write(0, good.view, bad));
  bad = good.view;
  bad.heads = 1;
  ExpectError(Code::kBadShape, "keys is [2, 1, 8]", write(0, bad, good.view));
  bad = good.view;
  bad.head_dim = 16;
  ExpectError(Code::kBadShape, "keys is [2, 2, 16]", write(0, bad, good.view));
  bad = good.view;
  bad.data = nullptr;
  ExpectError(Code::kBadShape, "values is null", write(0, good.view, bad));
  bad = good.view;
  bad.dtype = DType::kE4M3;
  ExpectError(Code::kBadDType,
              "keys is float8_e4m3fn but the cache takes float32, float16 or bfloat16",
              write(0, bad, good.view));
  for (const int64_t stride : {kMax, -kMax}) {
    bad = good.view;
    bad.token_stride = stride;
    ExpectError(Code::kBadShape, "beyond the address space", write(0, good.view, bad));
    bad = good.view;
    bad.head_stride = stride;
    ExpectError(Code::kBadShape, "beyond the address space", write(0, bad, good.view));
  }
  const PagedKv own = cache.Values(0);
  bad = HeadsView{own.data, own.dtype, 2, 2, 8, own.token_stride, own.head_stride};
  ExpectError(Code::kOverlap, "keys lies in the cache's own storage", write(0, bad, good.view));
  EXPECT_EQ(KeyAt(cache, seq, 0), 0);  // nothing was written by any of them
}

TEST(KvCache, AStrideThatIsNeverTakenMayBeAnything) {
  KvCacheOptions options = Small();
  options.kv_heads = 1;
  KvCache cache(options);
  const int64_t seq = cache.Create();
  cache.Extend(seq, 2);
  Filled one(options, 1, 5);
  one.view.token_stride = kMax;
  one.view.head_stride = -kMax;
  cache.Write(0, seq, 1, one.view, one.view);
  EXPECT_EQ(KeyAt(cache, seq, 1), 5);
}

TEST(KvCache, BroadcastsByStridesOfZero) {
  KvCache cache(Small(/*pages=*/4, /*page_size=*/4));
  const int64_t seq = cache.Create();
  cache.Extend(seq, 9);
  Filled one(cache.options(), 1, 5);
  one.view.tokens = 7;
  one.view.token_stride = one.view.head_stride = 0;
  cache.Write(0, seq, 1, one.view, one.view);  // ends and starts inside pages
  EXPECT_EQ(KeyAt(cache, seq, 0), 0);
  for (int64_t p = 1; p < 8; ++p) EXPECT_EQ(KeyAt(cache, seq, p), 5);
  EXPECT_EQ(KeyAt(cache, seq, 8), 0);
}

// Writes large enough for threads, into the middle of pages of every kind: what any number of them
// leaves is what single tokens leave, and nothing beside it changes.
TEST(KvCacheConcurrency, LargeWritesByAnyNumberOfThreads) {
  const int64_t before = 7, after = 3;
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    for (const int64_t page_size : {1, 5, 16, 256, 4096}) {
      const int64_t tokens = 2500;
      KvCacheOptions options =
          Small((before + tokens + after + page_size - 1) / page_size, page_size);
      options.head_dim = 40;
      options.dtype = dtype;
      const int64_t row = options.kv_heads * options.head_dim;
      std::vector<float> keys(static_cast<size_t>(tokens * row)), values(keys.size());
      for (size_t i = 0; i < keys.size(); ++i) {
        keys[i] = 0.37f * static_cast<float>(i);
        values[i] = -keys[i];
      }
      const auto view = [&](const std::vector<float>& of, int64_t from, int64_t count) {
        return HeadsView{of.data() + from * row, DType::kF32, count, 2, 40, row, 40};
      };
      const auto bytes = [&](const KvCache& cache) {
        const PagedKv first = cache.Keys(0);
        const auto* data = static_cast<const uint8_t*>(first.data);
        return std::vector<uint8_t>(data, data + cache.bytes());
      };
      const auto fill = [&](KvCache& cache) {
        const int64_t seq = cache.Create();
        cache.Extend(seq, before + tokens + after);
        const Filled ones(options, 7, 1);
        cache.Write(0, seq, 0, ones.view, ones.view);
        return seq;
      };
      KvCache expected(options);
      const int64_t one = fill(expected);
      for (int64_t t = 0; t < tokens; ++t) {
        expected.Write(0, one, before + t, view(keys, t, 1), view(values, t, 1));
      }
      for (const int threads : {1, 2, 5}) {
        ThreadPool pool(threads);
        KvCache cache(options);
        const int64_t seq = fill(cache);
        cache.Write(0, seq, before, view(keys, 0, tokens), view(values, 0, tokens),
                    {.pool = &pool});
        EXPECT_EQ(bytes(cache), bytes(expected)) << page_size << " " << threads;
      }
    }
  }
}

// One thread reads a sequence, as attention would; another one lets forks of it grow and overwrites
// what they share. For ThreadSanitizer, and for the contents.
TEST(KvCacheConcurrency, ReadingBesideWritesToForks) {
  KvCache cache(Small(/*pages=*/16, /*page_size=*/4));
  const Filled six(cache.options(), 6, 1), two(cache.options(), 2, 2);
  const int64_t a = cache.Create();
  cache.Extend(a, 6);
  cache.Write(0, a, 0, six.view, six.view);
  const KvBatch batch = cache.Batch(std::vector<int64_t>{a});
  const PagedKv keys = cache.Keys(0);
  std::atomic<bool> stop{false};
  std::atomic<int64_t> reads{0};
  std::atomic<int64_t> wrong{0};
  std::thread reader([&] {
    while (!stop.load()) {
      for (int64_t p = 0; p < 6; ++p) {
        const int64_t page = batch.page_table[static_cast<size_t>(p / 4)];
        wrong += Decode(DType::kF32, Element(keys, page, p % 4, 1, 3)) != 1.0;
      }
      ++reads;
    }
  });
  for (int i = 0; i < 300 || reads.load() < 100; ++i) {
    const int64_t fork = cache.Fork(a);
    cache.Extend(fork, 3);
    cache.Write(0, fork, 7, two.view, two.view);
    cache.Write(0, fork, 0, two.view, two.view);
    cache.Truncate(fork, 1);
    cache.Free(fork);
  }
  stop = true;
  reader.join();
  EXPECT_EQ(wrong.load(), 0);
  EXPECT_EQ(cache.pages_used(), 2);
}

}  // namespace
}  // namespace riffle::test

// Results are the same whatever rounding mode the caller has set, and whether or not it flushes
// subnormals to zero; on return its settings are what they were.
#include <gtest/gtest.h>

#include <cfenv>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "riffle/riffle.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace riffle::test {
namespace {

#if defined(__x86_64__)
constexpr unsigned kFlush = 0x8040;  // the bits FTZ and DAZ of the register MXCSR
#elif defined(__aarch64__)
constexpr uint64_t kFlush = 1 << 24;  // the bit FZ of the register FPCR

uint64_t ReadFpcr() {
  uint64_t fpcr;
  asm volatile("mrs %0, fpcr" : "=r"(fpcr));
  return fpcr;
}
#endif

struct Mode {
  const char* name;
  int rounding;
  bool flush;
};
constexpr Mode kModes[] = {{"flushing", FE_TONEAREST, true},
                           {"upward", FE_UPWARD, false},
                           {"downward", FE_DOWNWARD, false},
                           {"toward zero, flushing", FE_TOWARDZERO, true}};

// Whether the caller flushes subnormals; where nobody knows how to ask, no.
bool Flushes() {
#if defined(__x86_64__)
  return (_mm_getcsr() & kFlush) == kFlush;
#elif defined(__aarch64__)
  return (ReadFpcr() & kFlush) != 0;
#else
  return false;
#endif
}

void Set(int rounding, bool flush) {
  std::fesetround(rounding);
#if defined(__x86_64__)
  _mm_setcsr((_mm_getcsr() & ~kFlush) | (flush ? kFlush : 0));
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" : : "r"((ReadFpcr() & ~kFlush) | (flush ? kFlush : 0)));
#else
  (void)flush;
#endif
}

template <typename T>
void Append(std::vector<uint8_t>& bytes, const std::vector<T>& values) {
  const size_t size = bytes.size();
  bytes.resize(size + values.size() * sizeof(T));
  std::memcpy(bytes.data() + size, values.data(), values.size() * sizeof(T));
}

// The workers exist before the caller sets its mode, so they have another one.
void ExpectSame(const char* name, const std::function<std::vector<uint8_t>()>& call) {
  SCOPED_TRACE(name);
  SetNumThreads(3);
  const std::vector<uint8_t> expected = call();
  for (const Mode& mode : kModes) {
    for (int i = 0; i < 10; ++i) {
      Set(mode.rounding, mode.flush);
      const std::vector<uint8_t> got = call();
      const bool kept = std::fegetround() == mode.rounding && Flushes() == mode.flush;
      Set(FE_TONEAREST, false);
      EXPECT_TRUE(kept) << mode.name << ": the caller's mode is lost";
      ASSERT_TRUE(got == expected) << mode.name;
    }
  }
  // Workers would inherit the mode of the thread that starts them.
  Set(FE_UPWARD, true);
  SetNumThreads(2);
  SetNumThreads(3);
  Set(FE_TONEAREST, false);
  EXPECT_TRUE(call() == expected) << "workers that were started flushing";
}

class FloatEnvironments : public testing::TestWithParam<float> {
 protected:
  std::vector<float> Numbers(size_t count, float size) {
    std::normal_distribution<float> normal;
    std::vector<float> numbers(count);
    for (float& number : numbers) number = normal(random_) * size;
    return numbers;
  }
  std::mt19937 random_{1};
};

TEST_P(FloatEnvironments, TopK) {
  const std::vector<float> x = Numbers(16 * 20000, GetParam());
  for (const Algorithm algorithm : {Algorithm::kAuto, Algorithm::kLaneSort}) {
    ExpectSame("TopK", [&] {
      std::vector<float> values(16 * 8);
      std::vector<int32_t> indices(16 * 8);
      TopKOptions options;
      options.algorithm = algorithm;
      TopK({x.data(), DType::kF32, 16, 20000, 20000}, 8, {values.data(), 8, indices.data(), 8},
           options);
      std::vector<uint8_t> bytes;
      Append(bytes, values);
      Append(bytes, indices);
      return bytes;
    });
  }
}

TEST_P(FloatEnvironments, Plans) {
  ExpectSame("plans", [&] {
    std::vector<uint8_t> bytes;
    Append(bytes, DepthProbabilities(64));
    const TopKPlan plan = PlanTopK(20000, 64, 16);
    Append(bytes, plan.depth_schedule);
    Append(bytes, plan.batch_done);
    return bytes;
  });
}

TEST_P(FloatEnvironments, Sample) {
  const std::vector<float> x = Numbers(16 * 5000, GetParam() < 1 ? GetParam() : 3.0f);
  for (const float top_p : {1.0f, 0.9f}) {
    ExpectSame("Sample", [&] {
      std::vector<int32_t> tokens(16);
      std::vector<float> logprobs(16);
      Sample({x.data(), DType::kF32, 16, 5000, 5000}, tokens, logprobs, {.top_p = {&top_p, 1}});
      std::vector<uint8_t> bytes;
      Append(bytes, tokens);
      Append(bytes, logprobs);
      return bytes;
    });
  }
}

TEST_P(FloatEnvironments, ApplyTopKTopP) {
  const std::vector<float> x = Numbers(16 * 5000, GetParam() < 1 ? GetParam() : 3.0f);
  for (const float top_p : {0.3f, 0.9f}) {
    ExpectSame("ApplyTopKTopP", [&] {
      std::vector<float> y = x;
      ApplyTopKTopP({y.data(), 5000}, 16, 5000, {.top_p = {&top_p, 1}});
      std::vector<uint8_t> bytes;
      Append(bytes, y);
      return bytes;
    });
  }
}

TEST_P(FloatEnvironments, Linear) {
  const std::vector<float> x = Numbers(8 * 64, 1), weight = Numbers(2000 * 64, GetParam());
  const MatrixView view{x.data(), DType::kF32, 8, 64, 64};
  const WeightView w{weight.data(), WeightFormat::kF32, 2000, 64, 64};
  ExpectSame("Linear", [&] {
    std::vector<float> y(8 * 2000), values(8 * 8);
    std::vector<int32_t> indices(8 * 8);
    Linear(view, w, {y.data(), 2000});
    LinearTopK(view, w, 8, {values.data(), 8, indices.data(), 8});
    std::vector<uint8_t> bytes;
    Append(bytes, y);
    Append(bytes, values);
    Append(bytes, indices);
    return bytes;
  });
}

TEST_P(FloatEnvironments, Attention) {
  const std::vector<float> q = Numbers(16 * 4 * 32, 1);
  const std::vector<float> pages = Numbers(64 * 2 * 16 * 32, GetParam());
  const std::vector<int32_t> lens(16, 500);
  std::vector<int32_t> table(16 * 32);
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i * 7 % 64);
  const PagedKv keys{pages.data(), DType::kF32, 64, 16, 1, 32, 1024, 32, 32};
  PagedKv values = keys;
  values.data = pages.data() + 512;
  PagedBatch batch;
  batch.kv_lens = lens;
  batch.page_table = table.data();
  batch.max_pages = batch.page_table_stride = 32;
  ExpectSame("PagedAttention", [&] {
    std::vector<float> out(q.size()), lse(16 * 4);
    PagedAttention({q.data(), DType::kF32, 16, 4, 32, 128, 32}, keys, values, batch,
                   {out.data(), 128, 32, lse.data(), 4});
    std::vector<uint8_t> bytes;
    Append(bytes, out);
    Append(bytes, lse);
    return bytes;
  });
}

TEST_P(FloatEnvironments, Sparse) {
  const std::vector<float> q = Numbers(16 * 4 * 32, 1), pool = Numbers(500 * 32, GetParam());
  const std::vector<int32_t> lens(16, 500), table(16, 0);
  const HeadsView view{q.data(), DType::kF32, 16, 4, 32, 128, 32};
  PagedBatch batch;
  batch.kv_lens = lens;
  batch.page_table = table.data();
  batch.max_pages = batch.page_table_stride = 1;
  std::vector<int32_t> slots(500), named(16 * 40);
  for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int32_t>(i);
  for (size_t i = 0; i < named.size(); ++i) named[i] = static_cast<int32_t>(i * 7 % 500);
  ExpectSame("sparse attention", [&] {
    std::vector<int8_t> codes(500 * 32);
    std::vector<float> scales(500), logits(16 * 500), out(16 * 128), lse(16 * 4);
    std::vector<int32_t> best(16 * 9);
    WriteIndexKeys({pool.data(), DType::kF32, 500, 32, 32}, slots,
                   {codes.data(), DType::kI8, 1, 500, 32, 0, 32, {scales.data(), 0, 1}});
    const IndexKeys keys{codes.data(), DType::kI8, 1, 500, 32, 0, 32, {scales.data(), 0, 1}};
    IndexerLogits(view, {}, keys, batch, {logits.data(), 500, 500});
    IndexerTopK(view, {}, {pool.data(), DType::kF32, 1, 500, 32, 0, 32}, batch, 9,
                {best.data(), 9});
    SparseScope scope;
    scope.rows = {pool.data(), DType::kF32, 500, 32, 32};
    scope.slots = named.data();
    scope.cols = scope.slots_stride = 40;
    SparseAttention(view, {&scope, 1}, {out.data(), 128, 32, lse.data(), 4});
    std::vector<float> entries(125 * 32);
    const MatrixView tokens{pool.data(), DType::kF32, 500, 32, 32};
    CompressKv(tokens, tokens, {entries.data(), 32}, {});
    std::vector<uint8_t> coded(27 * 656);
    const std::vector<int32_t> written(slots.begin(), slots.begin() + 27);
    WriteSparseRows({pool.data(), DType::kF32, 27, 576, 576}, written, {coded.data(), 27, 656});
    std::vector<uint8_t> bytes;
    Append(bytes, coded);
    Append(bytes, entries);
    Append(bytes, codes);
    Append(bytes, scales);
    Append(bytes, logits);
    Append(bytes, best);
    Append(bytes, out);
    Append(bytes, lse);
    return bytes;
  });
}

// Rounding of float32 to a cache of float16.
TEST_P(FloatEnvironments, KvCache) {
  const std::vector<float> x = Numbers(100 * 32, GetParam());
  ExpectSame("KvCache", [&] {
    KvCacheOptions options;
    options.head_dim = 32;
    options.pages = 7;
    options.dtype = DType::kF16;
    KvCache cache(options);
    const int64_t seq = cache.Create();
    cache.Extend(seq, 100);
    const HeadsView view{x.data(), DType::kF32, 100, 1, 32, 32, 32};
    cache.Write(0, seq, 0, view, view);
    const auto* data = static_cast<const uint8_t*>(cache.Keys(0).data);
    return std::vector<uint8_t>(data, data + cache.bytes());
  });
}

// Rounding to float8 with computed scales, and to blocks.
TEST_P(FloatEnvironments, WriteKv) {
  const std::vector<float> x = Numbers(100 * 32, GetParam());
  ExpectSame("WriteKv", [&] {
    std::vector<uint8_t> bytes(112 * 32 + 112 * 4 + 112 * 20);
    PagedKvOut keys{bytes.data(), DType::kE4M3, 7, 16, 1, 32, 512, 32, 32};
    keys.scales.page_stride = 16;
    keys.scales.token_stride = 1;
    keys.computed_scales = bytes.data() + 112 * 32;
    const PagedKvOut values{bytes.data() + 112 * 36, DType::kU8, 7, 16, 1, 32, 320, 20, 20, {},
                            KvFormat::kQ4_1};
    std::vector<int32_t> slots(100);
    for (size_t t = 0; t < slots.size(); ++t) slots[t] = static_cast<int32_t>(t);
    const HeadsView view{x.data(), DType::kF32, 100, 1, 32, 32, 32};
    riffle::WriteKv(view, view, slots, keys, values);
    return bytes;
  });
}

// The user's own tasks run in the library's environment too, on every thread.
TEST_P(FloatEnvironments, ParallelFor) {
  ExpectSame("ParallelFor", [] {
    volatile float tiny = std::numeric_limits<float>::min();
    volatile float third = 3;
    std::vector<float> results(1000);
    ParallelFor(1000, [&](int64_t i) {
      results[static_cast<size_t>(i)] = i % 2 == 0 ? tiny / 3 : 1 / third;
    });
    std::vector<uint8_t> bytes;
    Append(bytes, results);
    return bytes;
  });
}

// The second size makes f32 results subnormal.
INSTANTIATE_TEST_SUITE_P(Sizes, FloatEnvironments, testing::Values(1.0f, 1e-39f));

}  // namespace
}  // namespace riffle::test

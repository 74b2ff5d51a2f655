// Lets every allocation of every public call fail in turn. The call must throw Error(kOutOfMemory)
// and write nothing, and the next call must be right.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "riffle/riffle.h"
#include "testing/allocations.h"

namespace riffle::test {
namespace {

// The memory that a call writes.
class Outputs {
 public:
  void Add(void* data, size_t bytes) { parts_.push_back({static_cast<uint8_t*>(data), bytes}); }
  void Fill(uint8_t byte) const {
    for (const Part& part : parts_) std::memset(part.data, byte, part.bytes);
  }
  std::vector<uint8_t> Copy() const {
    std::vector<uint8_t> all;
    for (const Part& part : parts_) all.insert(all.end(), part.data, part.data + part.bytes);
    return all;
  }
  bool Hold(const std::vector<uint8_t>& expected) const {
    size_t at = 0;
    for (const Part& part : parts_) {
      if (std::memcmp(part.data, expected.data() + at, part.bytes) != 0) return false;
      at += part.bytes;
    }
    return true;
  }

 private:
  struct Part {
    uint8_t* data;
    size_t bytes;
  };
  std::vector<Part> parts_;
};

// Each failing call gets a pool without scratch. Returns how many allocations the call makes.
int64_t FailAtEach(const std::string& name, const Outputs& outputs,
                   const std::function<void()>& call) {
  SCOPED_TRACE(name);
  outputs.Fill(0xa5);
  const std::vector<uint8_t> untouched = outputs.Copy();
  call();
  const std::vector<uint8_t> right = outputs.Copy();
  int64_t total = 0;
  for (const Fail fail : {Fail::kOnce, Fail::kFromThenOn}) {
    for (int64_t good = 0;; ++good) {
      EXPECT_LT(good, 5000);
      ReleaseScratch();
      outputs.Fill(0xa5);
      std::string said = "nothing";
      int64_t failed = 0;
      {
        const FailingAllocations failing(good, fail);
        try {
          call();
        } catch (const Error& error) {
          said = error.code() == Code::kOutOfMemory ? "out of memory" : "another error";
        } catch (...) {
          said = "another exception";
        }
        failed = failing.failed();
      }
      if (failed == 0) {
        EXPECT_TRUE(outputs.Hold(right)) << "with memory again";
        break;
      }
      ++total;
      if (said == "nothing") {  // the call can do without this allocation
        EXPECT_TRUE(outputs.Hold(right)) << good;
      } else {
        EXPECT_EQ(said, "out of memory") << good;
        EXPECT_TRUE(outputs.Hold(untouched)) << good;
      }
      call();
      EXPECT_TRUE(outputs.Hold(right)) << "after a failure at " << good;
      if (testing::Test::HasFailure() || good >= 5000) return total;
    }
  }
  return total;
}

std::vector<float> Numbers(size_t count) {
  std::vector<float> numbers(count);
  for (size_t i = 0; i < count; ++i) {
    numbers[i] = static_cast<float>(static_cast<int>(i * 7919 % 20011) - 10000) / 3000.0f;
  }
  return numbers;
}

class AllocationFaults : public testing::Test {
 protected:
  AllocationFaults() { SetNumThreads(2); }
};

TEST_F(AllocationFaults, TopK) {
  const std::vector<float> x = Numbers(4 * 20000);
  const MatrixView view{x.data(), DType::kF32, 4, 20000, 20000};
  std::vector<float> values(4 * 64);
  std::vector<int32_t> indices(4 * 64);
  Outputs outputs;
  outputs.Add(values.data(), values.size() * 4);
  outputs.Add(indices.data(), indices.size() * 4);
  const TopKOut out{values.data(), 64, indices.data(), 64};
  const std::vector<int32_t> k = {1, 64, 7, 2}, starts = {0, 1, 2, 3}, ends = {9, 20000, 500, 3};
  for (const Algorithm algorithm : {Algorithm::kAuto, Algorithm::kLaneSort}) {
    TopKOptions options;
    options.algorithm = algorithm;
    EXPECT_GT(FailAtEach("TopK", outputs, [&] { TopK(view, 64, out, options); }), 0);
    EXPECT_GT(FailAtEach("k of each row", outputs, [&] { TopK(view, k, out, options); }), 0);
  }
  Outputs only_indices;
  only_indices.Add(indices.data(), indices.size() * 4);
  EXPECT_GT(FailAtEach("TopKPerRow", only_indices,
                       [&] {
                         TopKPerRow(view, starts, ends, 64, {indices.data(), 64});
                       }),
            0);
  EXPECT_GT(FailAtEach("TopKPerRowDecode", only_indices,
                       [&] {
                         TopKPerRowDecode(view, ends, 1, 64, {indices.data(), 64});
                       }),
            0);
  const MatrixView one{x.data(), DType::kF32, 1, 20000, 20000};
  EXPECT_GT(FailAtEach("one row", {}, [&] { TopK(one, 64, out); }), 0);
  const MatrixView narrow{x.data(), DType::kF32, 200, 40, 40};
  std::vector<float> best(400);
  std::vector<int32_t> columns(400);
  EXPECT_GT(FailAtEach("narrow", {},
                       [&] {
                         TopK(narrow, 2, {best.data(), 2, columns.data(), 2});
                       }),
            0);
}

TEST_F(AllocationFaults, Plans) {
  EXPECT_GT(FailAtEach("PlanTopK", {}, [&] { PlanTopK(20000, 300); }), 0);
  EXPECT_GT(FailAtEach("DepthProbabilities", {}, [&] { DepthProbabilities(100); }), 0);
}

TEST_F(AllocationFaults, Sample) {
  const std::vector<float> x = Numbers(3 * 20000);
  const std::vector<float> top_p = {0.999f};
  std::vector<int32_t> tokens(3);
  std::vector<float> logprobs(3);
  Outputs outputs;
  outputs.Add(tokens.data(), tokens.size() * 4);
  outputs.Add(logprobs.data(), logprobs.size() * 4);
  EXPECT_GT(
      FailAtEach(
          "Sample", outputs,
          [&] {
            Sample({x.data(), DType::kF32, 3, 20000, 20000}, tokens, logprobs, {.top_p = top_p});
          }),
      0);
}

TEST_F(AllocationFaults, ApplyTopKTopP) {
  std::vector<float> x = Numbers(3 * 20000);
  const std::vector<float> top_p = {0.999f};
  Outputs outputs;
  outputs.Add(x.data(), x.size() * 4);
  EXPECT_GT(FailAtEach("ApplyTopKTopP", outputs,
                       [&] {
                         ApplyTopKTopP({x.data(), 20000}, 3, 20000, {.top_p = top_p});
                       }),
            0);
}

TEST_F(AllocationFaults, Linear) {
  const std::vector<float> x = Numbers(5 * 64), weight = Numbers(9000 * 64);
  std::vector<uint8_t> blocks(9000 * 2 * 34);
  for (size_t i = 0; i < blocks.size(); ++i) {
    blocks[i] = i % 34 == 1 ? 0x20 : static_cast<uint8_t>(i * 7919 % 251);
  }
  std::vector<float> y(5 * 9000), values(5 * 8);
  std::vector<int32_t> indices(5 * 8);
  Outputs outputs;
  outputs.Add(values.data(), values.size() * 4);
  outputs.Add(indices.data(), indices.size() * 4);
  const MatrixView view{x.data(), DType::kF32, 5, 64, 64};
  const WeightView f32{weight.data(), WeightFormat::kF32, 9000, 64, 64};
  const WeightView q8{blocks.data(), WeightFormat::kQ8_0, 9000, 64, 2};
  Outputs logits;
  logits.Add(y.data(), y.size() * 4);
  EXPECT_GT(FailAtEach("Linear", logits, [&] { Linear(view, f32, {y.data(), 9000}); }), 0);
  for (const WeightView& w : {f32, q8}) {
    EXPECT_GT(FailAtEach(Name(w.format), outputs,
                         [&] {
                           LinearTopK(view, w, 8, {values.data(), 8, indices.data(), 8});
                         }),
              0);
  }
}

TEST_F(AllocationFaults, Attention) {
  const std::vector<float> q = Numbers(3 * 2 * 32), pages = Numbers(2 * 40 * 16 * 32);
  const std::vector<int32_t> lens = {600, 5, 33};
  std::vector<int32_t> table(3 * 38);
  std::iota(table.begin(), table.end(), 0);
  for (int32_t& page : table) page %= 40;
  std::vector<float> out(q.size()), lse(6);
  Outputs outputs;
  outputs.Add(out.data(), out.size() * 4);
  outputs.Add(lse.data(), lse.size() * 4);
  const PagedKv keys{pages.data(), DType::kF32, 40, 16, 1, 32, 1024, 32, 32};
  PagedKv values = keys;
  values.data = pages.data() + 512;
  PagedBatch batch;
  batch.kv_lens = lens;
  batch.page_table = table.data();
  batch.max_pages = batch.page_table_stride = 38;
  const HeadsView queries{q.data(), DType::kF32, 3, 2, 32, 64, 32};
  EXPECT_GT(FailAtEach(
                "PagedAttention", outputs,
                [&] {
                  PagedAttention(queries, keys, values, batch, {out.data(), 64, 32, lse.data(), 2});
                }),
            0);
  const std::vector<float> part_lse(6, 1.0f);
  const std::vector<AttentionPart> parts(2, {queries, part_lse.data(), 2});
  EXPECT_GT(FailAtEach("MergeStates", outputs,
                       [&] {
                         MergeStates(parts, {out.data(), 64, 32, lse.data(), 2});
                       }),
            0);
  EXPECT_GT(FailAtEach("ReadPages", {}, [&] { ReadPages(keys, values, batch); }), 0);
  EXPECT_EQ(FailAtEach("ReadMax", {}, [&] { ReadMax(pages.data(), 4096); }), 0);  // takes none
}

TEST_F(AllocationFaults, WriteKv) {
  const std::vector<float> x = Numbers(3000 * 32);
  std::vector<float> keys(3008 * 32), values(keys.size());
  std::vector<int64_t> slots(3000);
  for (size_t t = 0; t < slots.size(); ++t) slots[t] = static_cast<int64_t>(t * 7 % 3008);
  Outputs outputs;
  outputs.Add(keys.data(), keys.size() * 4);
  outputs.Add(values.data(), values.size() * 4);
  const PagedKvOut key_pages{keys.data(), DType::kF32, 188, 16, 1, 32, 512, 32, 32};
  PagedKvOut value_pages = key_pages;
  value_pages.data = values.data();
  const HeadsView view{x.data(), DType::kF32, 3000, 1, 32, 32, 32};
  EXPECT_GT(FailAtEach("WriteKv", outputs,
                       [&] { riffle::WriteKv(view, view, slots, key_pages, value_pages); }),
            0);
}

TEST_F(AllocationFaults, Sparse) {
  const std::vector<float> q = Numbers(2 * 4 * 32), pool = Numbers(4000 * 32);
  const std::vector<int32_t> lens = {4000, 3000}, table = {0, 0};
  const HeadsView view{q.data(), DType::kF32, 2, 4, 32, 128, 32};
  const IndexKeys keys{pool.data(), DType::kF32, 1, 4000, 32, 0, 32};
  PagedBatch batch;
  batch.kv_lens = lens;
  batch.page_table = table.data();
  batch.max_pages = batch.page_table_stride = 1;
  std::vector<float> logits(2 * 4000), out(2 * 4 * 32), turned(4000 * 32);
  std::vector<int32_t> indices(2 * 64);
  Outputs scores, selected, attended, rows;
  scores.Add(logits.data(), logits.size() * 4);
  selected.Add(indices.data(), indices.size() * 4);
  attended.Add(out.data(), out.size() * 4);
  rows.Add(turned.data(), turned.size() * 4);
  EXPECT_GT(FailAtEach("IndexerLogits", scores,
                       [&] {
                         IndexerLogits(view, {}, keys, batch, {logits.data(), 4000, 4000});
                       }),
            0);
  EXPECT_GT(FailAtEach("IndexerTopK", selected,
                       [&] {
                         IndexerTopK(view, {}, keys, batch, 64, {indices.data(), 64});
                       }),
            0);
  EXPECT_GT(FailAtEach("Hadamard", rows,
                       [&] {
                         Hadamard({pool.data(), DType::kF32, 4000, 32, 32}, {turned.data(), 32});
                       }),
            0);
  std::vector<int32_t> slots(2 * 64);
  std::iota(slots.begin(), slots.end(), 0);
  SparseScope scope;
  scope.rows = {pool.data(), DType::kF32, 4000, 32, 32};
  scope.slots = slots.data();
  scope.cols = scope.slots_stride = 64;
  EXPECT_GT(FailAtEach("SparseAttention", attended,
                       [&] {
                         SparseAttention(view, {&scope, 1}, {out.data(), 128, 32, nullptr, 0});
                       }),
            0);
  std::vector<float> entries(500 * 32);
  Outputs compressed;
  compressed.Add(entries.data(), entries.size() * 4);
  CompressOptions options;
  options.ratio = 8;
  const MatrixView tokens{pool.data(), DType::kF32, 4000, 32, 32};
  EXPECT_GT(FailAtEach("CompressKv", compressed,
                       [&] {
                         CompressKv(tokens, tokens, {entries.data(), 32}, options);
                       }),
            0);
}

TEST_F(AllocationFaults, KvCache) {
  KvCacheOptions options;
  options.head_dim = 32;
  options.pages = 100;
  EXPECT_GT(FailAtEach("KvCache", {}, [&] { KvCache cache(options); }), 0);
  const std::vector<float> ones(1500 * 32, 1.0f);
  // Runs a script of calls; a call that fails is made again.
  const auto script = [&](int64_t good) {
    KvCache cache(options);
    int64_t failures = 0;
    const auto step = [&](const auto& call) {
      const int64_t pages = cache.pages_used(), sequences = cache.sequences();
      const FailingAllocations failing(good, Fail::kOnce);
      try {
        return call();
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), Code::kOutOfMemory);
        EXPECT_EQ(cache.pages_used(), pages);
        EXPECT_EQ(cache.sequences(), sequences);
        ++failures;
      }
      return call();
    };
    const HeadsView view{ones.data(), DType::kF32, 1500, 1, 32, 32, 32};
    const int64_t first = step([&] { return cache.Create(); });
    step([&] { cache.Extend(first, 1500); });
    step([&] { cache.Write(0, first, 0, view, view); });
    const int64_t second = step([&] { return cache.Fork(first); });
    step([&] { cache.Extend(second, 17); });
    const std::vector<int64_t> both = {first, second};
    const KvBatch batch = step([&] { return cache.Batch(both); });
    EXPECT_EQ(batch.kv_lens, (std::vector<int32_t>{1500, 1517}));
    const std::vector<BlockKey> keys = {{{1, 2}}, {{3, 4}}};
    step([&] { cache.SetBlockKeys(first, keys); });
    const int64_t third = step([&] { return cache.Create(keys); });
    EXPECT_EQ(cache.Length(third), 32);
    std::vector<uint8_t> memory(static_cast<size_t>(cache.SwapBytes(third)));
    step([&] { cache.SwapOut(third, memory); });
    step([&] { cache.SwapIn(third, memory); });
    cache.Free(third);
    step([&] { cache.Free(first); });
    EXPECT_EQ(cache.pages_used(), 95);
    return failures;
  };
  EXPECT_GT(script(0), 3);
  EXPECT_GT(script(1), 0);
  EXPECT_EQ(script(1000), 0);
}

TEST_F(AllocationFaults, Runtime) {
  EXPECT_GT(FailAtEach("Targets", {}, [] { Targets(); }), 0);
  EXPECT_GT(FailAtEach("ThreadPool", {}, [] { ThreadPool pool(4); }), 0);
  EXPECT_GT(FailAtEach("SetNumThreads", {}, [] { SetNumThreads(3); }), 0);
  EXPECT_GT(FailAtEach("errors", {},
                       [] {
                         try {
                           SetTarget("a target that no machine has, of a name that takes memory");
                         } catch (const Error& error) {
                           if (error.code() == Code::kOutOfMemory) throw;
                         }
                       }),
            0);
}

// A pool that cannot be resized keeps its threads.
TEST_F(AllocationFaults, SetNumThreadsKeepsWhatThereWas) {
  SetNumThreads(3);
  for (int64_t good = 0; good < 4; ++good) {
    const FailingAllocations failing(good, Fail::kFromThenOn);
    EXPECT_THROW(SetNumThreads(5), Error) << good;
    EXPECT_EQ(NumThreads(), 3);
  }
  std::vector<int> runs(300);
  ParallelFor(300, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
  EXPECT_EQ(runs, std::vector<int>(300, 1));
}

// A call that needed very much scratch keeps only the first pages of it.
TEST_F(AllocationFaults, MuchScratchIsGivenBack) {
  const int64_t n = 20'000'000;
  const std::vector<float> x(static_cast<size_t>(n), 1.0f), top_p = {0.5f};
  std::vector<int32_t> tokens(1);
  ThreadPool pool(1);
  const auto sample = [&](int64_t columns) {
    const int64_t before = Allocations();
    Sample({x.data(), DType::kF32, 1, columns, columns}, tokens, {.top_p = top_p, .pool = &pool});
    return Allocations() - before;
  };
  sample(n);
  EXPECT_GT(sample(n), 0) << "scratch of 160 MB was kept";
  sample(100'000);
  EXPECT_EQ(sample(100'000), 0) << "scratch of 800 kB was not kept";
  ReleaseScratch({.pool = &pool});
  EXPECT_GT(sample(100'000), 0) << "ReleaseScratch has left it";
}

}  // namespace
}  // namespace riffle::test

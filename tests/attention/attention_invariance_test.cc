// The same query gives the same bits: alone and in a batch, by any number of threads, from pages of
// any size and layout, by decode and by prefill and by chunks of it.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "riffle/attention.h"
#include "testing/attention_case.h"
#include "testing/kv_codings.h"
#include "testing/rng.h"
#include "testing/targets.h"

namespace riffle::test {
namespace {

struct Kind {
  const char* name;
  AttentionSpec spec;
};

// Options and data under which a slip would show: windows that begin inside of blocks, values that
// underflow, NaN and infinities that only some of the queries see.
std::vector<Kind> Kinds() {
  std::vector<Kind> kinds;
  const auto add = [&kinds](const char* name, const AttentionSpec& changes) {
    for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF16}) {
      AttentionSpec spec = changes;
      spec.q_dtype = dtype;
      spec.kv_dtype = dtype;
      kinds.push_back({name, spec});
    }
  };
  add("plain", {.group = 4});
  add("int8", {.group = 4, .int8 = true});
  add("one row", {.kv_heads = 3, .group = 1, .dim = 40});
  add("odd ratio", {.kv_heads = 1, .group = 7, .dim = 128});
  add("many rows", {.kv_heads = 1, .group = 40, .dim = 32});
  add("window", {.group = 3, .window = 100, .soft_cap = 10.0f, .sinks = true});
  add("window 513", {.group = 2, .window = 513});
  add("huge logits", {.data = KvData::kHugeLogits});
  add("tiny values", {.data = KvData::kTiny});
  for (const KvCoding& coding : AllKvCodings()) {
    AttentionSpec spec{.group = 4, .q_dtype = DType::kBF16, .keys = coding, .values = coding};
    kinds.push_back({Name(coding.format), spec});
    spec.q_dtype = DType::kF32;
    spec.group = 3;
    kinds.push_back({Name(coding.format), spec});
    if (coding.format != KvFormat::kPlain || coding.group == 32) {  // five scales a row
      spec.q_dtype = DType::kBF16;
      spec.group = 4;
      spec.dim = 160;
      kinds.push_back({Name(coding.format), spec});
    }
  }
  kinds.push_back({"values in keys",
                   {.kv_heads = 1,
                    .group = 16,
                    .dim = 96,
                    .q_dtype = DType::kBF16,
                    .kv_dtype = DType::kBF16,
                    .value_dim = 64,
                    .value_offset = 0}});
  add("NaN", {.data = KvData::kVisibleNaN});
  add("infinities", {.data = KvData::kInfiniteLater});
  return kinds;
}

class Invariance : public testing::Test {
 protected:
  ~Invariance() override { SetTarget(""); }

  // f(kind) gives something that is built once and called on every target.
  template <typename F>
  static void ForEachKindAndTarget(const F& f) {
    static Rng draws(1);
    for (const Kind& kind : Kinds()) {
      if (kSlow && !draws.OneIn(6)) continue;  // each test leaves out others
      const auto check = f(kind.spec);
      for (const std::string& target : SweepTargets()) {
        SetTarget(target);
        SCOPED_TRACE(kind.name + std::string(": ") + Describe(kind.spec) + " on " + target);
        check();
        if (HasFatalFailure()) {
          return;
        }
      }
    }
  }
};

AttentionResult RunCase(const AttentionSpec& spec) { return AttentionCase(spec).Run(); }

TEST_F(Invariance, DecodeChunksAndPrefill) {
  constexpr int kLength = 600;
  ForEachKindAndTarget([](AttentionSpec spec) {
    struct Chunk {
      int begin, size;
      AttentionCase attention;
    };
    spec.q_lens = std::vector<int>{kLength};
    spec.kv_lens = std::vector<int>{kLength};
    auto prefill = std::make_shared<AttentionCase>(spec);
    auto chunks = std::make_shared<std::vector<Chunk>>();
    for (const int size : {1, 3, 100}) {
      for (int end = size; end <= kLength; end += size == 100 ? size : 83) {
        spec.q_lens = std::vector<int>{size};
        spec.kv_lens = std::vector<int>{end};
        // The infinite values' place depends on the length.
        if (spec.data != KvData::kInfiniteLater || end == kLength) {
          chunks->push_back({end - size, size, AttentionCase(spec)});
        }
      }
    }
    return [prefill, chunks] {
      const AttentionResult expected = prefill->Run();
      for (const Chunk& chunk : *chunks) {
        ASSERT_TRUE(chunk.attention.Run().SameBits(0, expected, chunk.begin, chunk.size))
            << "queries " << chunk.begin << " + " << chunk.size;
      }
    };
  });
}

// The same of one kind and few lengths, for machines on which the test above takes an hour.
TEST_F(Invariance, DecodeAndPrefillInShort) {
  constexpr int kLength = 530;  // of more than one kv_split
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF16}) {
    AttentionSpec spec{.q_lens = {kLength}, .kv_lens = {kLength}, .group = 4};
    spec.q_dtype = dtype;
    spec.kv_dtype = dtype;
    const AttentionCase prefill(spec);
    for (const std::string& target : Targets()) {
      SetTarget(target);
      const AttentionResult expected = prefill.Run();
      for (const auto& [size, end] :
           {std::pair{1, 1}, {1, 257}, {1, kLength}, {7, 64}, {40, 520}}) {
        spec.q_lens = std::vector<int>{size};
        spec.kv_lens = std::vector<int>{end};
        ASSERT_TRUE(RunCase(spec).SameBits(0, expected, end - size, size))
            << Name(dtype) << " on " << target << ", queries " << end - size << " + " << size;
      }
    }
  }
}

// A NaN in a key or a value reaches every query that sees it, and no other.
TEST_F(Invariance, NaNInShort) {
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF16}) {
    const AttentionCase attention({.q_lens = {1, 30},
                                   .kv_lens = {60, 70},
                                   .q_dtype = dtype,
                                   .kv_dtype = dtype,
                                   .data = KvData::kVisibleNaN});
    for (const std::string& target : Targets()) {
      SetTarget(target);
      EXPECT_EQ(attention.Check(attention.Run()), "") << Name(dtype) << " on " << target;
    }
  }
}

// Queries before the last one do not see the infinite values, so they must not feel them.
TEST_F(Invariance, InfinitiesOfLaterTokens) {
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF16}) {
    for (const std::string& target : Targets()) {
      SetTarget(target);
      AttentionSpec with{.q_lens = {90},
                         .kv_lens = {600},
                         .group = 3,
                         .q_dtype = dtype,
                         .kv_dtype = dtype,
                         .data = KvData::kInfiniteLater};
      AttentionSpec without = with;
      without.data = KvData::kNormal;
      ASSERT_TRUE(RunCase(with).SameBits(0, RunCase(without), 0, 89)) << target;
    }
  }
}

TEST_F(Invariance, AloneAndInABatch) {
  ForEachKindAndTarget([](AttentionSpec spec) {
    spec.q_lens = {1, 20, 0, 150, 1, 3};
    spec.kv_lens = {1300, 20, 77, 300, 64, 513};
    auto batch = std::make_shared<AttentionCase>(spec);
    auto alone = std::make_shared<std::vector<AttentionCase>>();
    for (size_t b = 0; b < spec.q_lens.size(); ++b) {
      AttentionSpec one = spec;
      one.q_lens = std::vector<int>{spec.q_lens[b]};
      one.kv_lens = std::vector<int>{spec.kv_lens[b]};
      one.first_sequence = static_cast<int>(b);
      alone->push_back(AttentionCase(one));
    }
    return [batch, alone] {
      const AttentionResult together = batch->Run();
      int token = 0;
      for (const AttentionCase& one : *alone) {
        ASSERT_TRUE(one.Run().SameBits(0, together, token, one.tokens())) << "token " << token;
        token += one.tokens();
      }
    };
  });
}

TEST_F(Invariance, Threads) {
  auto pools = std::make_shared<std::vector<std::unique_ptr<ThreadPool>>>();
  for (const int threads : {1, 2, 3, 17}) {
    pools->push_back(std::make_unique<ThreadPool>(threads));
  }
  ForEachKindAndTarget([&](AttentionSpec spec) {
    auto cases = std::make_shared<std::vector<AttentionCase>>();
    // Long single sequences are split over threads, the heads of short ones too.
    for (const int length : {3000, 600, 100}) {
      spec.q_lens = std::vector<int>{2};
      spec.kv_lens = std::vector<int>{length};
      cases->push_back(AttentionCase(spec));
    }
    return [cases, pools] {
      for (const AttentionCase& attention : *cases) {
        const AttentionResult expected = attention.Run(pools->front().get());
        for (const auto& pool : *pools) {
          ASSERT_TRUE(attention.Run(pool.get()).SameBits(0, expected, 0, 2))
              << pool->threads() << " threads";
        }
      }
    };
  });
}

// One thread takes work items of 512 rows here, four take 256.
TEST_F(Invariance, WidthOfWorkItems) {
  constexpr int kLength = 700;
  ThreadPool one(1);
  ThreadPool four(4);
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    AttentionSpec spec{.q_lens = {kLength}, .kv_lens = {kLength}, .kv_heads = 2, .group = 4};
    spec.dim = 40;
    spec.q_dtype = dtype;
    spec.kv_dtype = dtype;
    const AttentionCase attention(spec);
    for (const std::string& target : Targets()) {
      SetTarget(target);
      ASSERT_TRUE(attention.Run(&one).SameBits(0, attention.Run(&four), 0, kLength)) << target;
    }
  }
}

TEST_F(Invariance, PagesAndLayouts) {
  ForEachKindAndTarget([](AttentionSpec spec) {
    auto cases = std::make_shared<std::vector<AttentionCase>>();
    for (const int page_size : {16, 1, 7, 64, 256}) {
      for (const Layout layout : {Layout::kHND, Layout::kNHD, Layout::kJAX}) {
        spec.q_lens = {1, 70};
        spec.kv_lens = {700, 100};
        spec.page_size = page_size;
        spec.layout = layout;
        spec.page_seed = static_cast<uint64_t>(page_size);
        cases->push_back(AttentionCase(spec));
      }
    }
    return [cases] {
      const AttentionResult expected = cases->front().Run();
      for (size_t i = 1; i < cases->size(); ++i) {
        ASSERT_TRUE((*cases)[i].Run().SameBits(0, expected, 0, 71)) << "case " << i;
      }
    };
  });
}

}  // namespace
}  // namespace riffle::test

// Sequences of a few keys, which are taken side by side when a task has no others: the same bits as
// beside a long sequence, with which they are taken head by head, and the answer in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "riffle/attention.h"
#include "testing/distributions.h"
#include "testing/masked_attention_case.h"
#include "testing/reference.h"
#include "testing/rng.h"
#include "testing/targets.h"
#include "testing/text.h"

namespace riffle::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr DType kFloats[] = {DType::kF32, DType::kF16, DType::kBF16};

// Ends with a sequence that is too long to be taken side by side with others.
MaskedSpec DrawSpec(Rng& rng) {
  MaskedSpec s;
  s.q_dtype = rng.Pick(kFloats);
  s.kv_dtype = rng.OneIn(2) ? s.q_dtype : rng.Pick(kFloats);
  s.mask_dtype = rng.OneIn(4) ? DType::kU8 : rng.Pick(kFloats);
  s.group = rng.Pick(std::vector<int>{1, 1, 2, 3, 4, 7});
  s.kv_heads = rng.Pick(std::vector<int>{1, 2, 3, 17});
  s.dim = rng.Pick(std::vector<int>{8, 16, 40, 64, 80, 96, 264});
  s.page_size = rng.Pick(std::vector<int>{1, 3, 16, 64});
  s.causal = rng.OneIn(3);
  if (rng.OneIn(4)) s.window = rng.Between(1, 20);
  if (rng.OneIn(4)) s.soft_cap = 2.0f;
  s.one_token = rng.OneIn(3);
  s.one_head = rng.OneIn(2);
  s.key_stride = rng.OneIn(3) ? 2 : 1;
  s.hidden_of_8 = rng.Pick(std::vector<int>{0, 2, 4, 7, 8});
  s.adds = rng.OneIn(2);
  s.slopes = rng.OneIn(3);
  s.sinks = rng.OneIn(3);
  s.poisoned = rng.OneIn(2);
  s.q_lens.clear();
  s.kv_lens.clear();
  const auto sequences = rng.Between(1, 9);
  const bool alike = rng.OneIn(3);  // of one length, as dense tensors are
  for (int64_t b = 0; b < sequences; ++b) {
    const bool again = alike && b > 0;
    const int kv_len = again ? s.kv_lens[0] : static_cast<int>(rng.Between(1, 16));
    // 32 products of rows and keys, or four keys, are few; one row more is not.
    const int rows = kv_len <= 4 ? 12 : std::max(1, 32 / (kv_len * s.group) + rng.OneIn(8));
    const int most = s.causal || s.window ? std::min(rows, kv_len) : rows;
    s.kv_lens.push_back(kv_len);
    s.q_lens.push_back(again ? s.q_lens[0] : static_cast<int>(rng.Between(1, most)));
  }
  s.q_lens.push_back(1);
  s.kv_lens.push_back(90);
  return s;
}

// A call of the first sequences of a case.
class Calls {
 public:
  explicit Calls(uint64_t seed) : rng_(seed), case_(DrawSpec(rng_), seed) {
    Hostile();
    options_ = case_.Options();
    if (rng_.OneIn(3)) options_.mask = {};
    if (rng_.OneIn(4)) options_.scale = rng_.Pick(std::vector<float>{-0.3f, 0.0f, 1e-35f, 50.0f});
    options_.bf16_products = rng_.OneIn(4);
    if (!case_.s.window && !case_.s.causal) {
      if (rng_.OneIn(4)) MakeSomeCausal();
    }
    equal_ = rng_.OneIn(4);
  }

  MaskedResult Run(size_t sequences, ThreadPool* pool) const {
    const MaskedCase& c = case_;
    HeadsView q = c.Q();
    q.tokens = c.cu_q_lens[sequences];
    PagedBatch batch = c.Batch();
    const std::vector<int32_t> cu_q_lens(c.cu_q_lens.begin(),
                                         c.cu_q_lens.begin() + static_cast<int64_t>(sequences) + 1);
    const std::vector<int32_t> kv_lens(c.s.kv_lens.begin(),
                                       c.s.kv_lens.begin() + static_cast<int64_t>(sequences));
    batch.cu_q_lens = cu_q_lens;
    batch.kv_lens = kv_lens;
    batch.causal = causal_.empty() ? std::span<const uint8_t>()
                                   : std::span<const uint8_t>(causal_).first(sequences);
    AttentionOptions options = options_;
    options.mask.tokens = std::min(options.mask.tokens, q.tokens);
    options.pool = pool;
    MaskedResult result;
    const auto rows = static_cast<size_t>(q.tokens * c.heads);
    result.out.assign(rows * static_cast<size_t>(c.s.dim) * SizeOf(c.s.q_dtype), 0xff);
    result.lse.assign(rows, std::nanf(""));
    const PagedKv keys = c.Kv(*c.keys);
    PagedAttention(
        q, keys, equal_ ? keys : c.Kv(*c.values), batch,
        {result.out.data(), int64_t{c.heads} * c.s.dim, c.s.dim, result.lse.data(), c.heads},
        options);
    return result;
  }

  size_t sequences() const { return case_.s.kv_lens.size(); }
  std::string Name() const {
    const MaskedSpec& s = case_.s;
    std::string name = Concat(riffle::Name(s.q_dtype), " over ", riffle::Name(s.kv_dtype), ", ",
                              s.kv_heads, " x ", s.group, " heads of ", s.dim, "; queries x keys:");
    for (size_t b = 0; b < s.kv_lens.size(); ++b) {
      name += Concat(" ", s.q_lens[b], " x ", s.kv_lens[b]);
    }
    return name;
  }

 private:
  // What some queries see and others do not: NaN, infinities, products that overflow, tiny numbers.
  void Hostile() {
    if (!rng_.OneIn(3)) {
      return;
    }
    const std::vector<float> odd = {std::nanf(""), kInf, -kInf, 1e38f, 1e-42f, -0.0f};
    for (Elements* x : {&*case_.keys, &*case_.values, &case_.q}) {
      const size_t n = x->bytes.size() / SizeOf(x->dtype);
      for (size_t i = 0; i < n; i += static_cast<size_t>(rng_.Between(1, 400))) {
        x->Put(i, rng_.Pick(odd));
      }
    }
  }

  void MakeSomeCausal() {
    for (size_t b = 0; b < sequences(); ++b) {
      causal_.push_back(case_.s.q_lens[b] <= case_.s.kv_lens[b] && rng_.OneIn(2) ? 1 : 0);
    }
  }

  Rng rng_;
  MaskedCase case_;
  AttentionOptions options_;
  std::vector<uint8_t> causal_;
  bool equal_ = false;  // values are the keys
};

MaskedResult First(const MaskedResult& all, size_t rows) {
  MaskedResult first = all;
  first.out.resize(all.out.size() / all.lse.size() * rows);
  first.lse.resize(rows);
  return first;
}

TEST(AttentionFewKeys, HaveTheBitsThatTheyHaveBesideALongSequence) {
  ThreadPool one(1);
  ThreadPool three(3);
  for (uint64_t seed = 1; seed <= 600; ++seed) {
    const Calls calls(seed);
    for (const std::string& target : SweepTargets()) {
      SetTarget(target);
      SCOPED_TRACE(Concat("seed ", seed, " on ", target, ": ", calls.Name()));
      const MaskedResult all = calls.Run(calls.sequences(), &one);
      const MaskedResult few = calls.Run(calls.sequences() - 1, &one);
      ASSERT_TRUE(few == First(all, few.lse.size()));
      ASSERT_TRUE(calls.Run(calls.sequences() - 1, &three) == few);
      const MaskedResult alone = calls.Run(1, &one);
      ASSERT_TRUE(alone == First(all, alone.lse.size()));
    }
  }
  SetTarget("");
}

TEST(AttentionFewKeys, AreTheMaskedSoftmaxInDouble) {
  Rng rng(3);
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    MaskedSpec spec = DrawSpec(rng);
    spec.q_lens.pop_back();
    spec.kv_lens.pop_back();
    const MaskedCase c(spec, seed);
    const double tolerance = spec.q_dtype == DType::kF32   ? 1e-5
                             : spec.q_dtype == DType::kF16 ? 1e-3
                                                           : 1.5e-2;
    for (const std::string& target : SweepTargets()) {
      SetTarget(target);
      ASSERT_EQ(c.Difference(c.Run(), tolerance), "") << "seed " << seed << " on " << target;
    }
  }
  SetTarget("");
}

}  // namespace
}  // namespace riffle::test

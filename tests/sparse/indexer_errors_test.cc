// What the indexer's entry points refuse: the code, the text, and that nothing is written.
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "riffle/error.h"
#include "riffle/indexer.h"
#include "testing/indexer_case.h"

namespace riffle::test {
namespace {

// A call whose arguments a test spoils.
struct Arguments {
  HeadsView q;
  IndexWeights weights;
  IndexKeys keys;
  PagedBatch batch;
  int64_t k = 5;
  std::vector<int32_t> cu, lens, table;
  std::vector<float> logits;
  std::vector<int32_t> indices;
  IndexLogitsOut out;
  IndexerOptions options;
  IndexTopKOptions select;
};

class IndexerErrors : public ::testing::Test {
 protected:
  IndexerErrors() : test_(Spec()) {}

  static IndexerSpec Spec() {
    IndexerSpec spec;
    spec.q_lens = {2, 1};
    spec.kv_lens = {40, 20};
    return spec;
  }

  Arguments Good() const {
    Arguments a;
    a.q = test_.q();
    a.weights = test_.weights();
    a.keys = test_.keys();
    a.cu = {0, 2, 3};
    a.lens = {40, 20};
    for (int i = 0; i < 6; ++i) {
      a.table.push_back(i == 5 ? -1
                        : test_.batch().page_table[i] >= 0
                            ? static_cast<int32_t>(test_.batch().page_table[i])
                            : -1);
    }
    a.logits.assign(3 * 40, 3.0f);
    a.indices.assign(3 * 5, 77);
    return a;
  }

  // Both calls refuse what `spoil` does, where `logits` and `top_k` say that it is theirs.
  void Refused(const std::function<void(Arguments&)>& spoil, Code code, const std::string& text,
               bool logits = true, bool top_k = true) {
    Arguments a = Good();
    a.batch.cu_q_lens = a.cu;
    a.batch.kv_lens = a.lens;
    a.batch.page_table = a.table.data();
    a.batch.max_pages = a.batch.page_table_stride = 3;
    a.out = {a.logits.data(), 40, 40};
    spoil(a);
    const auto expect = [&](const auto& call) {
      try {
        call();
        ADD_FAILURE() << "not refused: " << text;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), code) << error.what();
        EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
      }
    };
    if (logits) {
      expect([&] { IndexerLogits(a.q, a.weights, a.keys, a.batch, a.out, a.options); });
    }
    if (top_k) {
      a.select.ratio = a.options.ratio;
      a.select.activation = a.options.activation;
      expect([&] {
        IndexerTopK(a.q, a.weights, a.keys, a.batch, a.k, {a.indices.data(), 5}, a.select);
      });
    }
    EXPECT_EQ(a.logits, std::vector<float>(3 * 40, 3.0f)) << text;
    EXPECT_EQ(a.indices, std::vector<int32_t>(3 * 5, 77)) << text;
  }

  IndexerCase test_;
};

TEST_F(IndexerErrors, Shapes) {
  Refused([](auto& a) { a.q.dtype = DType::kF64; }, Code::kBadDType, "q is float64");
  Refused([](auto& a) { a.keys.dtype = DType::kU8; }, Code::kBadDType, "keys are uint8");
  Refused([](auto& a) { a.q.heads = 129; }, Code::kBadShape, "q.heads = 129");
  Refused([](auto& a) { a.q.head_dim = a.keys.head_dim = 40; }, Code::kBadShape, "= 40");
  Refused([](auto& a) { a.q.head_dim = 32; }, Code::kBadShape, "q.head_dim = 32");
  Refused([](auto& a) { a.q.data = nullptr; }, Code::kBadShape, "q.data is null");
  Refused([](auto& a) { a.keys.data = nullptr; }, Code::kBadShape, "keys.data is null");
  Refused([](auto& a) { a.keys.page_size = 0; }, Code::kBadShape, "keys.page_size = 0");
  Refused([](auto& a) { a.keys.page_stride = INT64_MAX / 3; }, Code::kBadShape, "strides of keys");
  Refused(
      [](auto& a) {
        a.keys.dtype = DType::kI8;
        a.keys.scales = {};
      },
      Code::kBadDType, "int8 and have no scales");
  Refused([](auto& a) { a.keys.format = IndexKeyFormat::kDeepGemm; }, Code::kBadDType,
          "the format deepgemm has uint8");
  Refused([](auto& a) { a.out.cols = 39; }, Code::kBadShape, "out.cols = 39", true, false);
  Refused([](auto& a) { a.out.data = nullptr; }, Code::kBadShape, "out.data is null", true, false);
}

TEST_F(IndexerErrors, Lengths) {
  Refused([](auto& a) { a.cu[2] = 4; }, Code::kBadRange, "cu_q_lens[2] = 4");
  Refused([](auto& a) { a.cu[0] = 1; }, Code::kBadRange, "cu_q_lens[0] = 1");
  Refused([](auto& a) { a.cu[1] = -1; }, Code::kBadRange, "cu_q_lens[0..1]");
  Refused([](auto& a) { a.lens[1] = -1; }, Code::kBadRange, "kv_lens[1] = -1");
  Refused([](auto& a) { a.lens[1] = 49; }, Code::kBadRange, "kv_lens[1] = 49");
  Refused([](auto& a) { a.table[1] = 100; }, Code::kBadPage, "page_table[0,1] = 100");
  Refused([](auto& a) { a.table[4] = -1; }, Code::kBadPage, "page_table[1,1] = -1");
  Refused([](auto& a) { a.options.ratio = 0; }, Code::kBadOption, "ratio = 0");
  Refused([](auto& a) { a.options.activation = static_cast<IndexActivation>(9); }, Code::kBadOption,
          "activation = 9");
}

TEST_F(IndexerErrors, Overlap) {
  Refused([](auto& a) { a.weights.data = a.logits.data(); }, Code::kOverlap,
          "out shares memory with weights", true, false);
  Refused([](auto& a) { a.out.row_stride = 39; }, Code::kOverlap, "out overlaps itself", true,
          false);
  Refused(
      [](auto& a) {
        a.batch.page_table = a.indices.data();
        a.batch.page_table_stride = 0;
      },
      Code::kOverlap, "indices shares memory with page_table", false, true);
}

TEST_F(IndexerErrors, Selection) {
  Refused([](auto& a) { a.k = 0; }, Code::kBadK, "k = 0", false);
  Refused([](auto& a) { a.k = INT32_MAX; }, Code::kBadK, "k = 2147483647", false);
  Refused([](auto& a) { a.select.block = 0; }, Code::kBadOption, "block = 0", false);
  Refused([](auto& a) { a.select.first_blocks = -1; }, Code::kBadOption, "first_blocks = -1",
          false);
  Refused(
      [](auto& a) {
        a.select.first_blocks = 3;
        a.select.local_blocks = 3;
      },
      Code::kBadOption, "more than k = 5", false);
  Refused(
      [](auto& a) {
        a.select.block = 2;
        a.select.slots = true;
      },
      Code::kBadOption, "slots = true", false);
}

}  // namespace
}  // namespace riffle::test
